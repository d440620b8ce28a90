import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.chat_form import OURS, Message
from dataset.formats import FormatError, check_format, format_of, parse_messages
from dataset.messages import LeftOutError, RecordError, read_message, turns_of
from dataset.truncation import BREAKS
from dataset.unread_keys import unread_keys
from eval.matching import MARKED_ANSWER


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


TURNS = RECORDS["messages"]["messages"]


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


CALLS = '[{"name": "f", "arguments": {"a": null}}, {"name": "g"}]'


@pytest.mark.parametrize("name", ["arguments", "args", "parameters"])
def test_tool_calls_are_found_at_the_end_of_a_content(name):
    calls = [{"name": "f", name: {"a": 1}}, {"name": "g", name: {}}]
    content = "b\n" + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    result = {"from": "tool", "value": "<tool_response>\n3\n</tool_response>"}
    read = parse_messages({"conversations": [{"from": "gpt", "value": content}, result]})
    written = ('{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "arguments": {}}')
    assert read == [Message("assistant", "b", tool_calls=written), Message("tool", "3")]
    assert read[:1] == parse_messages({"messages": [ANSWER | {"tool_calls": calls}]})
    said = ANSWER | {"content": "Write <tool_call>{…}</tool_call> to call."}
    assert parse_messages({"messages": [said]})[0].content == said["content"]


def test_sharegpt_speakers_have_roles():
    speakers = {"system": "s", "human": "u", "function_call": CALLS, "observation": "o", "gpt": "g"}
    turns = [{"from": speaker, "value": value} for speaker, value in speakers.items()]
    messages = parse_messages({"conversations": turns})
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    calls = ('{"name": "f", "arguments": {"a": null}}', '{"name": "g", "arguments": {}}')
    assert messages[2] == Message("assistant", "", tool_calls=calls)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])  # which a busy machine fails
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
        assert all(isinstance(part, str) and part.encode() is not None for part in OURS.parts(message))


ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, r"no chat format has the keys \(none\); expected .*"),
        ({"messages": "hello"}, "messages are not JSON"),
        ({"messages": 3}, "messages are not a list"),
        ({"messages": []}, "no answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer"),
        ({"messages": [ANSWER, "hello"]}, "one of the messages is not an object"),
        (
            {"messages": [ANSWER, {"role": "judge", "content": "a"}]},
            "unknown role judge; known are system, .*",
        ),
        ({"messages": [ANSWER, {"role": ["user"], "content": "a"}]}, r"unknown role \['user'\]; known .*"),
        ({"messages": [ANSWER, {"content": "a"}]}, "no role"),
        ({"messages": [ANSWER, {"role": "user"}]}, "content is empty"),
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
        ({"conversations": [{"from": "bing\x1b", "value": "a"}]}, r"unknown role bing\\x1b; known are .*"),
        ({"conversations": [{"from": {}, "value": "a"}]}, "unknown role .*"),
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history is not a list of pairs"),
        ({"prompt": "a", "completion": None}, "no completion"),
        ({"instruction": "a", "completions": [{"response": "b"}]}, "several completions, as UltraFeedback.*"),
        ({"question": "Q", "context": "C", "answers": []}, "no answer"),
        ({"question": "Q", "context": "C", "answers": {"text": [], "answer_start": []}}, "no answer"),
        ({"question": "Q", "context": "C", "answers": 3}, "answers are neither a text nor a list"),
        ({"question": "Q", "answers": [3]}, "answer is not a string"),
        ({"question": "Q", "answers": ["A"], "is_impossible": True}, "no answer"),
        ({"question": "Q", "answers": ["A"], "is_impossible": 1}, "no answer"),
        ({"question": "Q", "answers": ["A"], "is_impossible": "YES"}, "no answer"),
    ],
)
def test_a_bad_record_has_a_reason(record, reason):
    with pytest.raises(RecordError, match=f"^{reason}$"):
        parse_messages(record)


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["system", "developer", "System"], "system"),
        (["user", "human", "USER", "prompter"], "user"),
        (["assistant", "gpt", "Assistant", "model", "bot", "ai"], "assistant"),
        (["tool", "function", "observation"], "tool"),
    ],
)
def test_roles_have_many_names_in_every_format(names, role):
    for name in names:
        for turn in ({"role": name, "content": "a"}, {"from": name, "value": "a"}):
            for key in ("messages", "conversations"):
                assert parse_messages({key: [turn, ANSWER]})[0] == Message(role, "a")


