"""The law that no text of a record goes in silence: it is in the messages, or its key is told."""

import json
import re
from random import Random

import pytest

from dataset.formats import LISTS, PAIR_KEYS, format_of, parse_messages
from dataset.messages import THOUGHTS, RecordError
from dataset.preferences import BAD, parse_pair, unread_of_bad
from dataset.records import expand
from dataset.unread_keys import unread_keys
from eval.questions import parse_question, unread_of

KEYS = [
    *LISTS,
    *PAIR_KEYS,
    *THOUGHTS,
    "chosen",
    "label",
    "context",
    "system",
    "system_prompt",
    "tools",
    "history",
    "text",
]
OF_PAIRS = ["prompt", "question", "chosen", "rejected", "rejected_response", "system", "margin"]
OF_QUESTIONS = [
    *KEYS,
    "choices",
    "options",
    "answerKey",
    "target",
    "problem",
    "passage",
    "article",
    "A",
    "B",
    "split",
]
TEXT = re.compile(r"text\d+")


class Drawn:
    """Draws records in which every text is another."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.random, self.count = keys, Random(0), 0

    def text(self) -> str:
        self.count += 1
        return f"text{self.count}"

    def turn(self, role: str) -> dict:
        turn = (
            {"role": role, "content": self.text()}
            if self.random.random() < 0.7
            else {"from": role, "value": self.text()}
        )
        more = {
            "value": self.text(),
            "content": [{"type": "text", "text": self.text(), "note": self.text()}],
            "name": self.text(),
        }
        if self.keys is KEYS and role == "assistant":
            called = {"name": self.text(), "arguments": {"x": self.text()}, "because": self.text()}
            more["tool_calls"] = [
                {"id": "1", "function": called} | self.random.choice([{}, {"hint": self.text()}])
            ]
        return {key: more[key] for key in self.random.sample([*more], 1) if self.random.random() < 0.3} | turn

    def turns(self) -> list[dict]:
        return [self.turn(("user", "assistant")[n % 2]) for n in range(self.random.randint(1, 4))]

    def value(self, key: str):
        kinds = {
            "label": lambda: True,
            "tools": lambda: [{"name": self.text()}],
            "history": lambda: [
                [self.text(), self.random.choice([self.text, lambda: [self.turn("assistant")]])()]
            ],
            "answers": lambda: {"text": [self.text()], "why": self.text()},
            "choices": lambda: [{"text": self.text(), "label": label, "why": self.text()} for label in "AB"],
            "options": lambda: [self.text(), self.text()],
        }
        if key in LISTS:
            return self.turns()
        if key in ("chosen", *BAD) and self.random.random() < 0.4:
            return [self.turn("assistant")]
        if key in ("prompt", "completion", "chosen", "input", "question") and self.random.random() < 0.4:
            return self.turns()
        return kinds.get(key, self.text)()

    def written(self, value):
        """Some lists of messages as their text."""
        are_turns = isinstance(value, list) and isinstance(value[0], dict) and {"role", "from"} & {*value[0]}
        return json.dumps(value) if are_turns and self.random.random() < 0.3 else value

    def record(self) -> dict:
        return {
            key: self.written(self.value(key))
            for key in self.random.sample(self.keys, self.random.randint(2, 5))
        }


def texts(value) -> set[str]:
    return {*TEXT.findall(json.dumps(value, default=vars))}


def untold(record: dict, said: set[str], told: set[str]) -> set[str]:
    """The texts of a record that are not said and stand under no key that is told."""
    lost = set()
    for key in record.keys() - told:
        value = json.loads(record[key]) if str(record[key]).startswith('[{"') else record[key]
        answer = value[-1:] if f"the last answer of {key}" in told else []
        lost |= texts(value) - said - texts(list(held(value, key, told))) - texts(answer)
    return lost


def held(value, place: str, told: set[str]):
    """What stands inside of a value at places that are told, such as messages.content.note."""
    for each in value if isinstance(value, list) else ():
        yield from held(each, place, told)
    for key, each in value.items() if isinstance(value, dict) else ():
        yield from [each] if f"{place}.{key}" in told else held(each, f"{place}.{key}", told)


def read_chat(record: dict) -> tuple[set[str], set[str]]:
    return texts(parse_messages(record, preference="chosen")), unread_keys(record, format_of(record))


def read_pair(record: dict) -> tuple[set[str], set[str]]:
    said = texts(parse_pair(record))
    return said, unread_keys(record, format_of(record)) | unread_of_bad(record)


def read_question(record: dict) -> tuple[set[str], set[str]]:
    return texts(parse_question(record, "name", "split")), unread_of(record)


@pytest.mark.parametrize(
    ("read", "keys", "draws"),
    [(read_chat, KEYS, 8000), (read_pair, OF_PAIRS, 1500), (read_question, OF_QUESTIONS, 8000)],
)
def test_every_text_of_a_record_is_read_or_its_key_is_told(read, keys, draws):
    drawn, number = Drawn(keys), 0
    for record in (drawn.record() for _ in range(draws)):
        try:
            said, told = read(record)
        except RecordError:
            continue
        number += 1
        assert not untold(record, said, told), record
    assert number > draws / 10


def test_what_a_call_that_is_text_holds_beside_its_arguments_is_told():
    call = json.dumps({"name": "f", "arguments": {}, "because": "it rains"})
    answer = {"role": "assistant", "content": f"so<tool_call>{call}</tool_call>"}
    turns = [{"role": "user", "content": "a"}, answer, {"from": "function_call", "value": call}]
    assert unread_keys({"messages": turns}, "messages") == {
        "messages.content.because",
        "messages.value.because",
    }


NOTED = '<tool_call>{"name": "f", "arguments": {}, "note": "x"}</tool_call>'


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"prompt": "q", "completion": NOTED}, {"completion.note"}),
        ({"prompt": NOTED, "completion": "a"}, set()),
        ({"prompt": f"\n\nHuman: q\n\nAssistant: {NOTED}\n\nHuman: p", "completion": "a"}, set()),
        ({"instruction": "q", "output": NOTED}, {"output.note"}),
        ({"question": "q", "answers": {"text": [NOTED], "answer_start": [0]}}, {"answers.note"}),
        ({"prompt": "q", "completion": "a", "history": [["b", NOTED]]}, {"history.note"}),
        (
            {"messages": [{"from": "user", "value": "q"}, {"from": "gpt", "value": ["a", {"text": NOTED}]}]},
            {"messages.value.note"},
        ),
    ],
)
def test_what_a_call_holds_beside_its_arguments_is_told_wherever_it_is_written(record, told):
    assert unread_keys(record, format_of(record)) - {"answers.answer_start"} == told
    said = [message.content for message in parse_messages(record)]
    assert any(NOTED in text for text in said) != bool(told)


def test_what_calls_of_a_pair_hold_beside_their_arguments_is_told():
    pair = {"chosen": f"a {NOTED}", "rejected": f"b {NOTED}"}
    told = {"chosen.note", "rejected.note"}
    assert read_pair({"prompt": "q"} | pair)[1] == told
    asked = {key: f"\n\nHuman: q\n\nAssistant: {answer}" for key, answer in pair.items()}
    assert read_pair(asked)[1] == told


def test_the_text_of_a_message_whose_content_is_nan_stands_under_value():
    turn = {"role": "tool", "content": float("nan"), "value": "here"}
    messages = [{"role": "user", "content": "q"}, turn, {"role": "assistant", "content": "a"}]
    assert parse_messages({"messages": messages})[1].content == "here"


def test_a_text_inside_of_a_text_of_its_own_is_told_and_never_takes_its_place():
    def read(value: dict) -> list[tuple[dict, tuple[str, ...]]]:
        return [(inner, unread) for inner, unread in expand({"data": [value]})]

    asked = {"question": "q", "query_text": "other", "answers": ["a"]}
    assert read({"context": "outer", "qas": [asked | {"context": "inner"}]}) == [
        ({"context": "inner", **asked}, ("context",))
    ]
    [(inner, unread)] = read({"context": "outer", "context_text": "more", "qas": [asked]})
    assert inner == {"context": "outer", "context_text": "more", **asked} and not unread


@pytest.mark.parametrize(
    ("prompt", "answer"), [("prompt", "completion"), ("question", "answer"), ("query", "response")]
)
def test_what_stands_in_and_beside_messages_that_are_text_is_told_as_of_a_list(prompt, answer):
    turns = [{"content": "q", "role": "user"}], [{"content": "a", "role": "assistant", "note": "x"}]
    record = dict(zip((prompt, answer), map(json.dumps, turns), strict=True)) | {"reasoning": "y"}
    assert [message.content for message in parse_messages(record)] == ["q", "a"]
    assert unread_keys(record, format_of(record)) == {"reasoning", f"{answer}.note"}


def test_what_stands_in_the_texts_of_a_pair_is_told():
    noted = [{"content": text, "role": "assistant", text: "x"} for text in ("good", "bad")]
    record = {"prompt": "q", "chosen": json.dumps(noted[:1]), "rejected": json.dumps(noted[1:])}
    assert read_pair(record) == (set(), {"chosen.good", "rejected.bad"})


@pytest.mark.parametrize("yes", [1, True, 1.0])
def test_a_flag_that_asks_for_loss_outside_answers_is_told(yes):
    asked, said = {"role": "user", "content": "q"}, {"from": "gpt", "value": "a", "train": yes}
    for flags, told in (({"train": yes}, {"messages.train outside answers"}), ({"train": 0}, set())):
        assert unread_keys({"messages": [asked | flags, said]}, "messages") == told
    for flags, told in (([yes, 1], {"loss_mask outside answers"}), ([0, yes], set())):
        assert unread_keys({"messages": [asked, said], "loss_mask": flags}, "messages") == told
    sides = {"prompt": "p", "chosen": [said], "rejected": [asked | {"weight": yes}, said]}
    assert unread_of_bad(sides) == {"rejected.weight outside answers"}


def test_a_number_that_is_equal_to_one_that_is_read_is_told_too():
    record = {"prompt": "p", "completion": "c", "weight": 1, "stars": 1, "good": True, "again": "p"}
    assert unread_keys(record, "prompt_completion") == {"stars", "good"}


def test_what_a_question_has_beside_its_answer_and_its_kind_is_told():
    answer = {"role": "assistant", "content": "a", "reasoning_content": "as it is"}
    assert unread_of({"messages": [{"role": "user", "content": "q"}, answer]}) == {
        "messages.reasoning_content"
    }
    asked = {"question": "q", "answer": "a", "task": "sum"}
    assert unread_of(asked) == set() and unread_of(asked | {"kind": "math"}) == {"task"}


@pytest.mark.parametrize(("label", "unread"), [("harmless", {"label"}), (True, set()), ("true", set())])
def test_a_label_that_is_not_understood_is_named(label, unread):
    record = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "label": label}
    assert unread_keys(record, "preference") == unread
