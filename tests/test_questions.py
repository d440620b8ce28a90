"""Question files as users have them: what is asked, what counts as right, what is left out."""

import json

import pytest

from dataset.messages import LeftOutError, RecordError
from eval.questions import load_questions, parse_question
from model.errors import UserError
from tests.serving import chat_question, write_lines


def test_questions_are_read_from_chats_and_from_reading_comprehension(tmp_path):
    reading = {"id": 7, "context": "C", "question": "Q", "answers": ["A", "B"]}
    chat = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    path = write_lines(
        tmp_path / "dev.jsonl", reading, chat_question("Q", "A", split="s", language="zh"), chat
    )
    first, second, third = load_questions([path]).questions
    assert (first.id, first.split, first.answers) == ("7", "dev", ("A", "B"))
    assert (second.split, second.language, second.messages[-1].content) == ("s", "zh", "Q")
    assert third.answers == ("A",) and [m.role for m in third.messages] == ["user"]
    assert first.messages[0].content.index("C") < first.messages[0].content.index("Q")
    squad = reading | {"answers": {"text": ["A", "B"], "answer_start": [0, 3]}}
    assert parse_question(squad, "name", "dev") == first
    turned = load_questions([path], "first").questions[0].messages[0].content
    assert turned.index("Q") < turned.index("C")


USER, SAID = {"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Lima"}


@pytest.mark.parametrize(
    ("record", "messages", "answers"),
    [
        ({"question": "Capital?", "answers": ["Lima"]}, "Capital?", ("Lima",)),
        ({"question": "Capital?", "answer": "Lima"}, "Capital?", ("Lima",)),
        ({"prompt": "Capital?", "answers": ["Lima", "lima city"]}, "Capital?", ("Lima", "lima city")),
        ({"prompt": [USER], "answers": "Lima"}, "Capital?", ("Lima",)),
        ({"context": "C", "question": "Q", "answers": "A"}, "C\n\nQ", ("A",)),
        ({"context": "C", "question": "Q", "answer": "A"}, "C\n\nQ", ("A",)),
        ({"context": "C", "question": "Q", "answers": [1]}, "C\n\nQ", ("1",)),
        ({"question": "Q", "answer": 0.5}, "Q", ("0.5",)),
        ({"question": "Q", "answers": [{"text": "A", "answer_start": 3}]}, "Q", ("A",)),
        ({"question": "Q", "answer": {"value": "A", "aliases": ["B", "A"]}}, "Q", ("A", "B")),
        ({"messages": [USER, SAID], "answers": ["Cusco"]}, "Capital?", ("Cusco",)),
        ({"messages": [USER, SAID], "answers": None}, "Capital?", ("Lima",)),
        ({"conversations": [{"from": "human", "value": "Capital?"}], "answers": ["A"]}, "Capital?", ("A",)),
        ({"conversations": json.dumps([USER]), "answers": ["A"]}, "Capital?", ("A",)),
        ({"problem": json.dumps([USER], sort_keys=True), "answers": ["A"]}, "Capital?", ("A",)),
        ({"prompt": json.dumps([USER], sort_keys=True), "completion": "A"}, "Capital?", ("A",)),
        ({"passage": "P", "question": "Q", "answer": ["A", "B"]}, "P\n\nQ", ("A", "B")),
        ({"problem": "1+1?", "solution": "long", "answer": "2"}, "1+1?", ("2",)),
        ({"query": "Capital?", "answer": "A"}, "Capital?", ("A",)),
        ({"input": [USER], "ideal": "Lima"}, "Capital?", ("Lima",)),
        ({"input": "Capital?", "ideal": ["Lima", "Lima city"]}, "Capital?", ("Lima", "Lima city")),
        ({"instruction": "Capital?", "input": "", "output": "Lima"}, "Capital?", ("Lima",)),
        ({"instruction": "Say it", "input": "Capital?", "answers": ["A"]}, "Say it\n\nCapital?", ("A",)),
        ({"question": "Q", "answer": "1000 + 234 = 1234\n#### 1,234"}, "Q", ("1,234",)),
        ({"question": "Q", "answer": "<think>\nhm\n</think>\n\nA"}, "Q", ("A",)),
    ],
)
def test_questions_and_answers_are_read_under_the_names_that_users_give_them(record, messages, answers):
    question = parse_question(record, "name", "file")
    assert "\n".join(message.content for message in question.messages) == messages
    assert [text.strip() for text in question.answers] == list(answers) and not question.choices


