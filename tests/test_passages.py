"""Passages that do not see each other: drawings, order, states used again, and how data mark them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.batch_settings import BatchSettings
from dataset.batches import collate
from dataset.chat_form import Message
from dataset.conversation import Renderer, render
from dataset.documents import Piece
from dataset.messages import RecordError, read_message
from dataset.prompts import layout_of, prompt_of
from dataset.tokenizer import train_tokenizer
from dataset.truncation import truncate
from model.errors import UserError
from model.generator import Generator, Request
from model.layouts import conversation_layout, parts_of
from model.masks import check_layout, draw_text, visible_mask
from model.passage_states import PassageGenerator
from model.pattern import Pattern
from model.sampling import Sampling
from model.session import Session
from tests.conftest import (
    WITH_PASSAGES,
    check_influence,
    drawn_prompt,
    one_document,
    passages_in,
    tiny_model,
    turns,
    windowed,
)
from tests.test_generation_laws import full_logits, models, under

CONVERSATION = "S U Pp P u A U Pp A"
DRAWINGS = {
    "sets": """
        1 . . . . . . . . . .
        1 1 . . . . . . . . .
        1 1 1 . . . . . . . .
        1 1 1 1 . . . . . . .
        1 1 . . 1 . . . . . .
        1 1 1 1 1 1 . . . . .
        1 1 1 1 1 1 1 . . . .
        1 1 1 1 1 1 1 1 . . .
        1 1 . . . 1 1 1 1 . .
        1 1 . . . 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 1 1 1""",
    "isolated": """
        1 . . . . . . . . . .
        1 1 . . . . . . . . .
        . . 1 . . . . . . . .
        . . 1 1 . . . . . . .
        . . . . 1 . . . . . .
        1 1 1 1 1 1 . . . . .
        1 1 1 1 1 1 1 . . . .
        1 1 1 1 1 1 1 1 . . .
        . . . . . . . . 1 . .
        . . . . . . . . 1 1 .
        1 1 1 1 1 1 1 1 1 1 1""",
}
POSITIONS = {
    "causal": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    "sets": [0, 1, 2, 3, 2, 4, 5, 6, 7, 8, 9],
    "isolated": [0, 1, 0, 1, 0, 2, 3, 4, 0, 1, 5],
}
TOKENIZER = train_tokenizer(["a\nb"], 300)
TEXTS = ("Lima is old.", "Tea is hot.", "The Andes are high.")


def layout_drawn(strategy, drawing=CONVERSATION):
    return conversation_layout(strategy, *turns(drawing), passages_in(drawing))


def marked(*texts: str) -> Message:
    """A question whose parts are passages, but the first and the last."""
    kinds = ["text", *["passage"] * (len(texts) - 2), "text"]
    parts = [{"type": kind, "text": text} for kind, text in zip(kinds, texts, strict=True)]
    return read_message({"role": "user", "content": parts})


@pytest.mark.parametrize("strategy", WITH_PASSAGES)
def test_every_strategy_draws_the_picture_of_passages_that_we_drew_by_hand(strategy):
    layout = layout_drawn(strategy)
    check_layout(layout)
    picture = "\n".join(line.strip() for line in DRAWINGS[strategy].split("\n")[1:])
    assert draw_text(visible_mask(layout)[0]) == picture


@pytest.mark.parametrize("strategy", POSITIONS)
def test_passages_share_positions_and_what_follows_goes_on_after_the_longest(strategy):
    assert layout_drawn(strategy).position_ids[0].tolist() == POSITIONS[strategy]


@pytest.mark.parametrize("windows", [(None, None), (2, 3), (None, 2)])
@pytest.mark.parametrize("strategy", WITH_PASSAGES)
def test_a_token_influences_exactly_what_the_mask_lets_it_with_passages(strategy, windows):
    model, layout = tiny_model(**windowed(*windows)), layout_drawn(strategy)
    widest = model.config.sliding_window
    check_influence(model, layout, *(Pattern(window and widest) for window in windows))


def shuffled(drawing, ids, order):
    """A conversation whose passages stand in another order in the places of the first set."""
    numbers = passages_in(drawing)
    runs = [np.flatnonzero(numbers == n) for n in order]
    before, after = np.arange(min(map(min, runs))), np.arange(max(map(max, runs)) + 1, len(ids))
    places = np.concatenate([before, *runs, after])
    letters = np.array([*drawing.replace(" ", "")])[places]
    return "".join(letters), [ids[place] for place in places]


@settings(max_examples=30, deadline=None)
@given(st.data(), models, st.sampled_from(WITH_PASSAGES), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_no_order_of_passages_changes_a_logit_of_what_follows(data, model, strategy, lengths):
    drawing = "Su" + "".join("P" + "p" * (n - 1) for n in lengths) + "uuAaUu"
    n, number = len(drawing), len(lengths)
    ids = data.draw(st.lists(st.integers(0, 96), min_size=n, max_size=n))
    order = data.draw(st.permutations(range(number)))
    texts, model = shuffled(drawing, ids, order), under(model, strategy)
    one, other = (full_logits(model, drawn_prompt(strategy, *each))[-6:] for each in ((drawing, ids), texts))
    assert (one - other).abs().max() < 1e-12 * max(1, one.abs().max())


def test_under_the_causal_mask_an_order_of_passages_changes_logits():
    drawing, ids = "UPpPpu", [1, 2, 3, 4, 5, 6]
    one, other = (
        full_logits(tiny_model(), drawn_prompt("causal", *each))[-1]
        for each in ((drawing, ids), shuffled(drawing, ids, (1, 0)))
    )
    assert (one - other).abs().max() > 1e-3


def ask(session, prompt) -> torch.Tensor:
    """The log-probabilities of two greedy tokens that a session answers with."""
    list(session.reply(Request(prompt, Sampling(2, 0.0, log_probabilities=True))))
    return torch.tensor(session.last.log_probabilities, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.data(), models, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_states_of_passages_from_other_conversations_give_the_logits_of_a_fresh_prefill(data, model, lengths):
    model = under(model, "isolated")
    library = [tuple(data.draw(st.lists(st.integers(0, 96), min_size=n, max_size=n))) for n in lengths]
    generator = PassageGenerator(model, [])
    for _ in range(3):
        chosen = data.draw(st.lists(st.sampled_from(library), max_size=4))
        head, tail = (data.draw(st.lists(st.integers(0, 96), min_size=1, max_size=5)) for _ in range(2))
        ids = [*head, *(i for passage in chosen for i in passage), *tail]
        drawing = "U" + "u" * (len(head) - 1)
        drawing += "".join("P" + "p" * (len(passage) - 1) for passage in chosen) + "u" * len(tail)
        prompt = drawn_prompt("isolated", drawing, ids)
        logits = generator.prefill(cache := model.new_cache(1), [prompt])
        fresh = Generator(model, []).prefill(whole := model.new_cache(1), [prompt])
        assert (logits - fresh).abs().max() < 1e-9
        assert (logits[0] - full_logits(model, prompt)[-1]).abs().max() < 1e-9
        for mine, other in zip(cache.keys + cache.values, whole.keys + whole.values, strict=True):
            assert (mine[:, :, : len(ids)] - other[:, :, : len(ids)]).abs().max() < 1e-9


def test_a_passage_is_computed_once_for_all_conversations_and_turns():
    model = under(tiny_model(), "isolated")
    generator = PassageGenerator(model, [])
    first, second = drawn_prompt("isolated", "UPppu", [1, 5, 6, 7, 2]), "SsUuPppPpu"
    session = Session(generator)
    ask(session, first)
    assert (session.reused_tokens, session.prefilled_tokens) == (0, 5)
    session.reset()
    second = drawn_prompt("isolated", second, [3, 4, 1, 1, 5, 6, 7, 8, 9, 2])
    got = ask(session, second)
    assert (session.reused_tokens, session.prefilled_tokens) == (3, 7)
    torch.testing.assert_close(got, ask(Session(Generator(model, [])), second), rtol=0, atol=1e-9)


def test_of_too_many_passages_those_go_that_were_used_least_lately(monkeypatch):
    monkeypatch.setattr("model.passage_states.MOST_TOKENS", 4)
    generator = PassageGenerator(under(tiny_model(), "isolated"), [])
    for ids, copied in (((1, 2), 0), ((3, 4), 0), ((1, 2), 2), ((5, 6), 0), ((3, 4), 0), ((5, 6), 2)):
        prompt = drawn_prompt("isolated", "UPpu", [9, *ids, 9])
        generator.prefill(generator.model.new_cache(1), [prompt])
        assert generator.copied_tokens == copied, ids


@pytest.mark.parametrize("strategy", WITH_PASSAGES)
def test_what_was_computed_of_other_passages_is_not_used_again(strategy):
    session = Session(Generator(under(tiny_model(), strategy), []))
    one, other = (drawn_prompt(strategy, f"U{marks}u", [1, 2, 3, 4, 5, 6]) for marks in ("PpPp", "PPpp"))
    ask(session, one)
    got = ask(session, other)
    assert session.reused_tokens == 2, "a passage ends, but in one of the two"
    torch.testing.assert_close(got, ask(Session(session.generator), other), rtol=0, atol=1e-9)


def test_a_rolling_cache_refuses_parts_and_a_model_of_passages_keeps_every_token():
    model, prompt = tiny_model(**windowed(2)), drawn_prompt("sets", "UPpPpu", [1, 2, 3, 4, 5, 6])
    with pytest.raises(ValueError, match="holds no parts"):
        Generator(model, []).prefill(model.new_cache(1), [prompt])
    under(model, "sets")
    logits = Generator(model, []).prefill(model.new_cache(1), [prompt])
    assert (logits[0] - full_logits(model, prompt)[-1]).abs().max() < 1e-9


def test_tokens_in_the_slots_of_forgotten_passages_are_in_none():
    model = under(tiny_model(), "sets")
    generator, cache = Generator(model, []), model.new_cache(1)
    generator.prefill(cache, [drawn_prompt("sets", "UuPpppu", [1, 2, 3, 4, 5, 6, 7])])
    cache.truncate(2)
    for token in (8, 9, 10):
        generator.decode(cache, [token])
    whole = drawn_prompt("sets", "UuAaaUPPu", [1, 2, 8, 9, 10, 11, 12, 13, 14])
    logits = generator.prefill(cache, [whole.part(5)])
    assert (logits[0] - full_logits(model, whole)[-1]).abs().max() < 1e-9


def test_torn_parts_and_blocks_across_parts_are_refused():
    causal = torch.full((4,), -1)
    with pytest.raises(
        ValueError, match="part 0 of row 0 is not one contiguous run of tokens in one document"
    ):
        check_layout(one_document(causal, parts=torch.tensor([0, -1, 0, -1])))
    with pytest.raises(ValueError, match="block 0 of row 0 is not one contiguous run of tokens in one part"):
        check_layout(one_document(torch.tensor([-1, 0, 0, -1]), parts=torch.tensor([0, 0, 1, 1])))


def test_content_parts_mark_passages_and_a_passage_has_the_same_ids_everywhere():
    message = marked("Which?", *TEXTS, "Say.")
    assert message.content == "Which?" + "".join(TEXTS) + "Say."
    assert [message.content[first:last] for first, last in message.passages] == [*TEXTS]
    answer = Message("assistant", "Lima")
    rendered = render([message, answer], TOKENIZER)
    for number, text in enumerate(TEXTS):
        assert rendered.ids[rendered.passages == number].tolist() == TOKENIZER.encode(text)
    plain = render([Message("user", message.content), answer], TOKENIZER)
    assert TOKENIZER.decode(rendered.ids) == TOKENIZER.decode(plain.ids)
    assert (plain.passages == -1).all() and rendered.starts.sum() == plain.starts.sum()


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant", "content": [{"type": "passage", "text": "a"}]}, "a passage in an answer"),
        ({"role": "user", "content": [{"type": "passage", "text": " "}]}, "text of a passage is empty"),
        ({"role": "user", "content": [{"type": "passage"}]}, "a content part without text"),
    ],
)
def test_a_passage_that_cannot_be_one_is_refused(turn, reason):
    with pytest.raises(RecordError, match=reason):
        read_message(turn)


def test_passages_of_a_prompt_that_stands_twice_stand_twice():
    twice = Renderer(train_tokenizer(["a\nb"], 300, prompt_copies=2))
    rendered = twice.render([marked("", "ab", "cd", "?"), Message("assistant", "e")])
    texts = [TOKENIZER.decode(rendered.ids[rendered.passages == n]) for n in range(4)]
    assert texts == ["ab", "cd", "ab", "cd"] and rendered.passages.max() == 3


def test_a_passage_whose_beginning_is_cut_away_is_still_one_of_its_own():
    question = marked("", "x" * 30, "y" * 30 + " Lima " + "z" * 30, "w" * 30, "Which?")
    whole = render([question, Message("assistant", "Lima")], TOKENIZER)
    kept = truncate(whole, 70, Renderer(TOKENIZER)).rendered
    said = [TOKENIZER.decode(kept.ids[kept.passages == n]) for n in range(kept.passages.max() + 1)]
    assert said[0] == "…" and said[1].strip("yz…") == " Lima " and len(said) == 2


@pytest.mark.parametrize("strategy", WITH_PASSAGES)
def test_packed_rows_have_the_parts_and_positions_of_each_chat_and_prompts_the_same(strategy):
    chats = [render([marked("Q", *TEXTS[:n], "?"), Message("assistant", "a")], TOKENIZER) for n in (2, 3, 1)]
    pieces = [
        Piece(
            n,
            chat.ids,
            chat.roles,
            chat.targets,
            np.full(len(chat), -1),
            parts_of(strategy, chat.passages),
        )
        for n, chat in enumerate(chats)
    ]
    batch = collate([pieces], 300, TOKENIZER.pad_id)
    mask = visible_mask(batch.layout)[0]
    begin = 0
    for chat in chats:
        span, alone = slice(begin, begin + len(chat)), layout_of(chat, strategy)
        assert torch.equal(batch.position_ids[0, span], alone.position_ids[0])
        assert torch.equal(mask[span, span], visible_mask(alone)[0])
        begin = span.stop
    asked = render([marked("Q", *TEXTS, "?")], TOKENIZER, generation_prompt=True)
    positions, parts = zip(*prompt_of(asked, strategy).placed(), strict=True)
    trained = layout_of(chats[1], strategy)
    assert list(positions) == trained.position_ids[0, : len(positions)].tolist()
    assert list(parts) == trained.part_ids[0, : len(parts)].tolist()


@pytest.mark.parametrize("strategy", WITH_PASSAGES)
def test_passages_need_documents_by_themselves(strategy):
    with pytest.raises(UserError, match="expected isolate_documents true"):
        BatchSettings(prompt_mask=strategy, isolate_documents=False).resolved("sft")
