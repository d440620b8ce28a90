import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from dataset.chat_form import TRAINING_TEMPLATE
from dataset.conversation import ROLES, Message, render
from dataset.documents import choose_targets
from dataset.tokenizer import SPECIAL_TOKENS, TEMPLATE_FILES, train_tokenizer

TOKENIZER = train_tokenizer(["Hello\nHi\nBye\nBe"] * 9, 340)
CHAT = [
    Message("user", "Hello"),
    Message("assistant", "Hi"),
    Message("user", "Bye"),
    Message("assistant", "Bye"),
]

chats = st.lists(st.builds(Message, st.sampled_from(ROLES), st.text(min_size=1, max_size=6)), max_size=6)


def rows_of(rendered):
    """Return a line per token: text, role, target and start."""
    return [
        f"{TOKENIZER.token_text(i)} {ROLES[role]}{' target' * target}{' start' * start}"
        for i, role, target, start in zip(
            rendered.ids.tolist(),
            rendered.roles,
            rendered.targets.tolist(),
            rendered.starts.tolist(),
            strict=True,
        )
    ]


def test_a_two_turn_chat_is_rendered_token_by_token():
    assert rows_of(render(CHAT, TOKENIZER)) == [
        "<|im_start|> user start",
        "user user",
        "\\n user",
        "Hello user",
        "<|im_end|> user",
        "\\n user",
        "<|im_start|> user",
        "assistant user",
        "\\n user",
        "Hi assistant target",
        "<|im_end|> assistant target",
        "\\n user start",
        "<|im_start|> user",
        "user user",
        "\\n user",
        "Bye user",
        "<|im_end|> user",
        "\\n user",
        "<|im_start|> user",
        "assistant user",
        "\\n user",
        "Bye assistant target",
        "<|im_end|> assistant target",
        "\\n assistant",
    ]


def chosen_tokens(rendered, supervise):
    return choose_targets(rendered.codes, np.array([len(rendered)]), supervise).nonzero()[0].tolist()


def test_an_answer_that_is_not_trained_is_a_target_without_loss():
    quiet = [replace(CHAT[1], is_trained=False) if n == 1 else message for n, message in enumerate(CHAT)]
    whole, rendered = render(CHAT, TOKENIZER), render(quiet, TOKENIZER)
    assert rows_of(rendered) == rows_of(whole)  # masks and truncation find the same answers
    assert [i for i in range(24) if whole.trained[i]] == [9, 10, 21, 22]
    assert [i for i in range(24) if rendered.trained[i]] == [21, 22]
    chosen = {how: chosen_tokens(rendered, how) for how in ("answers", "last", "all")}
    assert chosen == {
        "answers": [21, 22],
        "last": [21, 22],
        "all": [i for i in range(1, 24) if i not in (9, 10)],
    }
    quiet = [replace(message, is_trained=n == 1) for n, message in enumerate(CHAT)]
    assert chosen_tokens(render(quiet, TOKENIZER), "last") == [9, 10]


def test_a_question_that_is_not_to_be_learnt_is_no_target_of_all():
    quiet = [replace(message, is_trained=n != 2) for n, message in enumerate(CHAT)]
    whole, rendered = render(CHAT, TOKENIZER), render(quiet, TOKENIZER)
    assert rows_of(rendered) == rows_of(whole) and (rendered.trained == whole.trained).all()
    silent = {*chosen_tokens(whole, "all")} - {*chosen_tokens(rendered, "all")}
    assert TOKENIZER.decode(whole.ids[sorted(silent)]) == f"{CHAT[2].content}<|im_end|>\n"  # not the header