def test_a_system_message_and_the_turns_before_a_question_are_kept():
    system = {"role": "system", "content": "Answer shortly."}
    question = parse_question({"input": [system, USER, SAID, USER], "ideal": "Lima"}, "n", "s")
    assert [message.role for message in question.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": [USER]}, "no answer"),
        ({"conversations": [USER], "answers": [True]}, "answers are not texts"),
        ({"conversations": [USER], "answers": [{"start": 3}]}, "without text"),
        ({"conversations": [], "answers": ["A"]}, "no question .* conversations, answers; expected question"),
        ({"conversations": [SAID]}, "before one answer"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty"),
        (
            {"prompt": "P", "chosen": "A", "rejected": "B"},
            "under the keys prompt, chosen, rejected; expected",
        ),
        ({"text": "T"}, "under the keys text; expected question and answers"),
        ({"question": "Q"}, "under the keys question; expected question and answers"),
        ({"question": "Q", "answers": ["\ud800"]}, "Unicode"),
        ({"id": "\ud800", "question": "Q", "answers": ["A"]}, "Unicode"),
    ],
)
def test_a_broken_record_has_a_reason_and_its_line_is_named_where_there_are_too_many(
    record, reason, tmp_path
):
    with pytest.raises(RecordError, match=reason) as error:
        parse_question(record, "name", "file")
    assert not isinstance(error.value, LeftOutError)
    path = write_lines(tmp_path / "q.jsonl", chat_question("Q", "A"), record, record)
    with pytest.raises(
        UserError, match=rf"q\.jsonl, line 2: .*{reason}.*; 2 of 3 records cannot be used, more"
    ):
        load_questions([path])


@pytest.mark.parametrize(
    "record",
    [
        {"context": "C", "question": "Q", "answers": {"text": [], "answer_start": []}},
        {"context": "C", "question": "Q", "answers": []},
        {"context": "C", "question": "Q", "is_impossible": True},
        {"context": "C", "question": "Q", "answers": ["A"], "is_impossible": True},
        {"context": "C", "question": "Q", "answers": ["A"], "is_impossible": "true"},
        {"question": "Q", "answer": " "},
        {"messages": [USER, {"role": "assistant", "content": "A", "tool_calls": [{"name": "f"}]}]},
        {"messages": [USER, {"role": "assistant", "content": '<tool_call>\n{"name": "f"}\n</tool_call>'}]},
    ],
)
def test_questions_without_an_answer_are_left_out_and_listed_however_many(record, tmp_path):
    path = write_lines(tmp_path / "q.jsonl", *[record] * 3, chat_question("Q", "A"))
    found = load_questions([path], max_reject_fraction=0.0)
    assert len(found.questions) == 1
    assert [(each.line, each.is_broken) for each in found.left_out] == [(1, False), (2, False), (3, False)]
    path = write_lines(tmp_path / "none.jsonl", record)
    with pytest.raises(UserError, match="no questions with answers"):
        load_questions([path])


@pytest.mark.parametrize(
    ("good", "bad", "fraction", "is_read"),
    [
        (3, 1, 0.01, True),
        (98, 1, 0.01, True),
        (98, 2, 0.01, False),
        (99, 1, 0.01, True),
        (148, 2, 0.01, False),
        (198, 2, 0.01, True),
        (3, 1, 0.0, False),
        (3, 2, 0.4, True),
        (0, 1, 1.0, False),
    ],
)
def test_a_share_of_broken_lines_is_counted_and_one_in_a_short_file(tmp_path, good, bad, fraction, is_read):
    broken = {"messages": [USER, {"role": "assistant", "content": ""}]}
    path = write_lines(tmp_path / "q.jsonl", *[broken] * bad, *[chat_question("Q", "A")] * good)
    if not is_read:
        with pytest.raises(UserError, match=rf"line 1: content is empty; {bad} of {good + bad} records"):
            load_questions([path], max_reject_fraction=fraction)
        return
    found = load_questions([path], max_reject_fraction=fraction)
    assert len(found.questions) == good and sum(each.is_broken for each in found.left_out) == bad


