"""Conversations on top of the generator's session: turns, cancellations, limits, forced beginnings."""

import gc
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.conversation import Message, render
from dataset.prompts import prompt_of, raw_prompt
from dataset.tokenizer import train_tokenizer
from eval.chat import ChatSession, RawSession, TextSampling, Turn, render_turns
from eval.plots import describe_blocks, draw_mask, draw_masks
from eval.served_model import choose_mask
from eval.terminal import parse_setting
from model import strategies
from model.errors import UserError
from model.generator import Prompt, Request
from model.masks import causal_mask
from tests.conftest import STRATEGIES, one_document
from tests.serving import TEXTS, saying_model, served_model, small_tokenizer

SHORT = TextSampling(max_new_tokens=8)


def say(session, text: str) -> str:
    return "".join(session.ask(text))


def fresh_prompt(session: ChatSession, turns: list[Turn], question: str) -> Prompt:
    rendered = render_turns(session.served.tokenizer, session.system, turns, question)
    return prompt_of(rendered, session.served.prompt_mask)


def fresh_answer(session: ChatSession, turns: list[Turn], question: str) -> tuple[int, ...]:
    """What the generator says to the whole conversation at once, without any session."""
    prompt = fresh_prompt(session, turns, question)
    [completion] = session.served.generator().generate([Request(prompt, session.sampling)])
    return completion.ids


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_turn_gets_what_a_fresh_prefill_of_the_conversation_gives(strategy):
    session = ChatSession(served_model(strategy), SHORT, system="Be brief.")
    for question in ("Capital of Peru?", "它的货币呢？", "And?"):
        before = list(session.turns)
        say(session, question)
        assert session.turns[-1].answer_ids == fresh_answer(session, before, question)
        blocks = fresh_prompt(session, before, question).block_ids
        assert session.layout()[1].block_ids[0, : len(blocks)].tolist() == [*blocks], (
            "what /mask draws is what was asked"
        )


def test_turns_after_undo_retry_and_a_new_system_message_get_what_a_fresh_prefill_gives():
    session = ChatSession(served_model("segment"), SHORT)
    for question in ("one", "two", "three"):
        say(session, question)
    session.undo()
    say(session, "four")
    assert session.turns[-1].answer_ids == fresh_answer(session, session.turns[:-1], "four")
    session.system = "Be kind."
    say(session, "five")
    assert session.turns[-1].answer_ids == fresh_answer(session, session.turns[:-1], "five")
    "".join(session.retry())
    assert [turn.question for turn in session.turns] == ["one", "two", "four", "five"]
    assert session.turns[-1].answer_ids == fresh_answer(session, session.turns[:-1], "five")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(STRATEGIES),
    st.lists(st.sampled_from(["ask", "undo", "retry", "cancel", "system"]), max_size=9),
    st.sampled_from([0.0, 1.0]),
)
def test_every_answer_in_any_order_of_commands_is_that_of_a_fresh_prefill(strategy, commands, temperature):
    session = ChatSession(served_model(strategy, context=128), TextSampling(4, temperature))
    for n, command in enumerate(["ask", *commands]):
        if command == "system":
            session.system = f"Be brief {n}."
        elif command == "cancel":
            "".join(session.ask(f"{n}?", is_cancelled=lambda: True))
        elif command == "ask":
            say(session, f"{n} 法国?")
        elif session.turns:
            session.undo() if command == "undo" else "".join(session.retry())
        if command == "ask" or (command == "retry" and session.turns):
            *before, last = session.turns
            assert last.answer_ids == fresh_answer(session, before, last.question)


def test_a_new_turn_prefills_only_what_the_mask_does_not_let_it_reuse():
    reused = {}
    for strategy in STRATEGIES:
        session = ChatSession(served_model(strategy), SHORT)
        say(session, "Capital of Peru?")
        say(session, "And?")
        reused[strategy] = session.last.reused_tokens
    assert reused["history"] == 0 < reused["causal"]
    for name, strategy in strategies.STRATEGIES.items():
        assert (reused[name] == reused["causal"]) is strategy.survives_turns