@pytest.mark.parametrize(
    "thought",
    [
        {"content": "b", "reasoning_content": "t"},
        {"content": "b", "reasoning": "t", "thinking": None},
        {"content": "b", "thinking": "t"},
        {"content": "<think>\nt\n</think>\n\nb"},
        {"content": "<think>t</think>b", "reasoning": "t"},
    ],
)
def test_a_thought_is_read_from_its_keys_and_from_the_content(thought):
    assert parse_messages({"messages": [{"role": "assistant"} | thought]}) == [Message("assistant", "b", "t")]


@pytest.mark.parametrize("answer", [{"output": "<think>t</think>b"}, {"output": "b", "thinking": "t"}])
def test_the_thought_of_a_single_answer_is_read_in_every_format(answer):
    pair = {"instruction": "a"} | answer
    assert parse_messages(pair) == [CHAT[0], Message("assistant", "b", "t")]
    assert not unread_keys(pair, "alpaca")
    said = {"prompt": "a", "chosen": "<think>t</think>b", "rejected": "c"}
    assert parse_messages(said, preference="chosen") == [CHAT[0], Message("assistant", "b", "t")]
    earlier = {"instruction": "a", "output": "b", "history": [["a", "<think>t</think>b"]]}
    assert parse_messages(earlier)[1] == Message("assistant", "b", "t")


def test_a_thought_elsewhere_is_text_and_an_empty_one_is_none():
    user, later = {"role": "user", "content": "<think>t</think>"}, "b <think>t</think>"
    read = parse_messages({"messages": [user, ANSWER | {"content": later}]})
    assert [message.content for message in read] == ["<think>t</think>", later]
    assert parse_messages({"messages": [ANSWER | {"content": "<think>\n\n</think>\n\nb"}]}) == CHAT[1:]


@pytest.mark.parametrize("nulls", [{}, {"image_url": None, "image": None}])
def test_parts_of_a_content_are_joined(nulls):
    parts = [{"type": "text", "text": "Name a "} | nulls, {"text": "river."}, "!"]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [parts[1]]}]
    assert [message.content for message in parse_messages({"messages": messages})] == [
        "Name a river.!",
        "river.",
    ]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"messages": [{"role": "user", "content": "<image>What?"}, ANSWER]}, "<image>"),
        ({"messages": [{"role": "user", "content": "What?"}, ANSWER], "images": ["a.jpg"]}, "images"),
        ({"messages": [{"role": "user", "content": "What?", "images": ["a"]}, ANSWER]}, "images"),
        ({"conversations": [{"from": "human", "value": "a\n<video>"}, ANSWER]}, "<video>"),
        ({"prompt": "What?", "completion": "b", "image": "a.png"}, "image"),
        ({"instruction": "Say it.", "input": "<image>", "output": "b"}, "<image>"),
        ({"messages": [{"role": "user", "content": "What? <img>a.png</img>"}, ANSWER]}, "<img>a.png</img>"),
        ({"prompt": "<ImageHere> What?", "completion": "b"}, "<ImageHere>"),
        ({"prompt": "What?", "completion": "b", "image_path": "a.png"}, "image_path"),
    ],
)
def test_a_record_that_needs_a_picture_is_refused(record, what):
    with pytest.raises(RecordError, match=f"^needs its {what}; only text is read$"):
        parse_messages(record)
    with pytest.raises(RecordError, match="^content part image_url; only text is read$"):
        parse_messages({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]})


def test_a_part_of_a_content_without_text_is_refused():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "content": "b"}]
    with pytest.raises(RecordError, match="^a content part without text, but type, content$"):
        parse_messages({"messages": [{"role": "user", "content": parts}, ANSWER]})


def test_html_tags_and_empty_columns_of_pictures_need_none():
    user = {"role": "user", "content": "What does the <video> tag do?", "images": []}
    assert len(parse_messages({"messages": [user, ANSWER], "images": None, "image": ""})) == 2


