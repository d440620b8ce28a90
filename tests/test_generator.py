"""Cached generation equals the full forward pass, for every strategy, window and legal way of splitting."""

import pytest
import torch

from model import strategies
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.layouts import blocks_before_answer, prompt_blocks
from model.masks import Layout, last_visible
from model.sampling import Sampling, probabilities
from model.session import Session
from tests.conftest import STRATEGIES, WITH_BLOCKS, one_document, tiny_model, turns, windowed

CONVERSATION = "Sss Uuuu Aaa Uuu Aaa Uu"
GREEDY = Sampling(max_new_tokens=6)
WINDOWS = [(None, None), (4, 4), (4, None), (None, 4)]


def prompt(strategy: str, drawing: str = CONVERSATION) -> Prompt:
    blocks = blocks_before_answer(strategy, *turns(drawing)).tolist()
    return Prompt(tuple(torch.randint(97, (len(blocks),)).tolist()), tuple(blocks))


def ask(generator: Generator, prompts, sampling: Sampling, batch_size: int = 16):
    return generator.generate([Request(prompt, sampling) for prompt in prompts], batch_size)


def legal_cuts(block_ids) -> list[int]:
    ends = last_visible(torch.tensor(block_ids)).cummax(0).values
    return [c for c in range(1, len(block_ids)) if ends[c - 1] == c - 1]


def greedy_without_cache(model, whole: Prompt, tokens: int) -> tuple[int, ...]:
    ids, blocks = list(whole.ids), list(whole.block_ids)
    for _ in range(tokens):
        logits = model(torch.tensor([ids]), one_document(torch.tensor(blocks)))
        ids.append(int(logits[0, -1].argmax()))
        blocks.append(-1)
    return tuple(ids[len(whole.ids) :])


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cached_logits_equal_the_full_forward_at_every_legal_cut(strategy, windows):
    model = tiny_model(**windowed(*windows))
    generator, whole = Generator(model, []), prompt(strategy)
    full = model(torch.tensor([whole.ids]), one_document(torch.tensor(whole.block_ids)))[0]
    for cut in legal_cuts(whole.block_ids):
        cache = generator.model.new_cache(1)
        first = generator.prefill(cache, [whole.part(0, cut)])
        second = generator.prefill(cache, [whole.part(cut, len(whole.ids))])
        assert (first[0] - full[cut - 1]).abs().max() < 1e-9
        assert (second[0] - full[-1]).abs().max() < 1e-9


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_token_by_token_after_the_blocks_equals_the_full_forward(strategy, windows):
    model = tiny_model(**windowed(*windows))
    answers, starts = turns("Ss Uuu Aaaaaa")
    ids, blocks = torch.randint(97, (11,)), prompt_blocks(strategy, answers, starts)
    full = model(ids[None], one_document(blocks))[0]
    generator = Generator(model, [])
    cache = generator.model.new_cache(1)
    generator.prefill(cache, [Prompt(tuple(ids[:5].tolist()), tuple(blocks[:5].tolist()))])
    for t in range(5, 11):
        assert (generator.decode(cache, [int(ids[t])])[0] - full[t]).abs().max() < 1e-9


@pytest.mark.parametrize("strategy", WITH_BLOCKS)
def test_a_cut_inside_a_block_is_refused_and_the_block_named(strategy):
    generator, whole = Generator(tiny_model(), []), prompt(strategy)
    legal = legal_cuts(whole.block_ids)
    for cut in set(range(1, len(whole.ids))) - set(legal):
        cache = generator.model.new_cache(1)
        generator.prefill(cache, [whole.part(0, cut)])
        with pytest.raises(ValueError, match=f"block {whole.block_ids[cut]} of row 0"):
            generator.prefill(cache, [whole.part(cut, len(whole.ids))])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_in_a_ragged_batch_answers_as_it_does_alone(strategy, temperature):
    generator = Generator(tiny_model(), stop_ids=range(12))
    prompts = [prompt(strategy, drawing) for drawing in ("U", "Ss Uuuuuu Aa U", "Uuu", CONVERSATION)]
    sampling = Sampling(max_new_tokens=12, temperature=temperature, seed=3)
    alone = [ask(generator, [one], sampling)[0] for one in prompts]
    assert ask(generator, prompts, sampling) == alone
    assert len({len(answer.ids) for answer in alone}) > 1, "rows must end at different steps"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_greedy_generation_equals_the_argmax_of_full_forwards(strategy):
    model, whole = tiny_model(), prompt(strategy)
    assert ask(Generator(model, []), [whole], GREEDY)[0].ids == greedy_without_cache(model, whole, 6)


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_session_answers_every_turn_as_a_fresh_start_would(strategy, windows):
    model = tiny_model(**windowed(*windows))
    session = Session(Generator(model, []))
    ids: list[int] = []
    drawing = ""
    for turn in ("Sss Uuuu", " Uuu", " Uu"):
        drawing += turn
        ids += torch.randint(97, (len(turn.replace(" ", "")),)).tolist()
        blocks = blocks_before_answer(strategy, *turns(drawing)).tolist()
        whole = Prompt(tuple(ids), tuple(blocks))
        answer = list(session.reply(Request(whole, GREEDY)))
        assert tuple(answer) == greedy_without_cache(model, whole, 6)
        assert session.reused_tokens + session.prefilled_tokens == len(ids)
        ids += answer
        drawing += "A" + "a" * (len(answer) - 1)
    # 7 + 6 + 3 + 6 tokens lie before the last turn; the last of them was sampled and never fed
    assert (session.reused_tokens == 21) is strategies.STRATEGIES[strategy].survives_turns
    assert session.reused_tokens == 0 or strategy != "history"


