import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.conversation import Message, Rendered, Renderer, render
from dataset.documents import choose_targets
from dataset.token_store import Part
from dataset.tokenizer import train_tokenizer
from dataset.truncation import measure_shortened, shorten

TOKENIZER = train_tokenizer(["a\nb"], 300)
RENDERER = Renderer(TOKENIZER)
WORDS = "abcdefghijklmnopqrstuvwxyz"  # one token a letter

system = st.just([]) | st.builds(lambda n: [Message("system", WORDS[:n])], st.integers(1, 3))
prompts = st.lists(
    st.builds(Message, st.sampled_from(["user", "tool"]), st.text(WORDS, min_size=1, max_size=9))
)
answers = st.builds(
    lambda text, is_trained: Message("assistant", text, is_trained=is_trained),
    st.text(WORDS, min_size=1, max_size=9),
    st.booleans(),
)
rounds = st.lists(
    st.tuples(prompts.filter(bool), answers).map(lambda r: [*r[0], r[1]]), min_size=1, max_size=4
)


def flat(messages_of_rounds):
    return [message for messages in messages_of_rounds for message in messages]


def text(rendered):
    return TOKENIZER.decode(rendered.ids)


def short(messages, limit):
    rendered, num_too_long = shorten(render(messages, TOKENIZER), limit, RENDERER)
    return rendered and text(rendered), num_too_long


CHAT = [
    Message("system", "kp"),  # 7 tokens with header and footer
    Message("user", "ab"),  # 7
    Message("assistant", "cd"),  # header 3, answer 3, newline 1
    Message("user", "efg"),  # 8
    Message("assistant", "h"),  # header 3, answer 2, newline 1
]
SYSTEM = "<|im_start|>system\nkp<|im_end|>\n"


def test_the_last_newline_goes_first_then_the_oldest_round():
    whole = render(CHAT, TOKENIZER)
    assert len(whole) == 7 + 7 + 6 + 1 + 8 + 5 + 1
    assert short(CHAT, 34) == (text(whole)[:-1], 0)
    last_round = "<|im_start|>user\nefg<|im_end|>\n<|im_start|>assistant\nh<|im_end|>"
    assert short(CHAT, 33) == short(CHAT, 20) == (SYSTEM + last_round, 0)


def test_content_of_the_last_prompt_goes_but_headers_stay():
    assert short(CHAT, 19)[0] == SYSTEM + "<|im_start|>user\neg<|im_end|>\n<|im_start|>assistant\nh<|im_end|>"
    assert short(CHAT, 17)[0] == SYSTEM + "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nh<|im_end|>"
    assert short(CHAT, 16) == (None, 2)


@pytest.mark.parametrize("prompt", ["What is it? " + "x " * 99, "x " * 99 + "What is it?"])
def test_a_question_stays_wherever_it_stands(prompt):
    messages = [Message("user", prompt), Message("assistant", "e")]
    assert "What is it?" in short(messages, 60)[0]


def test_content_goes_from_the_middle_of_the_messages_of_a_prompt():
    messages = [Message("user", "abcd"), Message("tool", "efgh"), Message("assistant", "i")]
    shown, _ = short(messages, len(render(messages, TOKENIZER)) - 1 - 5)
    assert shown.startswith(
        "<|im_start|>user\na<|im_end|>\n<|im_start|>tool\ngh<|im_end|>\n<|im_start|>assis"
    )


def test_an_answer_that_fits_nowhere_leaves_the_ones_before_it():
    messages = [*CHAT[1:3], Message("user", "x"), Message("assistant", WORDS)]
    expected = "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\ncd<|im_end|>"
    assert short(messages, 13) == (expected, 1)


@settings(max_examples=40)
@given(system, rounds, st.integers(8, 80))
def test_what_is_left_is_the_rendering_of_fewer_messages(opening, turns, limit):
    """Down to the roles and starts, wherever whole rounds were enough."""
    whole = render(opening + flat(turns), TOKENIZER)
    candidates = [
        (render(opening + flat(turns[first:last]), TOKENIZER), len(turns) - last)
        for last in range(len(turns), 0, -1)
        if turns[last - 1][-1].is_trained
        for first in range(last)
    ]
    rendered, num_too_long = shorten(whole, limit, RENDERER)
    if rendered is None:
        assert num_too_long == len(turns)
        assert all(len(candidate) - 1 > limit for candidate, _ in candidates)
        return
    assert len(rendered) <= limit
    fitting = [
        candidate
        for candidate, dropped in candidates
        if dropped == num_too_long and len(candidate) - 1 <= limit
    ]
    if fitting:
        assert rendered.ids.tolist() == fitting[0].ids[:-1].tolist()
        assert rendered.codes.tolist() == fitting[0].codes[:-1].tolist()
    else:
        last_round = turns[-1 - num_too_long]
        uncut = render(opening + last_round, TOKENIZER)
        assert len(rendered) == limit
        assert rendered.targets.sum() == uncut.targets.sum()
        assert np.isin(rendered.ids, (TOKENIZER.im_start_id, TOKENIZER.im_end_id)).sum() == 2 * len(
            opening + last_round
        )


@settings(max_examples=60)
@given(
    st.lists(st.tuples(system, rounds).map(lambda chat: chat[0] + flat(chat[1])), min_size=1, max_size=4),
    st.integers(8, 60),
    st.sampled_from(["answers", "last", "all"]),
    st.booleans(),
)
def test_measuring_many_agrees_with_shortening_each(chats, limit, supervise, ends_on_an_answer):
    documents = [render(messages, TOKENIZER) for messages in chats]
    if ends_on_an_answer:
        documents = [Rendered(document.ids[:-1], document.codes[:-1]) for document in documents]
    part = Part(
        np.concatenate([document.ids for document in documents]),
        np.concatenate([document.codes for document in documents]),
        np.array([len(document) for document in documents], dtype=np.uint32),
    )
    for document, *measured in zip(
        documents, *measure_shortened(part, limit, RENDERER, supervise), strict=True
    ):
        rendered, dropped = shorten(document, limit, RENDERER)
        targets = choose_targets(rendered, supervise).sum() if rendered else 0
        assert measured == [len(rendered) if rendered else 0, targets, dropped]
