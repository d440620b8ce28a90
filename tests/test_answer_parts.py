"""Answers taken apart while they come: thought, content and calls, however the tags are cut."""

import json

from eval.answer_parts import parts_of

CALL = '{"name": "weather", "arguments": {"city": "Lima"}}'
ANSWERS = {  # text, then thought, content and calls
    "Lima.\n": ("", "Lima.\n", 0),
    "<think>\nPeru, so\n\n</think>\n\nLima": ("Peru, so", "Lima", 0),
    "<think>\n\n</think>\n\nLima": ("", "Lima", 0),
    "<think>on and on": ("on and on", "", 0),
    f"<tool_call>\n{CALL}\n</tool_call>": ("", "", 1),
    f"<think>\na\n</think>\n\nLook: \n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>": (
        "a",
        "Look:",
        2,
    ),
    "1 < 2 <thin <tool_call> no call": ("", "1 < 2 <thin <tool_call> no call", 0),
    'a<tool_call>{"name": "f", "arguments": {}, "note": "x"}</tool_call>': (
        "",
        'a<tool_call>{"name": "f", "arguments": {}, "note": "x"}</tool_call>',
        0,
    ),
    "a <tool_call>\n{broken\n</tool_call>": ("", "a <tool_call>\n{broken\n</tool_call>", 0),
}


def test_a_whole_answer_is_taken_apart_as_records_of_training_are():
    for text, (thought, content, calls) in ANSWERS.items():
        said = parts_of(text)
        assert (said.thought, said.content, len(said.tool_calls)) == (thought, content, calls), text
        assert all(json.loads(call) == json.loads(CALL) for call in said.tool_calls)


def test_what_was_said_of_an_answer_is_never_taken_back():
    for text in ANSWERS:
        whole, former = parts_of(text), ("", "")
        for length in range(len(text) + 1):
            said = parts_of(text[:length], is_whole=False)
            assert said.thought.startswith(former[0]) and said.content.startswith(former[1])
            assert not said.tool_calls
            former = said.thought, said.content
        assert whole.thought.startswith(former[0]) and whole.content.startswith(former[1]), text