def test_a_system_and_a_tool_message_begin_where_they_start():
    messages = [
        Message("system", "Be"),
        Message("assistant", "Hi"),
        Message("tool", "Bye"),
        Message("user", "Bye"),
    ]
    rendered = render(messages, TOKENIZER)
    starts = rendered.starts.nonzero()[0].tolist()
    assert [rows_of(rendered)[i] for i in starts] == [
        "<|im_start|> system start",
        "\\n tool start",
        "<|im_start|> user start",
    ]
    assert {rows_of(rendered)[i].split()[1] for i in range(starts[1])} == {"system", "assistant"}


def test_an_opening_answer_and_a_second_answer_have_headers_of_their_own():
    assert rows_of(render([Message("assistant", "Hi"), Message("assistant", "Bye")], TOKENIZER)) == [
        "<|im_start|> assistant start",
        "assistant assistant",
        "\\n assistant",
        "Hi assistant target",
        "<|im_end|> assistant target",
        "\\n assistant start",
        "<|im_start|> assistant",
        "assistant assistant",
        "\\n assistant",
        "Bye assistant target",
        "<|im_end|> assistant target",
        "\\n assistant",
    ]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def as_users_write(message):
    calls = [{"type": "function", "function": json.loads(call)} for call in message.tool_calls]
    thought = {"reasoning_content": message.thought} if message.thought else {}
    return {"role": message.role, "content": message.content, "tool_calls": calls or None} | thought


def assert_equals_template(messages, theirs):
    rendered = render(messages, TOKENIZER)
    plain = [as_users_write(message) for message in messages]
    tools = [json.loads(tool) for tool in messages[0].tools] or None
    ways = {"tools": tools, "return_dict": True, "return_assistant_tokens_mask": True}
    ways |= {"chat_template": TRAINING_TEMPLATE}
    expected = theirs.apply_chat_template(plain, **ways)
    assert rendered.ids.tolist() == expected["input_ids"]
    assert rendered.targets.astype(int).tolist() == expected["assistant_masks"]
    prompt = render(messages, TOKENIZER, generation_prompt=True) if messages[-1].role != "assistant" else None
    if prompt:
        assert (
            prompt.ids.tolist()
            == theirs.apply_chat_template(plain, tools=tools, add_generation_prompt=True)["input_ids"]
        )


def test_rendering_equals_the_template_on_clean_text(theirs):
    messages = [Message("system", "Be brief  "), *CHAT, Message("tool", "法国 😀\n"), Message("user", "?")]
    assert_equals_template(messages, theirs)
    assert_equals_template(CHAT, theirs)


TOOLS = ('{"name": "天气", "parameters": {"city": "string"}}', '{"name": "time"}')
CALLS = ('{"name": "天气", "arguments": {"city": "巴黎"}}', '{"name": "time", "arguments": {}}')


@pytest.mark.parametrize("content", ["", "Be brief."])
def test_rendering_equals_the_template_with_tools_calls_and_thoughts(theirs, content):
    messages = [
        Message("system", content, tools=TOOLS),
        Message("user", "天气?"),
        Message("assistant", content, "I should\nlook.", CALLS),
        Message("tool", "sunny"),
        Message("assistant", content, tool_calls=CALLS),
        Message("tool", ""),
        Message("assistant", "晴", "done"),
    ]
    assert_equals_template(messages, theirs)


def test_tags_of_the_renderer_are_tokens_and_those_of_a_text_are_not():
    call = '{"name": "<tool_call>", "arguments": {}}'
    rendered = render([Message("assistant", "<think>", "</think>", (call,))], TOKENIZER)
    tags = [TOKENIZER.token_text(i) for i in rendered.ids.tolist() if i < len(SPECIAL_TOKENS)]
    assert tags == ["<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"]
    expected = f"<think>\n</think>\n</think>\n\n<think>\n<tool_call>\n{call}\n</tool_call><|im_end|>\n"
    assert TOKENIZER.decode(rendered.ids) == "<|im_start|>assistant\n" + expected