def test_the_streamed_text_is_the_text_of_the_sampled_ids():
    session = ChatSession(served_model("causal"), TextSampling(max_new_tokens=9, temperature=1.0))
    for _ in range(20):  # many of these answers end in the middle of a character
        text = say(session, "法国的首都是哪里？")
        ids = session.turns[-1].answer_ids
        assert text == session.served.tokenizer.decode(ids, skip_special_tokens=True)
        assert session.last.tokens == len(ids) == 9 and session.last.finish_reason == "length"
        session.reset()
        session.change_sampling(seed=session.sampling.seed + 1)


def test_answers_enter_the_next_prompt_as_they_were_sampled():
    tokenizer = small_tokenizer()
    sampled = tuple(token_id for letter in "currency" for token_id in tokenizer.encode(letter))
    assert sampled != tuple(tokenizer.encode("currency"))
    ids = render_turns(tokenizer, "", [Turn("Q", sampled)], "And?").ids.tolist()
    assert any(tuple(ids[i : i + len(sampled)]) == sampled for i in range(len(ids)))


@pytest.mark.parametrize("copies", [1, 2])
def test_a_rendered_chat_equals_the_renderer_of_the_training(copies):
    tokenizer = train_tokenizer(TEXTS, 320, prompt_copies=copies)
    turns = [Turn("Q", tuple(tokenizer.encode("Lima"))), Turn("R", ())]
    messages = [Message("system", "S"), Message("user", "Q"), Message("assistant", "Lima")]
    messages += [Message("user", "R"), Message("assistant", ""), Message("user", "T")]
    ours, trained = render_turns(tokenizer, "S", turns, "T"), render(messages, tokenizer, True)
    assert (ours.ids == trained.ids).all() and (ours.codes == trained.codes).all()


def test_a_cancelled_answer_stays_in_the_conversation():
    session = ChatSession(served_model("prefix"), TextSampling(max_new_tokens=50))
    pieces = []
    for piece in session.ask("Capital of Peru?", is_cancelled=lambda: len(pieces) >= 3):
        pieces.append(piece)
    assert session.last.finish_reason == "cancelled" and 3 <= session.last.tokens <= 4
    assert len(session.turns[0].answer_ids) == session.last.tokens
    say(session, "And?")
    assert session.turns[1].answer_ids == fresh_answer(session, session.turns[:1], "And?")


def test_whole_oldest_turns_go_when_the_context_is_full():
    session = ChatSession(served_model("prefix", context=96), SHORT, system="Be brief.")
    dropped = 0
    for n in range(12):
        say(session, f"Question {n}?")
        dropped += session.dropped_turns
        assert session.last.prefilled_tokens + session.last.reused_tokens + session.last.tokens <= 96
    assert dropped == 12 - len(session.turns) and 1 < len(session.turns) < 12
    assert [turn.question for turn in session.turns] == [f"Question {n}?" for n in range(dropped, 12)]
    assert session.turns[-1].answer_ids == fresh_answer(session, session.turns[:-1], "Question 11?")


def test_a_question_that_never_fits_leaves_the_conversation_as_it_was():
    session = ChatSession(served_model("causal", context=96), SHORT)
    say(session, "Capital of Peru?")
    turns = list(session.turns)
    with pytest.raises(UserError, match=r"prompt has \d+ tokens but the model takes 96"):
        say(session, "word " * 200)
    assert session.turns == turns
    say(session, "And?")
    assert len(session.turns) == 2


def test_retry_without_a_turn_is_refused():
    session = ChatSession(served_model("causal"), SHORT)
    with pytest.raises(UserError, match="no turn"):
        "".join(session.retry())


def test_a_retry_that_does_not_fit_leaves_the_conversation_as_it_was():
    session = ChatSession(served_model("causal", context=96), SHORT)
    say(session, "Capital of Peru?")
    turns = list(session.turns)
    session.system = "word " * 200
    with pytest.raises(UserError, match="prompt has"):
        "".join(session.retry())
    assert session.turns == turns and session.sampling == SHORT


def test_a_retry_beyond_the_last_seed_leaves_the_conversation_as_it_was():
    sampling = TextSampling(max_new_tokens=3, seed=2**63 - 1)
    session = ChatSession(served_model("causal"), sampling)
    say(session, "Q")
    with pytest.raises(UserError, match="seed"):
        "".join(session.retry())
    assert len(session.turns) == 1 and session.sampling == sampling