def test_chats_whose_last_answer_counts_as_right_are_counted(tmp_path):
    multiple = {"question": "Q", "choices": ["A", "B"], "answerKey": "B"}
    path = write_lines(
        tmp_path / "q.jsonl", {"messages": [USER, SAID]}, {"messages": [USER], "answers": ["A"]}, multiple
    )
    found = load_questions([path])
    assert (len(found.questions), found.from_chats) == (3, 1)


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["A", "B", "C"], 1),
        (["A", "B", "C"], "B"),
        (["x", "B", "y"], "B"),
        ({"text": ["x", "B"], "label": ["1", "2"]}, "2"),
        ({"A": "x", "B": "B"}, "B"),
        ([{"label": "p", "text": "x"}, {"label": "q", "text": "B"}], "q"),
        ([{"text": "x"}, {"text": "B"}], "B"),
        ({"text": ["A", "B", "C"], "label": ["C", "A", "B"]}, "A"),
        ({"text": ["2", "B", "1"], "label": ["1", "2", "3"]}, "2"),
        ({"text": ["2", "B", "1"], "label": ["A", "B", "C"]}, 1),
        ({"text": ["x", "y", "B"], "label": [1, 2, 3]}, 3),
        ([{"label": 0, "text": "x"}, {"label": 1, "text": "B"}, {"label": 2, "text": "y"}], 1),
        ([{"label": 5, "text": "x"}, {"label": 1, "text": "y"}, {"label": 0, "text": "B"}], "0"),
        ({"1": "x", "2": "B", "3": "y"}, 2),
        (["1", "B", "0"], 1),
    ],
)
@pytest.mark.parametrize("names", [("choices", "answer"), ("options", "answerKey")])
def test_the_right_choice_is_named_by_place_letter_or_text(choices, answer, names):
    record = {"question": "Q"} | dict(zip(names, (choices, answer), strict=True))
    question = parse_question(record, "n", "s")
    assert question.answers == ("B",) and "B" in question.choices and question.choices[0] != "B"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choices": ["A"]}, "two or more"),
        ({"choices": "AB"}, "two or more"),
        ({"choices": ["A", " "]}, "two or more"),
        ({"choices": ["A", "A", "B"]}, "twice"),
        ({"answer": 2}, "0 to 1"),
        ({"answer": "C"}, "0 to 1"),
        ({"answer": True}, "0 to 1"),
        ({"choices": ["C", "A", "B"], "answer": "A"}, "the text of one choice and the letter of another"),
        ({"choices": {"1": "x", "2": "y"}}, "nor its label, 1, 2, or text"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}}, "labels are not one"),
        ({"choices": {"text": ["x", "y"], "label": 3}}, "labels are not one"),
        ({"choices": {"text": ["x", "y"], "label": ["1", 1]}}, "labels are not one"),
        ({"question": 3}, "not a string"),
    ],
)
def test_a_choice_without_sense_is_refused_with_its_reason(change, reason):
    record = {"question": "Q", "choices": ["A", "B"], "answer": 0}
    with pytest.raises(RecordError, match=reason):
        parse_question(record | change, "n", "s")


@pytest.mark.parametrize(
    "others", [{"choices": []}, {"choices": {"A": "x"}}, {"choices": ["B"], "answer": None}]
)
def test_a_question_with_answers_is_free_whatever_choices_it_carries(others):
    question = parse_question({"context": "C", "question": "Q", "answers": ["A", "a"]} | others, "n", "s")
    assert (question.answers, question.choices) == (("A", "a"), ())
    assert parse_question(chat_question("Q", "A") | others, "n", "s").choices == ()