FLAGGED = [{"role": "user", "content": "a"}, ANSWER, {"role": "user", "content": "a"}, ANSWER]


@pytest.mark.parametrize(
    "flag", ["weight", "train", "training", "loss", "loss_weight", "trainable", "loss_mask"]
)
@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), (0.0, None)])
def test_flags_say_which_answers_carry_loss(flag, no, yes):
    turns = [dict(turn) for turn in FLAGGED]
    turns[1][flag], turns[3][flag] = no, yes
    said = [{"from": turn["role"], "value": turn["content"], flag: turn.get(flag)} for turn in turns]
    for record in (
        {"messages": turns},
        {"conversations": said},
        {"prompt": turns[:3], "completion": turns[3:]},
    ):
        assert [message.is_trained for message in parse_messages(record)] == [True, False, True, True]
    for record in ({"prompt": "a", "completion": "b"}, {"messages": FLAGGED}):
        assert not any(message.is_trained for message in parse_messages(record | {flag: no}))
        assert all(message.is_trained for message in parse_messages(record | {flag: yes}))


def test_a_list_of_flags_counts_every_message():
    system = {"role": "system", "content": ""}
    read = parse_messages({"messages": [system, *FLAGGED], "loss_mask": [0, 0, 0, 0, 1]})
    assert [message.is_trained for message in read] == [False, False, False, True]
    with pytest.raises(RecordError, match="loss_mask is not as long as the messages"):
        parse_messages({"messages": FLAGGED, "loss_mask": [1]})
    with pytest.raises(RecordError, match="loss_mask holds a null; expected 0 or 1"):
        parse_messages({"messages": FLAGGED, "loss_mask": [0, None, 0, 1]})


def test_a_list_of_flags_hides_no_other_flag_of_its_record():
    record = {"messages": FLAGGED, "loss_mask": [0, 0, 0, 1]}
    assert not any(message.is_trained for message in parse_messages(record | {"train": False}))
    with pytest.raises(RecordError, match="^weights may be a flag of loss"):
        parse_messages(record | {"weights": [0, 0]})


@pytest.mark.parametrize("value", [0.5, "false", 2, [1]])
def test_a_weight_that_is_no_flag_is_refused_by_name(value):
    with pytest.raises(RecordError, match="^weight is neither 0 nor 1"):
        parse_messages({"messages": [ANSWER | {"weight": value}]})


@pytest.mark.parametrize(
    ("record", "turn"), [({}, {"train_on_turn": False}), ({}, {"masked": 1}), ({"weights": [0, 1]}, {})]
)
def test_what_seems_a_flag_of_loss_is_refused_where_its_sense_is_unknown(record, turn):
    name = next(iter(record | turn))
    with pytest.raises(RecordError, match=f"^{name} may be a flag of loss; known are weight, train"):
        parse_messages({"messages": [FLAGGED[0], ANSWER | turn]} | record)
    assert parse_messages({"messages": FLAGGED, "train_idx": 0, "mask_name": "x", "loss_value": None})


def test_an_empty_system_message_is_left_out_and_a_later_one_stays():
    empty, later = {"role": "system", "content": " "}, {"role": "system", "content": "s"}
    roles = [m.role for m in parse_messages({"messages": [empty, *FLAGGED[:2], later, *FLAGGED[2:]]})]
    assert roles == ["user", "assistant", "system", "user", "assistant"]


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": json.dumps(RECORDS["messages"]["messages"])},
        {"messages": json.dumps(RECORDS["sharegpt"]["conversations"])},
        {"instruction": "", "input": "a", "output": "b"},
        {"instruction": "a", "input": float("nan"), "output": "b"},
        {"instruction": "a", "input": "<noinput>", "output": "b"},
        {"instruction": "a", "context": "", "response": "b", "category": "qa"},
        {"prompt": "a", "response": "b"},
        {"query": "a", "response": "b", "history": []},
        {"input": "a", "output": "b"},
        {"input": [{"role": "user", "content": "a"}], "ideal": ["b", "B"]},
        {"question": "a", "answer": "b"},
        {"question": "a", "answers": "b"},
        {"question": "a", "answers": [{"text": "b", "answer_start": 0}], "context": None},
    ],
)
def test_other_keys_and_blank_ones_say_the_same(record):
    assert parse_messages(record) == CHAT


