"""The text of an answer against stop strings: equality with a search of the whole text, however it is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.answer_text import AnswerText
from eval.chat import TextSampling
from model.errors import UserError
from tests.serving import small_tokenizer

letters = st.text("ab\n的😀", max_size=14)
stops = st.lists(st.text("ab\n的😀", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stop_strings: list[str]) -> tuple[int, int] | None:
    """End and begin of the stop string that is complete first; of several, of the longest."""
    found = [
        (end, end - len(stop))
        for stop in stop_strings
        for end in range(len(stop), len(text) + 1)
        if text[:end].endswith(stop)
    ]
    return min(found, default=None)


def longest_beginning(text: str, stop_strings: list[str]) -> int:
    """How many characters at the end of a text may begin a stop string."""
    return max((n for s in stop_strings for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


def as_tokens(text: str, cuts: set[int]) -> list[int]:
    """Ids of a text that is encoded in parts; many of its characters are several tokens."""
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    parts = (text[a:b] for a, b in zip(edges, edges[1:], strict=False))
    return [token_id for part in parts for token_id in small_tokenizer().encode(part)]


@settings(max_examples=300, deadline=None)
@given(letters, stops, st.sets(st.integers(1, 13)))
def test_what_is_shown_ends_before_the_first_stop_string_and_waits_for_no_more_than_may_begin_one(
    text, stop_strings, cuts
):
    answer, shown, seen, is_stopped = AnswerText(small_tokenizer(), stop_strings), "", b"", False
    for token_id in as_tokens(text, cuts):
        is_stopped = answer.is_stop(token_id)
        seen += small_tokenizer().token_bytes(token_id)
        shown += answer.take()
        if is_stopped:
            break
        whole = seen.decode(errors="ignore")
        assert shown == whole[: len(whole) - longest_beginning(whole, stop_strings)]
    shown += answer.finish()
    stop = first_stop(text, stop_strings)
    assert is_stopped == bool(stop)
    assert shown == (text[: stop[1]] if stop else text)


def test_a_stop_string_ends_nothing_in_a_forced_beginning_but_may_be_completed_after_it():
    beginning = small_tokenizer().encode("ab a")
    answer = AnswerText(small_tokenizer(), ["ab"], beginning)
    assert answer.take() == "ab "
    [b] = small_tokenizer().encode("b")
    assert answer.is_stop(b) and answer.finish() == ""


def test_characters_that_no_byte_completes_are_shown_at_the_end_as_one_sign():
    answer = AnswerText(small_tokenizer(), ["x"])
    for token_id in small_tokenizer().encode("a😀")[:3]:
        assert not answer.is_stop(token_id)
    assert answer.take() == "a" and answer.finish() == "\ufffd" and answer.finish() == ""


class Counted(str):
    """A text that counts how often a part of it is taken."""

    parts = 0

    def __getitem__(self, index):
        self.parts += 1
        return super().__getitem__(index)


def test_of_a_long_stop_string_no_more_is_compared_than_the_text_is_long():
    stop = Counted("x" * 1000)
    answer = AnswerText(small_tokenizer(), [stop])
    for token_id in small_tokenizer().encode("ab"):
        assert not answer.is_stop(token_id)
    assert answer.take() == "ab" and stop.parts < 10


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        TextSampling(stop_strings=("a", ""))