def test_a_question_that_stands_twice_is_rendered_as_the_template_writes_it(tmp_path):
    from transformers import AutoTokenizer

    twice = train_tokenizer(["Hello\nHi\nBye\nBe"] * 9, 340, prompt_copies=2)
    twice.save(tmp_path)
    messages = [Message("system", "Be"), *CHAT, Message("tool", "Hi"), Message("user", " 法国?\n ")]
    rendered = render(messages, twice, generation_prompt=True)
    assert TOKENIZER.decode(rendered.ids) == (
        "<|im_start|>system\nBe<|im_end|>\n<|im_start|>user\nHello\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye\nBye<|im_end|>\n"
        "<|im_start|>assistant\nBye<|im_end|>\n<|im_start|>tool\nHi<|im_end|>\n"
        "<|im_start|>user\n 法国?\n \n 法国?\n <|im_end|>\n<|im_start|>assistant\n"
    )
    theirs, plain = AutoTokenizer.from_pretrained(tmp_path), [as_users_write(each) for each in messages]
    ways = {"return_dict": True, "return_assistant_tokens_mask": True}
    for name in TEMPLATE_FILES:
        template = (tmp_path / name).read_text()
        ids = theirs.apply_chat_template(plain, chat_template=template, add_generation_prompt=True)
        assert ids["input_ids"] == rendered.ids.tolist()
    marked = theirs.apply_chat_template(plain[:5], chat_template=template, **ways)
    assert render(messages[:5], twice).targets.astype(int).tolist() == marked["assistant_masks"]


@settings(max_examples=25)
@given(chats, st.data())
def test_a_conversation_begins_with_the_one_before_its_next_message(messages, data):
    n = data.draw(st.integers(0, len(messages)))
    whole, part = render(messages, TOKENIZER), render(messages[:n], TOKENIZER)
    assert whole.ids[: len(part)].tolist() == part.ids.tolist()
    assert whole.targets[: len(part)].tolist() == part.targets.tolist()


@settings(max_examples=25)
@given(chats.filter(lambda messages: "assistant" in [message.role for message in messages]))
def test_a_prompt_is_what_stands_before_the_answer(messages):
    n = [message.role for message in messages].index("assistant")
    whole, prompt = render(messages, TOKENIZER), render(messages[:n], TOKENIZER, generation_prompt=True)
    assert whole.ids[: len(prompt)].tolist() == prompt.ids.tolist()
    assert whole.codes[: len(prompt)].tolist() == prompt.codes.tolist()
    assert whole.targets[: len(prompt) + 1].tolist() == [False] * len(prompt) + [True]


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_in_content_forge_no_boundary(special):
    forged = [Message("user", f"x{special}\n"), Message("assistant", f"{special}y{special}")]
    rendered = render(forged, TOKENIZER)
    added = [i for i in rendered.ids.tolist() if i < len(SPECIAL_TOKENS)]
    assert added == [TOKENIZER.special("<|im_start|>"), TOKENIZER.im_end_id] * 2
    expected = (
        f"<|im_start|>user\nx{special}\n<|im_end|>\n<|im_start|>assistant\n{special}y{special}<|im_end|>\n"
    )
    assert TOKENIZER.decode(rendered.ids) == expected


def test_plain_jinja2_opens_the_saved_template_which_says_what_the_marked_one_says(tmp_path, theirs):
    TOKENIZER.save(tmp_path)
    plain, marked = ((tmp_path / name).read_text() for name in TEMPLATE_FILES)
    call = {"name": "天气", "arguments": "{}"}
    messages = [
        {"role": "system", "content": "Be"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "reasoning_content": "Hi", "content": "", "tool_calls": [call]},
    ]
    ways = {"tools": [{"name": "天气"}], "add_generation_prompt": True}
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(plain)
    text = template.render(messages=messages, **ways).replace(json.dumps("天气"), '"天气"')
    assert text == theirs.apply_chat_template(messages, chat_template=marked, tokenize=False, **ways)
    assert "generation %}" in marked and "generation %}" not in plain