def test_choices_under_letters_are_choices():
    record = {"question": "Q", "A": "Lima", "B": "Cusco", "C": "Quito", "answer": "B"}
    question = parse_question(record, "n", "s")
    assert question.choices == ("Lima", "Cusco", "Quito") and question.answers == ("Cusco",)
    swapped = {"question": "Which group?", "A": "O", "B": "A", "C": "B", "D": "AB", "answer": "B"}
    assert parse_question(swapped, "n", "s").answers == ("A",)


def test_keys_that_are_not_read_are_named(tmp_path):
    read = {"id": 1, "question": "Q", "context": None, "answers": ["A"], "system": "S", "kind": "k"}
    path = write_lines(
        tmp_path / "q.jsonl", read, {"question": "Q", "answers": ["A"], "story": "S", "x": None}
    )
    assert load_questions([path]).unread_keys == ("story",)
    turns = {"messages": [{"role": "user", "content": "Q"}], "answers": ["A"], "prompt": "", "options": []}
    path = write_lines(
        tmp_path / "q.jsonl", turns | {"context": "a text that nobody is shown", "question": "?"}
    )
    assert load_questions([path]).unread_keys == ("context", "question")


@pytest.mark.parametrize(
    ("record", "unread"),
    [
        ({"question": "Q", "instruction": "I", "answer": "A"}, ["instruction"]),
        ({"instruction": "I", "input": "i", "context": "C", "passage": "P", "answer": "A"}, ["passage"]),
        ({"question": "Q", "context": "C", "passage": "C", "article": "another", "answer": "A"}, ["article"]),
        ({"question": "Q", "answers": ["A", "B"], "answer": "b"}, ["answer"]),
        ({"question": "Q", "answers": ["A", "B"], "answer": "B", "target": {"x": 1}}, ["target"]),
        (
            {"question": "Q", "answers": ["A"], "output": "O", "A": "1", "choices": ["A", "B"]},
            ["A", "choices", "output"],
        ),
        (
            {"question": "Q", "choices": ["a", "b"], "options": ["c", "d"], "answer": 0, "answers": ["z"]},
            ["answers", "options"],
        ),
        ({"question": "Q", "A": "a", "B": "b", "answer": "A", "answerKey": "B"}, ["answerKey"]),
        (
            {"messages": json.dumps([{"role": "user", "content": "Q", "n": 1}]), "query": "q", "answer": "A"},
            ["messages.n", "query"],
        ),
        ({"data": [{"question": "Q", "answer": "A", "is_impossible": False}], "system": "S"}, ["system"]),
        ({"prompt": "Q", "response": "A", "context": "C", "id": 1}, ["context"]),
    ],
)
def test_nothing_of_a_question_goes_in_silence(tmp_path, record, unread):
    found = load_questions([write_lines(tmp_path / "q.jsonl", record)])
    assert len(found.questions) == 1 and sorted(found.unread_keys) == unread


def test_keys_that_columns_drop_are_named(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", {"q": "Q", "prompt": "P", "a": "A", "answer": "own"})
    assert load_questions([path], columns={"question": "q", "answer": "a"}).unread_keys == (
        "answer",
        "prompt",
    )


def test_columns_that_no_record_has_are_told(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", {"q": "Q", "a": "A"})
    columns = {"question": "q", "answer": "a", "system": "s"}
    assert load_questions([path], columns=columns).absent_columns == ("s",)


def test_a_place_among_no_choices_is_no_answer():
    asked = {"question": "Which?", "choices": []}
    with pytest.raises(RecordError, match="choices are not a list of two or more texts"):
        parse_question(asked | {"answer": 0}, "x", "x")
    assert parse_question(asked | {"answer": "Lima"}, "x", "x").answers == ("Lima",)


@pytest.mark.parametrize("label", [0, 1, False])
def test_a_label_beside_the_choices_of_a_chat_is_no_preference(label):
    asked = {"messages": [{"role": "user", "content": "Which?"}], "choices": ["a", "b"], "answer": 1}
    assert parse_question(asked | {"label": label}, "n", "s") == parse_question(asked, "n", "s")
