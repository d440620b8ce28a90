import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.conversation import Message
from dataset.formats import FormatError, RecordError, check_format, format_of, parse_messages


def test_reading_records_ask_last_or_first_and_train_on_the_first_answer():
    record = {"context": "C", "question": "Q", "answers": ["A", "B"]}
    assert parse_messages(record) == [Message("user", "C\n\nQ"), Message("assistant", "A")]
    assert parse_messages(record, "first") == [Message("user", "Q\n\nC"), Message("assistant", "A")]


CHAT = [Message("user", "a"), Message("assistant", "b")]
RECORDS = {
    "conversations": {
        "conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    },
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "reading": {"context": "a", "question": "c", "answers": ["b"]},
}


@pytest.mark.parametrize("name", RECORDS)
def test_each_format_is_known_by_its_keys_and_says_the_same(name):
    assert format_of(RECORDS[name]) == name
    expected = [Message("user", "a\n\nc"), CHAT[1]] if name == "reading" else CHAT
    assert parse_messages(RECORDS[name]) == parse_messages(RECORDS[name], chat_format=name) == expected
    check_format(RECORDS[name], name)
    for other in RECORDS.keys() - {name}:
        with pytest.raises(FormatError, match=f"in the format {name} in a file of {other}"):
            check_format(RECORDS[name], other)
    check_format({"conversations": 3}, name)  # a bad record is not one of another format


@pytest.mark.parametrize("nothing", [None, []])
def test_an_empty_column_beside_the_messages_hides_none(nothing):
    assert parse_messages(RECORDS["messages"] | {"conversations": nothing}) == CHAT


def test_answers_may_be_a_column_as_squad_has_them():
    record = {"context": "a", "question": "c", "answers": {"text": ["b", "B"], "answer_start": [0, 0]}}
    assert parse_messages(record) == parse_messages(record | {"answers": ["b", "B"]})


def test_an_alpaca_input_follows_the_instruction_and_history_comes_first():
    record = {"instruction": "a", "input": "x", "output": "b", "system": "s", "history": [["c", "d"]]}
    assert parse_messages(record) == [
        Message("system", "s"),
        Message("user", "c"),
        Message("assistant", "d"),
        Message("user", "a\n\nx"),
        Message("assistant", "b"),
    ]


def test_prompts_and_completions_may_be_messages():
    prompt, completion = RECORDS["messages"]["messages"]
    assert parse_messages({"prompt": [prompt], "completion": [completion]}) == CHAT


def test_tools_calls_and_thoughts_are_read_as_minimind_writes_them():
    tools = [{"type": "function", "function": {"name": "天气"}}]
    calls = [{"name": "天气", "arguments": {"city": "巴黎"}}]
    turns = [
        {"role": "system", "content": "", "tools": json.dumps(tools)},
        {"role": "user", "content": "a", "reasoning_content": "", "tools": "", "tool_calls": ""},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": json.dumps(calls)},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "b", "reasoning_content": None, "tool_calls": None},
    ]
    expected = [
        Message("system", "", tools=('{"type": "function", "function": {"name": "天气"}}',)),
        Message("user", "a"),
        Message("assistant", "", "hm", ('{"name": "天气", "arguments": {"city": "巴黎"}}',)),
        Message("tool", "sunny"),
        Message("assistant", "b"),
    ]
    assert parse_messages({"conversations": turns}) == expected
    del turns[0]
    called = {"type": "function", "function": {"name": "天气", "arguments": '{"city": "巴黎"}'}}
    turns[1] = turns[1] | {"tool_calls": [called]}
    assert parse_messages({"messages": turns, "tools": tools}) == expected


def test_sharegpt_speakers_have_roles():
    speakers = {"system": "s", "human": "u", "function_call": '{"name": "f"}', "observation": "o", "gpt": "g"}
    turns = [{"from": speaker, "value": value} for speaker, value in speakers.items()]
    messages = parse_messages({"conversations": turns})
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2] == Message("assistant", "", tool_calls=('{"name": "f"}',))


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.data())
def test_a_wrong_value_at_any_place_gives_messages_or_a_reason(data):
    full = {
        "content": "a",
        "value": "a",
        "reasoning_content": "t",
        "tools": "[]",
        "tool_calls": '[{"name": "f"}]',
    }
    turn = full | {"role": "assistant", "from": "gpt"}
    record = data.draw(st.sampled_from(list(RECORDS.values()))) | {"tools": [], "system": "s", "history": []}
    for key in data.draw(st.sets(st.sampled_from(sorted(record)), max_size=2)):
        record[key] = data.draw(junk)
    for key in ("conversations", "messages", "prompt"):
        if key in record and data.draw(st.booleans()):
            record[key] = [
                turn | {k: data.draw(junk)} for k in data.draw(st.lists(st.sampled_from(sorted(turn))))
            ]
    try:
        messages = parse_messages(record, chat_format=data.draw(st.sampled_from([None, *RECORDS])))
    except RecordError:
        return
    for message in messages:
        assert all(isinstance(part, str) and part.encode() is not None for part in message.parts())


ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no chat format has these keys; expected .*"),
        ({"messages": "hello"}, "messages are not a list"),
        ({"messages": []}, "no answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer"),
        ({"messages": [ANSWER, "hello"]}, "one of the messages is not an object"),
        ({"messages": [ANSWER, {"role": "judge", "content": "a"}]}, "unknown role"),
        ({"messages": [ANSWER, {"role": ["user"], "content": "a"}]}, "unknown role"),
        ({"messages": [ANSWER, {"role": "user"}]}, "no content"),
        ({"messages": [ANSWER, {"role": "user", "content": 3}]}, "content is not a string"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "content is empty"),
        ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "content is not valid Unicode"),
        ({"messages": [ANSWER | {"tool_calls": "["}]}, "tool_calls are not JSON"),
        ({"messages": [ANSWER | {"tool_calls": {"name": "f"}}]}, "tool_calls are not a list"),
        ({"messages": [ANSWER | {"tool_calls": [{"function": 3}]}]}, "a tool call has no name"),
        ({"messages": [ANSWER | {"reasoning_content": 3}]}, "reasoning_content is not a string"),
        (
            {"messages": [ANSWER, {"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]},
            "a thought .*",
        ),
        ({"messages": [ANSWER], "tools": ["f"]}, "one of the tools is not an object"),
        ({"conversations": [{"from": "judge", "value": "a"}]}, "unknown role"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "unknown role"),
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history is not a list of pairs"),
        ({"prompt": "a", "completion": None}, "no completion"),
        ({"question": "Q", "context": "C", "answers": []}, "no answer"),
        ({"question": "Q", "context": "C", "answers": {"text": [], "answer_start": []}}, "no answer"),
        ({"question": "Q", "context": "C", "answers": "A"}, "answers are not a list"),
        ({"question": "Q", "answers": ["A"]}, "no context"),
    ],
)
def test_a_bad_record_has_a_reason(record, reason):
    with pytest.raises(RecordError, match=f"^{reason}$"):
        parse_messages(record)