def test_retry_at_a_temperature_draws_another_answer():
    session = ChatSession(served_model("causal"), TextSampling(max_new_tokens=20, temperature=1.0))
    first, second = say(session, "Q"), "".join(session.retry())
    assert first != second and len(session.turns) == 1


def test_reset_forgets_turns_and_states():
    session = ChatSession(served_model("causal"), SHORT)
    first = say(session, "Q")
    session.reset()
    assert session.turns == [] and say(session, "Q") == first and session.last.reused_tokens == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_raw_text_is_one_message_before_an_answer(strategy):
    tokenizer = small_tokenizer()
    prompt = raw_prompt("Lima", tokenizer, strategy)
    assert prompt.ids == (tokenizer.endoftext_id, *tokenizer.encode("Lima"))
    assert set(prompt.block_ids) == {min(strategies.STRATEGIES[strategy].block("UA", 0), 0)}


def test_a_raw_session_continues_each_text_on_its_own():
    session = RawSession(served_model("causal"), SHORT)
    assert say(session, "Lima") == (say(session, "Peru"), say(session, "Lima"))[1]


def test_another_mask_than_the_trained_one_needs_permission():
    assert choose_mask("prefix", None, False) == choose_mask("prefix", "prefix", False) == "prefix"
    assert choose_mask("prefix", "causal", True) == "causal"
    with pytest.raises(UserError, match="trained with prompt_mask prefix"):
        choose_mask("prefix", "causal", False)
    for wanted in (None, "prefix"):
        with pytest.raises(UserError, match="changes nothing"):
            choose_mask("prefix", wanted, True)


def test_settings_are_read_by_their_types():
    assert parse_setting("temperature", "0.7") == 0.7 and parse_setting("top_k", "none") is None
    for name, value in (("top_k", "many"), ("seed", "1.5"), ("colour", "red")):
        with pytest.raises(UserError):
            parse_setting(name, value)


def test_text_drawings_keep_columns_straight_under_wide_characters():
    triangle = causal_mask(3)
    assert draw_mask(triangle, ["法国", "a", "bc"]) == "法国  1 . .\n   a  1 1 .\n  bc  1 1 1"
    wide = draw_masks({"one": triangle, "two": triangle}, ["a", "b", "c"], 40)
    assert wide.split("\n")[1:3] == ["a  1..   1..", "b  11.   11."]
    narrow = draw_masks({"one": triangle, "two": triangle}, ["a", "b", "c"], 10)
    assert narrow.count("a  1 . .") == 2 and "two\n" in narrow
    blocks = torch.tensor([0, 0, 1, -1, -1])
    assert describe_blocks(one_document(blocks)) == "0-1 in block 0, 2-2 in block 1, 3-4 causal"
    assert describe_blocks(one_document(torch.tensor([], dtype=torch.long))) == ""
    parts = one_document(torch.full((6,), -1), parts=torch.tensor([-1, 0, 0, 1, -3, -1]))
    named = "0-0 causal, 1-2 passage 0, 3-3 passage 1, 4-4 passage 1 by itself, 5-5 causal"
    assert describe_blocks(parts) == named


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_forced_beginning_is_causal_and_part_of_the_answer(strategy):
    session = ChatSession(served_model(strategy), SHORT, answer_prefix="Lima 😀")
    text = say(session, "Capital of Peru?")
    begun = tuple(small_tokenizer().encode("Lima 😀"))
    prompt = prompt_of(render_turns(small_tokenizer(), "", [], "Capital of Peru?"), strategy)
    forced = Prompt((*prompt.ids, *begun), (*prompt.block_ids, *(-1 for _ in begun)))
    [fresh] = session.served.generator().generate([Request(forced, SHORT)])
    assert session.turns[0].answer_ids == begun + fresh.ids and session.last.tokens == len(fresh.ids)
    assert text == session.turns[0].answer and text.startswith("Lima 😀")


