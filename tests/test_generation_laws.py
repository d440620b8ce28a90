"""Property tests: whatever the model, masks, lengths, cuts and turns, the cache changes no logit."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from eval.scoring import score, score_pairs
from model.config import ARCHITECTURES, WITH_ENCODER
from model.decoding import next_logits
from model.generator import Generator, Prompt, Request
from model.masks import Layout, last_visible
from model.sampling import Sampling
from model.session import Session
from model.strategies import CAUSAL
from tests.conftest import STRATEGIES, WITH_BLOCKS, WITH_PASSAGES, drawn_prompt, tiny_model, windowed

models = st.builds(
    lambda family, heads, window, slides, both_sides, highway, memory, others: tiny_model(
        architecture=family,
        value_residual=highway and len(slides) > 1,
        memory_tokens=None if family in WITH_ENCODER else memory,
        num_key_value_heads=heads,
        **windowed(
            *(window if slide and family not in WITH_ENCODER else None for slide in slides),
            both_sides=both_sides,
            **others,
        ),
    ),
    family=st.sampled_from(tuple(ARCHITECTURES)),
    heads=st.sampled_from([1, 2, 4]),
    window=st.integers(1, 9),
    slides=st.lists(st.booleans(), min_size=1, max_size=2),
    both_sides=st.booleans(),
    highway=st.booleans(),
    memory=st.sampled_from([None, 3]),
    others=st.sampled_from([{}, {"sinks": 1}, {"chunk": 4}, {"sinks": 3, "chunk": 4}]),
)
messages = st.integers(1, 7)
drawings = st.lists(st.tuples(messages, messages), max_size=3).flatmap(
    lambda rounds: st.tuples(st.integers(0, 4), st.just(rounds), messages)
)


def draw(system: int, rounds, question: int) -> str:
    """A conversation in letters that ends with a question."""
    said = [("S", system)] + [pair for user, answer in rounds for pair in (("U", user), ("A", answer))]
    return "".join(letter + letter.lower() * (n - 1) for letter, n in [*said, ("U", question)] if n)


@st.composite
def prompts(draw_value, strategy: str) -> Prompt:
    drawing = draw_value(marked(draw(*draw_value(drawings)), strategy))
    n = len(drawing)
    return drawn_prompt(strategy, drawing, draw_value(st.lists(st.integers(0, 96), min_size=n, max_size=n)))


def marked(drawing: str, strategy: str) -> st.SearchStrategy[str]:
    """A conversation in letters with passages in its questions, where a strategy knows them."""
    letters = {"u": st.sampled_from("uPp")} if strategy in WITH_PASSAGES else {}
    return st.tuples(*(letters.get(letter, st.just(letter)) for letter in drawing)).map(
        lambda drawn: re.sub("(?<![Pp])p", "P", "".join(drawn))
    )


def under(model, strategy: str):
    """The model, served under a strategy, where it can be."""
    if strategy in WITH_PASSAGES and model.config.architecture in WITH_ENCODER:
        reject()
    model.set_masks(replace(model.config, prompt_mask=strategy))
    return model


def legal_cuts(prompt: Prompt) -> list[int]:
    ends = last_visible(torch.tensor(prompt.block_ids)).cummax(0).values
    return [c for c in range(1, len(ends)) if ends[c - 1] == c - 1]


def full_logits(model, prompt: Prompt) -> torch.Tensor:
    positions, parts = (torch.tensor([each]) for each in zip(*prompt.placed(), strict=True))
    layout = Layout(torch.zeros_like(parts), positions, torch.tensor([prompt.block_ids]), parts)
    with torch.no_grad():
        return model(torch.tensor([prompt.ids]), layout)[0]


@settings(max_examples=40, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES))
def test_batches_in_random_legal_parts_give_the_logits_of_the_full_forward(data, model, strategy):
    model = under(model, strategy)
    rows = data.draw(st.lists(prompts(strategy), min_size=1, max_size=4))
    cuts = [sorted(data.draw(st.sets(st.sampled_from(legal_cuts(row) or [0])))) for row in rows]
    edges = [[0, *cut, len(row.ids)] for cut, row in zip(cuts, rows, strict=True)]
    calls = max(map(len, edges)) - 1
    edges = [[0] * (calls + 1 - len(edge)) + edge for edge in edges]
    generator = Generator(model, [])
    cache, got = generator.model.new_cache(len(rows)), [[] for _ in rows]
    for call in range(calls):
        parts = [row.part(*edge[call : call + 2]) for row, edge in zip(rows, edges, strict=True)]
        if not any(part.ids for part in parts):
            continue
        logits = generator.feed(cache, parts)
        for mine, part, row_logits in zip(got, parts, logits, strict=True):
            mine.append(row_logits[: len(part.ids)])
    for mine, row in zip(got, rows, strict=True):
        assert (torch.cat(mine) - full_logits(model, row)).abs().max() < 1e-9


class Rows:
    """Causal rows in a cache beside the ids that it should hold; what is done to them is drawn."""

    def __init__(self, data, model) -> None:
        self.data, self.model, self.generator = data, model, Generator(model, [])
        self.ids = [self.draw_ids(20) for _ in range(data.draw(st.integers(1, 3)))]
        self.cache = self.filled(self.ids)

    def draw_ids(self, most: int) -> list[int]:
        return self.data.draw(st.lists(st.integers(0, 96), min_size=1, max_size=most))

    def filled(self, rows: list[list[int]]):
        cache = self.generator.model.new_cache(len(rows))
        self.generator.feed(cache, [Prompt(tuple(ids), (-1,) * len(ids)) for ids in rows])
        return cache

    def cut(self) -> None:
        length = self.take_back(self.cache)
        self.ids = [ids[:length] for ids in self.ids]

    def take_back(self, cache) -> int:
        """Forget a few tokens where the cache can; return how many are left."""
        length = max(1, cache.used - self.data.draw(st.integers(0, 5)))
        if cache.can_truncate(length):
            cache.truncate(length)
        return cache.used

    def keep(self) -> None:
        kept = self.data.draw(st.lists(st.integers(0, len(self.ids) - 1), min_size=1, max_size=3))
        self.cache.select(kept)
        self.ids = [self.ids[row] for row in kept]

    def replace(self) -> None:
        row, ids = self.data.draw(st.integers(0, len(self.ids) - 1)), self.draw_ids(20)
        other = self.filled([ids])
        length = self.take_back(other)
        self.cache.replace([row], other)
        self.ids[row] = ids[:length]

    def feed(self) -> None:
        parts = [self.draw_ids(9) for _ in self.ids]
        prompts = [Prompt(tuple(part), (-1,) * len(part)) for part in parts]
        logits = self.generator.feed(self.cache, prompts)
        self.check(parts, [each[len(part) - 1] for each, part in zip(logits, parts, strict=True)])

    def step(self) -> None:
        parts = [self.draw_ids(1) for _ in self.ids]
        self.check(parts, self.generator.decode(self.cache, [token for [token] in parts]))

    def step_as_compiled(self) -> None:
        parts, cache = [self.draw_ids(1) for _ in self.ids], self.cache
        cache.reserve(cache.used + 1)
        held = [part.held() for part in cache.parts]
        self.check(parts, next_logits(self.model, torch.tensor(parts), held))

    def check(self, parts: list[list[int]], logits) -> None:
        self.ids = [ids + part for ids, part in zip(self.ids, parts, strict=True)]
        for ids, last in zip(self.ids, logits, strict=True):
            full = full_logits(self.model, Prompt(tuple(ids), (-1,) * len(ids)))
            assert (last - full[-1]).abs().max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.data(), models, st.integers(0, 6))
def test_a_cache_that_anything_is_done_to_gives_the_logits_of_the_full_forward(data, model, undo_tokens):
    actions = (Rows.cut, Rows.cut, Rows.keep, Rows.replace, Rows.feed, Rows.step, Rows.step_as_compiled)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("model.rolling_cache.UNDO_TOKENS", undo_tokens)  # rings that are soon full
        rows = Rows(data, model)
        for act in data.draw(st.lists(st.sampled_from(actions), max_size=14)):
            act(rows)
            assert rows.cache.lengths.tolist() == [len(ids) for ids in rows.ids]
            assert rows.cache.used == max(map(len, rows.ids))


def test_what_a_ring_has_overwritten_stays_lost_whatever_is_done_to_it(monkeypatch):
    monkeypatch.setattr("model.rolling_cache.UNDO_TOKENS", 2)
    generator = Generator(tiny_model(**windowed(4)), [])  # a ring of 6 tokens

    def fed(tokens: int):
        cache = generator.model.new_cache(1)
        generator.feed(cache, [Prompt((5,) * tokens, (-1,) * tokens)])
        return cache

    cache, other = fed(12), fed(10)
    assert [length for length in range(13) if cache.can_truncate(length)] == [9, 10, 11, 12]
    cache.truncate(10)
    assert [length for length in range(13) if cache.can_truncate(length)] == [9, 10]
    cache.select([0, 0])
    assert [length for length in range(13) if cache.can_truncate(length)] == [9, 10]
    assert other.can_truncate(8)
    cache.select([0])
    other.replace([0], cache)
    assert [length for length in range(13) if other.can_truncate(length)] == [9, 10]
    cache.truncate(0)
    assert cache.can_truncate(0)


def test_sliding_layers_keep_a_window_and_the_others_every_token(monkeypatch):
    monkeypatch.setattr("model.rolling_cache.UNDO_TOKENS", 2)
    model = tiny_model(architecture="gemma3", num_hidden_layers=4, sliding_window=4)
    generator, cache = Generator(model, []), model.new_cache(1)
    generator.feed(cache, [Prompt((5,) * 300, (-1,) * 300)])
    full, rolling = cache.parts
    assert len(full.keys) == 1 and full.keys[0].shape[2] > 300
    assert len(rolling.keys) == 3 and all(
        keys.shape[2] == 7 for keys in rolling.keys
    )  # and a slot of padding
    assert cache.used == 300 and cache.can_truncate(299) and not cache.can_truncate(200)


def test_rows_that_are_taken_over_move_no_others():
    generator = Generator(tiny_model(), [])
    cache, other = generator.model.new_cache(3), generator.model.new_cache(1)
    for each in (cache, other):
        generator.feed(each, [Prompt((1, 2), (-1, -1))] * len(each.lengths))
    places = [keys.data_ptr() for keys in cache.keys]
    cache.replace([1], other)
    assert [keys.data_ptr() for keys in cache.keys] == places


def test_rows_near_the_end_of_the_context_may_end_their_chunks_apart():
    model = tiny_model(max_position_embeddings=40, **windowed(3, 3))
    generator = Generator(model, [], prefill_chunk_tokens=16)
    rows = [Prompt((1,) * 36, (-1,) * 20 + (7,) * 16), Prompt((2,) * 40, (-1,) * 40)]
    logits = generator.prefill(generator.model.new_cache(2), rows)
    for row, last in zip(rows, logits, strict=True):
        assert (last - full_logits(model, row)[-1]).abs().max() < 1e-9


def test_a_cut_is_judged_by_a_block_that_no_window_shows():
    model = tiny_model(max_position_embeddings=400, **windowed(1))
    session = Session(Generator(model, []))
    for token in (5, 6):
        prompt = Prompt((1, 2, 3, 4) + (token,) * 65, (-1,) * 4 + (0,) * 65)
        assert len(list(session.reply(Request(prompt, Sampling(max_new_tokens=1))))) == 1


@settings(max_examples=30, deadline=None)
@given(st.data(), models, st.sampled_from(WITH_BLOCKS))
def test_any_cut_inside_a_block_raises_and_names_the_block(data, model, strategy):
    model = under(model, strategy)
    prompt = data.draw(prompts(strategy))
    illegal = sorted(set(range(1, len(prompt.ids))) - set(legal_cuts(prompt)))
    if not illegal:
        return
    cut = data.draw(st.sampled_from(illegal))
    generator = Generator(model, [])
    cache = generator.model.new_cache(1)
    generator.prefill(cache, [prompt.part(0, cut)])
    with pytest.raises(ValueError, match=f"block {prompt.block_ids[cut]} of row 0"):
        generator.prefill(cache, [prompt.part(cut)])


@settings(max_examples=25, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES))
def test_turns_undone_and_asked_again_are_answered_as_from_a_fresh_start(data, model, strategy):
    model = under(model, strategy)
    generator = Generator(model, stop_ids=range(8))
    session = Session(generator)
    history: list[tuple[str, list[int], list[int]]] = []
    for _ in range(data.draw(st.integers(1, 5))):
        for _ in range(data.draw(st.integers(0, len(history)))):
            history.pop()
        question = data.draw(st.lists(st.integers(0, 96), min_size=1, max_size=7))
        asked = data.draw(marked("U" + "u" * (len(question) - 1), strategy))
        drawing = "".join(q + "A" * bool(a) + "a" * (len(a) - 1) for q, _, a in history)
        ids = [i for _, *pair in history for part in pair for i in part] + question
        request = Request(drawn_prompt(strategy, drawing + asked, ids), Sampling(max_new_tokens=5))
        reply = session.reply(request)
        wanted = data.draw(st.integers(1, 6))  # Ctrl-C after as many
        answer = [token for token, _ in zip(reply, range(wanted), strict=False)]
        reply.close()
        assert tuple(answer) == generator.generate([request])[0].ids[:wanted]
        history.append((asked, question, answer))


@settings(max_examples=20, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES), st.integers(1, 5), st.sampled_from([0.0, 1.0]))
def test_the_queue_answers_every_request_as_if_it_were_alone(data, model, strategy, batch_size, temperature):
    model = under(model, strategy)
    generator = Generator(model, stop_ids=range(30))
    requests = [
        Request(prompt, Sampling(data.draw(st.integers(0, 8)), temperature, seed=n, log_probabilities=True))
        for n, prompt in enumerate(data.draw(st.lists(prompts(strategy), max_size=7)))
    ]
    together = generator.generate(requests, batch_size)
    for request, got in zip(requests, together, strict=True):
        [alone] = generator.generate([request])
        assert (got.ids, got.finish_reason) == (alone.ids, alone.finish_reason)
        assert got.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES), st.integers(1, 10))
def test_chunked_prefill_gives_the_logits_of_the_whole(data, model, strategy, chunk_tokens):
    model = under(model, strategy)
    rows = data.draw(st.lists(prompts(strategy), min_size=1, max_size=3))
    generator = Generator(model, [], prefill_chunk_tokens=chunk_tokens)
    logits = generator.prefill(generator.model.new_cache(len(rows)), rows)
    for got, row in zip(logits, rows, strict=True):
        assert (got - full_logits(model, row)[-1]).abs().max() < 1e-9


@settings(max_examples=20, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES))
def test_scores_are_the_log_probabilities_of_the_full_forward(data, model, strategy):
    model = under(model, strategy)
    prompt = data.draw(prompts(strategy))
    continuation = st.lists(st.integers(0, 96), min_size=1, max_size=5)
    continuations = data.draw(st.lists(continuation, min_size=1, max_size=4))
    scores = score(Generator(model, []), prompt, continuations)
    for ids, got in zip(continuations, scores, strict=True):
        assert (got.log_probabilities - full_scores(model, prompt, ids)).abs().max() < 1e-9


@settings(max_examples=20, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES), st.integers(1, 4))
def test_scores_in_batches_are_the_log_probabilities_of_the_full_forward(data, model, strategy, batch_size):
    model = under(model, strategy)
    continuation = st.lists(st.integers(0, 96), min_size=1, max_size=5)
    pairs = data.draw(st.lists(st.tuples(prompts(strategy), continuation), max_size=6))
    scores = dict(score_pairs(Generator(model, []), pairs, batch_size))
    assert sorted(scores) == list(range(len(pairs)))
    for n, (prompt, ids) in enumerate(pairs):
        assert (scores[n].log_probabilities - full_scores(model, prompt, ids)).abs().max() < 1e-9
        table = full_logits(model, prompt.append(ids))[len(prompt.ids) - 1 : -1]
        assert scores[n].is_greedy == (table.argmax(-1).tolist() == ids)


def full_scores(model, prompt: Prompt, ids: list[int]) -> torch.Tensor:
    table = full_logits(model, prompt.append(ids)).log_softmax(-1)
    return torch.stack([table[len(prompt.ids) - 1 + n, token] for n, token in enumerate(ids)])


@pytest.mark.parametrize(("block", "fed"), [(CAUSAL, 31 + 1 + 1), (0, 3 * 31)])
def test_what_scored_prompts_begin_with_is_computed_once_where_the_mask_lets_it(block, fed, monkeypatch):
    generator, parts_fed = Generator(tiny_model(), []), []

    def prefill(cache, prompts: list[Prompt]) -> torch.Tensor:
        parts_fed.extend(prompts)
        return Generator.prefill(generator, cache, prompts)

    monkeypatch.setattr(generator, "prefill", prefill)
    prompts = [Prompt((*range(30), 40 + n), (block,) * 31) for n in range(3)]
    dict(score_pairs(generator, [(prompt, [5, last]) for prompt in prompts for last in (6, 7)], 2))
    assert sum(len(part.ids) for part in parts_fed) == fed