@pytest.mark.parametrize("windows", [(None, None), (40, 40), (40, None)])
def test_a_cache_that_grows_past_several_reserves_stays_exact(windows):
    model = tiny_model(**windowed(*windows))
    generator = Generator(model, [])
    lengths = (120, 3, 127)
    prompts = [Prompt(tuple(torch.randint(97, (n,)).tolist()), (-1,) * n) for n in lengths]
    cache, tails = generator.model.new_cache(3), torch.randint(97, (3, 140))
    generator.prefill(cache, prompts)
    for step in range(140):
        logits = generator.decode(cache, tails[:, step].tolist())
    for row, one in enumerate(prompts):
        ids = torch.cat((torch.tensor(one.ids), tails[row]))[None]
        assert (model(ids)[0, -1] - logits[row]).abs().max() < 1e-9


def test_what_does_not_continue_a_row_is_refused():
    generator = Generator(tiny_model(), [])
    ids = torch.tensor([[1, 2, 3]])
    for documents, positions in (([0, 0, 1], [0, 1, 0]), ([0, 0, 0], [0, 2, 3]), ([0, 0, 0], [1, 2, 3])):
        layout = Layout(torch.tensor([documents]), torch.tensor([positions]), torch.full((1, 3), -1))
        with pytest.raises(ValueError, match="rows of one document that go on"):
            generator.model.model(ids, layout, generator.model.new_cache(1))


@pytest.mark.parametrize("windows", [(None, None), (5, 5), (5, None)])
def test_a_cut_inside_a_cached_block_is_refused(windows):
    generator = Generator(tiny_model(**windowed(*windows)), [])
    cache = generator.model.new_cache(1)
    generator.prefill(cache, [Prompt((1, 2, 3, 4, 5, 6), (-1, 3, 3, 3, 3, -1))])
    with pytest.raises(ValueError, match="block 3 of row 0 is cut after 4 tokens"):
        cache.truncate(4)
    cache.truncate(5)
    cache.truncate(1)


def test_undoing_part_of_a_block_prefills_the_block_again():
    model = tiny_model()
    session = Session(Generator(model, []))
    long = Prompt((1, 2, 3, 4, 5, 6), (0,) * 6)
    short = Prompt((1, 2, 3, 4), (0,) * 4)
    list(session.reply(Request(long, GREEDY)))
    assert tuple(session.reply(Request(short, GREEDY))) == greedy_without_cache(model, short, 6)
    assert session.reused_tokens == 0


def test_a_cancelled_answer_leaves_a_session_that_can_go_on():
    model = tiny_model()
    session, whole = Session(Generator(model, [])), prompt("segment")
    answer = session.reply(Request(whole, GREEDY))
    begun = (next(answer), next(answer))
    answer.close()
    assert session.last.finish_reason == "cancelled" and session.last.ids == begun
    assert tuple(session.reply(Request(whole, GREEDY))) == greedy_without_cache(model, whole, 6)


def test_an_answer_ends_at_a_stop_id_or_at_its_length():
    model = tiny_model()
    whole = prompt("prefix")
    [free] = ask(Generator(model, []), [whole], GREEDY)
    assert free.finish_reason == "length" and len(free.ids) == 6
    [stopped] = ask(Generator(model, [free.ids[2]]), [whole], GREEDY)
    assert stopped.finish_reason == "stop" and stopped.ids == free.ids[: free.ids.index(free.ids[2])]
    [none] = ask(Generator(model, []), [whole], Sampling(max_new_tokens=0))
    assert none.finish_reason == "length" and none.ids == ()


def test_the_context_limit_ends_answers_and_refuses_longer_prompts():
    generator = Generator(tiny_model(max_position_embeddings=8), [])
    [full] = ask(generator, [Prompt((1,) * 8, (-1,) * 8)], GREEDY)
    assert full.finish_reason == "length" and len(full.ids) == 1
    [nearly] = ask(generator, [Prompt((1,) * 6, (-1,) * 6)], GREEDY)
    assert len(nearly.ids) == 3
    with pytest.raises(UserError, match="prompt has 9 tokens but the model takes 8"):
        ask(generator, [Prompt((1,) * 9, (-1,) * 9)], GREEDY)
    with pytest.raises(UserError, match="empty"):
        ask(generator, [Prompt((), ())], GREEDY)


def test_a_seed_reproduces_and_another_seed_differs():
    generator, whole = Generator(tiny_model(), []), prompt("causal")
    one, again, other = (
        ask(generator, [whole], Sampling(max_new_tokens=12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.25, 0.125, 0.125]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.6}, [0.5, 0.25, 0, 0]),
        ({"top_p": 0.0}, [0.5, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"min_p": 0.5}, [0.5, 0.25, 0, 0]),
        ({"temperature": 1e-40}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
    ],
)
def test_the_filters_leave_the_distribution_that_we_worked_out_by_hand(settings, expected):
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    got = probabilities(logits, Sampling(**{"temperature": 1.0, **settings}))
    # top-p leaves the kept masses as they are; a draw does not mind the scale
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_top_k_keeps_k_tokens_also_of_equal_ones():
    assert int((probabilities(torch.zeros(9), Sampling(temperature=1.0, top_k=3)) > 0).sum()) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"seed": 2**64},
        {"top_p": 1.5},
        {"top_k": 0},
        {"max_new_tokens": -1},
    ],
)
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