@pytest.mark.parametrize("strategy", ["causal", "segment"])
def test_a_continued_answer_is_what_it_would_have_been_in_one_piece(strategy):
    served = served_model(strategy)
    whole, parts = (ChatSession(served, TextSampling(max_new_tokens=n)) for n in (14, 7))
    for session in (whole, parts):
        say(session, "Capital of Peru?")
    text = "".join(parts.proceed())
    assert parts.turns == whole.turns and text == whole.turns[0].answer
    assert parts.last.prefilled_tokens == 1, "the last token of an answer is all that was not fed yet"


def test_a_retry_that_is_not_read_to_its_end_leaves_the_conversation_as_it_was():
    session = ChatSession(served_model("causal"), SHORT)
    say(session, "Capital of Peru?")
    turns = list(session.turns)
    retried = session.retry()
    next(retried)
    retried.close()
    assert session.turns == turns


def test_streamed_characters_are_never_broken_and_never_held_back():
    session = ChatSession(saying_model("世国的来Lima😀", "prefix"), TextSampling())
    pieces = list(session.ask("Q"))
    assert [piece for piece in pieces if piece] == ["世", "国", "的", "来", "Li", "ma", "😀"]
    assert session.last.finish_reason == "stop"


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"max_new_tokens": 0}, ""),
        ({"max_new_tokens": 1}, "\ufffd"),
        ({"max_new_tokens": 3}, "世"),
        ({"temperature": 1e-300}, "世国的来Lima😀"),
        ({"temperature": 1.0, "top_p": 0.0}, "世国的来Lima😀"),
        ({"temperature": 1.0, "top_p": 1.0}, "世国的来Lima😀"),
        ({"temperature": 1.0, "min_p": 1.0}, "世国的来Lima😀"),
        ({"stop_strings": ("的来", "no")}, "世国"),
        ({"stop_strings": ("的是",)}, "世国的来Lima😀"),
    ],
)
def test_the_ends_of_every_setting_give_the_right_answer(sampling, text):
    session = ChatSession(saying_model("世国的来Lima😀", "causal"), TextSampling(**sampling))
    for question in ("Q", "R"):
        assert say(session, question) == text == session.turns[-1].answer
        assert session.last.prefilled_tokens == 0 or sampling.get("max_new_tokens") != 0


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**64}, {"temperature": float("nan")}])
def test_numbers_that_no_engine_takes_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TextSampling(**wrong)


def test_a_prompt_of_exactly_the_limit_is_answered_and_one_more_token_refused():
    [extra] = small_tokenizer().encode("x")
    question = "word " * 40
    limit = len(render_turns(small_tokenizer(), "", [], question).ids)
    assert limit + 1 == len(render_turns(small_tokenizer(), "", [], question + "x").ids), extra
    session = ChatSession(saying_model("世", "prefix", context=limit), TextSampling())
    assert say(session, question) == "\ufffd"  # the first of three bytes is all there is room for
    assert session.last.finish_reason == "length"
    with pytest.raises(UserError, match=f"prompt has {limit + 1} tokens but the model takes {limit}"):
        say(session, question + "x")


def test_ten_thousand_strange_characters_are_answered_as_a_fresh_prefill_answers_them():
    strange = "Capital of Peru? " * 500 + "".join(map(chr, range(0x2500, 0x2500 + 900))) + "𓀀\0\x1b" * 200
    session = ChatSession(served_model("causal", context=20_000), SHORT)
    say(session, strange)
    assert len(strange) == 10_000 and session.turns[0].answer_ids == fresh_answer(session, [], strange)


def test_undecoded_bytes_of_a_terminal_are_one_clear_line():
    session = ChatSession(served_model("causal"), SHORT)
    with pytest.raises(UserError, match="not valid Unicode"):
        say(session, "\udce4")


@pytest.mark.long
def test_memory_is_flat_over_200_turns():
    session = ChatSession(served_model("prefix", context=256), SHORT)
    for n in range(200):
        say(session, f"Question {n}?")
        if n == 140:
            gc.collect()
            tracemalloc.start()
            tensors = tensor_bytes()
    gc.collect()
    assert tensor_bytes() <= tensors
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 80_000, "bytes of Python objects that 60 turns left behind"


def tensor_bytes() -> int:
    return sum(each.nbytes for each in gc.get_objects() if type(each) is torch.Tensor)