def test_keys_that_could_be_several_pairs_are_named():
    with pytest.raises(
        RecordError, match="^could be read as input \\+ output, question \\+ answer; say which"
    ):
        parse_messages({"input": "a", "output": "b", "question": "c", "answer": "d"})


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"question": "a", "chosen": "b", "rejected": "c"},
        {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"},
        {"chosen": RECORDS["messages"]["messages"], "rejected": [], "prompt": "a"},
        {
            "prompt": [{"role": "user", "content": "a", "tools": None, "tool_calls": None}],
            "chosen": [ANSWER],
            "rejected": [],
        },
        {"conversations": [{"from": "human", "value": "a"}], "chosen": ANSWER, "rejected": ANSWER},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"prompt": "a", "completion": "b", "label": True},
        {"messages": RECORDS["messages"]["messages"], "rejected_response": "c"},
    ],
)
def test_the_good_answer_of_preference_data_is_read_where_asked_for(record):
    assert format_of(record) == "preference"
    assert parse_messages(record, preference="chosen") == CHAT
    with pytest.raises(RecordError, match="^preference data; --preference chosen trains"):
        parse_messages(record)


def test_earlier_answers_of_a_preference_and_bad_ones_carry_no_loss():
    read = parse_messages({"chosen": FLAGGED, "rejected": FLAGGED}, preference="chosen")
    assert [message.is_trained for message in read] == [True, False, True, True]
    with pytest.raises(LeftOutError, match="a bad answer"):
        parse_messages({"prompt": "a", "completion": "b", "label": False}, preference="chosen")


@pytest.mark.parametrize(("bad", "good"), [(0, 1), (0.0, 1.0), ("False", "True")])
def test_labels_of_tables_say_which_answers_are_bad(bad, good):
    pair = {"prompt": "a", "completion": "b"}
    assert parse_messages(pair | {"label": good}, preference="chosen") == CHAT
    with pytest.raises(LeftOutError, match="a bad answer"):
        parse_messages(pair | {"label": bad}, preference="chosen")
    assert format_of({"question": "a", "answers": ["b"], "label": 1}) == "reading"
    assert format_of(pair | {"label": 3}) == format_of(pair | {"label": "sports"}) == "prompt_completion"


def test_keys_that_are_not_read_are_told():
    turns = [{"role": "user", "content": "a", "name": "x", "tool_calls": None}, ANSWER]
    assert unread_keys({"messages": turns, "id": 3, "source": None}, "messages") == {"messages.name", "id"}
    assert unread_keys(RECORDS["alpaca"] | {"text": "t", "system": "s"}, "alpaca") == {"text"}
    assert unread_keys({"question": "a", "answer": "b", "answers": ["b"]}, "reading") == {"answer"}
    assert unread_keys({"messages": json.dumps(turns)}, "messages") == {"messages.name"}
    twice = {"role": "user", "content": "a", "from": "user", "value": "another"}
    assert unread_keys({"messages": [twice, ANSWER]}, "messages") == {"messages.value"}
    both = {"conversations": turns[1:], "messages": turns, "history": [["a", "b"]], "text": ""}
    assert unread_keys(both, "conversations") == {"messages", "history"}
    assert unread_keys({"messages": turns[1:], "conversations": [], "history": []}, "messages") == set()


@pytest.mark.parametrize(
    ("record", "unread"),
    [
        ({"prompt": "a", "context": "c", "input": "a"}, {"context"}),
        ({"question": "a", "context": "c", "history": [["x", "y"]]}, set()),
        ({"question": "a", "instruction": "b"}, {"question"}),
        ({"messages": TURNS[:1], "prompt": "p", "history": [["x", "y"]]}, {"prompt", "history"}),
        ({"chosen": TURNS, "prompt": "a", "messages": TURNS}, set()),
        ({"chosen": TURNS, "prompt": "another", "context": "c"}, {"prompt", "context"}),
        ({"chosen": None, "label": True, "prompt": "a", "completion": "b", "response": "c"}, {"response"}),
    ],
)
def test_keys_of_preference_data_that_are_not_read_are_told(record, unread):
    record = {"chosen": "b", "rejected": "z"} | record
    parse_messages(record, preference="chosen")
    assert unread_keys(record, "preference") == unread


def test_nothing_that_stands_beside_a_transcript_is_lost():
    asked = {"prompt": "Human: And its river?\n\nAssistant:", "chosen": "the Seine", "rejected": "the Rhine"}
    chat = parse_messages(asked | {"history": [["Capital?", "Paris"]]}, preference="chosen")
    assert [message.content for message in chat] == ["Capital?", "Paris", "And its river?", "the Seine"]
    for key, beside in (("instruction", "input"), ("question", "context")):
        record = {key: asked["prompt"], beside: "The Seine is a river."}
        with pytest.raises(RecordError, match=f"^{key} holds messages, and a text stands beside it"):
            parse_messages(record | {"chosen": "a", "rejected": "b"}, preference="chosen")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"params": {"a": 1}}, "a tool call without arguments, but params"),
        ({"arguments": {"a": 1}, "input": {"b": 2}}, "two different arguments of a tool call"),
    ],
)
def test_a_call_loses_no_arguments(call, reason):
    turn = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "id": "1"} | call]}
    with pytest.raises(RecordError, match=reason):
        parse_messages({"messages": [{"role": "user", "content": "a"}, turn]})


def test_long_white_space_is_read_in_the_time_that_other_text_takes():
    space, lines = " " * 50_000, "\n" * 50_000  # by the square of which, or its cube, it would take for ever
    for said, read in ((f"<tool_response>{space}x", None), (f"<tool_response>{space}x</tool_response>", "x")):
        assert read_message({"role": "tool", "content": said}).content == (read or said)
    assert [turn["content"] for turn in turns_of(f"Human: a{lines}b{lines}Assistant: c")] == [
        f"a{lines}b",
        "c",
    ]
    assert not [*BREAKS[1].finditer(f"a{space}b".encode())]
    assert MARKED_ANSWER.search(f"#### a{space}b")[1] == f"a{space}b"


@pytest.mark.parametrize("key", ["prompt", "completion", "messages"])
@pytest.mark.parametrize("write", [repr, lambda turns: json.dumps(turns)[:-1]])
def test_messages_whose_text_is_not_json_are_refused_and_never_trained_as_text(key, write):
    turns = [{"content": "it's so", "role": "user"}, {"content": "b", "role": "assistant"}]
    record = {"prompt": "a", "completion": "b"} if key != "messages" else {}
    with pytest.raises(RecordError, match="messages are not JSON" + f"; .* {key}" * bool(record)):
        parse_messages(record | {key: write(turns)})


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "Bob", "role": "admin"}]',
        "[{'from': 'Lima', 'to': 'Rome'}]",
        '[{"user": {"role": "a", "content": "b"}}]',
        "[{ is how a list of objects begins",
        '[{"content": 3}]',
        '{"from": "Lima", "value": 3}',
        '{"role": "admin", "content": "x"}',
        '{"role": "user"}',
    ],
)
def test_lists_in_which_nobody_speaks_are_texts(text):
    chat = parse_messages({"prompt": text, "completion": text, "history": [[text, text]]})
    assert [message.content for message in chat] == [text] * 4


def test_one_message_is_read_where_its_json_text_stands_for_a_list():
    asked, answer = (json.dumps({"role": role, "content": role[0]}) for role in ("user", "assistant"))
    for record in ({"prompt": asked, "completion": answer}, {"instruction": f" {asked}", "output": "a"}):
        chat = parse_messages(record)
        assert [(message.role, message.content) for message in chat] == [("user", "u"), ("assistant", "a")]


def test_the_input_of_an_instruction_stays_text_though_it_be_a_chat():
    text = json.dumps([{"role": "user", "content": "Hello"}])
    asked, _ = parse_messages({"instruction": "Who speaks?", "input": text, "output": "a user"})
    assert asked.content == f"Who speaks?\n\n{text}"
