"""Tasks beside the world: every answer is found by an independent reader, and no text stands in two files."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.builtin.folder import write_files
from dataset.builtin.tasks import REASONING, BuildTaskSettings, build_task
from dataset.messages import read_message
from eval.questions import load_questions
from model.errors import UserError

ROOT = Path(__file__).parent.parent
SMALL = BuildTaskSettings(out="", task="lookup", train=300, validation=40, questions=60)


def conversations(files):
    """Every prompt with its answer, of training and evaluation."""
    for records in files.values():
        for record in records:
            prompt, *reply = (message["content"] for message in record["conversations"])
            yield prompt, reply[0] if reply else record["answers"][0]


@pytest.mark.parametrize("position", ["last", "first"])
def test_lists_hold_the_numbers_that_are_asked_once_and_the_question_stands_where_it_is_wanted(position):
    asked = []
    for prompt, answer in conversations(build_task(replace(SMALL, question_position=position))):
        lines = prompt.split("\n")
        body, question = lines if position == "last" else lines[::-1]
        assert re.fullmatch(r"[a-z] \d\d(, [a-z] \d\d){3,9}", body)
        assert re.fullmatch(r"[a-z]( [a-z]){0,3}\?", question)
        found = [re.findall(rf"\b{letter} \d\d", body) for letter in question[:-1].split()]
        assert [[entry] for entry in answer.split(", ")] == found
        asked.append(len(found))
    assert {*asked[:-60]} == {1, 2, 3, 4} and {*asked[-60:]} == {1}, "a training asks for several"


@pytest.mark.parametrize("options", ["last", "first"])
def test_options_hold_the_number_that_is_asked_under_the_letter_that_is_the_answer(options):
    files = build_task(replace(SMALL, options=options))
    for prompt, answer in conversations(files):
        lines = prompt.split("\n")
        body, question, listed = lines if options == "last" else (*lines[1:], lines[0])
        assert re.fullmatch(r"\d\d A, \d\d B, \d\d C, \d\d D", listed)
        assert len(set(re.findall(r"\d\d", listed))) == 4
        entry, letter = answer.rsplit(" ", 1)
        assert entry[0] == question[0] and entry in body.split(", ") and f"{entry[2:]} {letter}" in listed
    letters = [answer[-1] for _, answer in conversations(files)]
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")  # of 400


def test_where_options_stand_changes_neither_lists_nor_answers():
    first, last = (build_task(replace(SMALL, options=place)) for place in ("first", "last"))
    for (one, answer), (other, same) in zip(conversations(first), conversations(last), strict=True):
        assert sorted(one.split("\n")) == sorted(other.split("\n")) and answer == same


@pytest.mark.parametrize("changes", [{}, {"question_position": "first"}, {"options": "first"}])
def test_entries_of_a_list_that_are_passages_say_what_the_list_does(changes):
    plain, marked = (build_task(replace(SMALL, passages=marks, **changes)) for marks in (False, True))
    for (text, answer), (parts, same) in zip(conversations(plain), conversations(marked), strict=True):
        message = read_message({"role": "user", "content": parts})
        entries = [message.content[first:last] for first, last in message.passages]
        assert ", ".join(entry.removesuffix("\n") for entry in entries) in text and answer == same
        assert message.content.rstrip() == text.replace(
            ", ".join(entry[:-1] for entry in entries), "".join(entries)[:-1]
        )


@pytest.mark.parametrize("position", ["last", "first"])
def test_copies_repeat_what_stands_beside_the_instruction(position):
    for prompt, answer in conversations(build_task(replace(SMALL, task="copy", question_position=position))):
        parts = [answer, "Copy the letters."]
        assert prompt == "\n".join(parts if position == "last" else parts[::-1])
        assert re.fullmatch(r"[a-z]( [a-z]){5,11}", answer)


@pytest.mark.parametrize("task", ["copy", "lookup", "reasoning"])
def test_no_text_stands_in_two_files_nor_twice_in_one(task):
    if task == "reasoning":
        pytest.importorskip("reasoning_gym")
    files = build_task(replace(SMALL, task=task))
    assert list(files) == ["train.jsonl", "validation.jsonl", f"eval/{task}.jsonl"]
    assert [len(records) for records in files.values()] == [300, 40, 60]
    texts = [talk["conversations"][0]["content"] for name in files for talk in files[name]]
    if task == "lookup":
        texts = [text.partition("\n")[0] for text in texts]
        assert texts[340::2] == texts[341::2]
        texts[340:] = texts[340::2]
    assert len(set(texts)) == len(texts)


def test_two_questions_of_a_list_are_one_cluster_and_differ(tmp_path):
    write_files(tmp_path / "task", build_task(SMALL))
    asked = load_questions([str(tmp_path / "task" / "eval" / "lookup.jsonl")], "last", 0.0).questions
    clusters = [question.cluster for question in asked]
    assert clusters[::2] == clusters[1::2] and len(set(clusters)) == 30
    assert all(one.messages != other.messages for one, other in zip(asked[::2], asked[1::2], strict=True))


def test_equal_seeds_give_equal_bytes_whatever_the_hash_seed(tmp_path):
    for hash_seed in "12":
        flags = ["--task", "lookup", "--train", "50", "--validation", "5", "--questions", "10", "--seed", "3"]
        command = [sys.executable, "-m", "scripts.build_task", *flags, "--out", hash_seed]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in SMALL.files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert build_task(SMALL) == build_task(SMALL) != build_task(replace(SMALL, seed=1))


def test_reasoning_asks_all_kinds_alike_in_short_texts():
    pytest.importorskip("reasoning_gym")
    files = build_task(replace(SMALL, task="reasoning"))
    kinds = [item["kind"] for item in files["eval/reasoning.jsonl"]]
    assert kinds == [*REASONING] * 12
    assert max(len(prompt) + len(answer) for prompt, answer in conversations(files)) < 400
    spelled = [each for each in conversations(files) if each[0].startswith("Spell this word backward")]
    assert len(spelled) == 80 and all(prompt.endswith(answer[::-1]) for prompt, answer in spelled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "reasoning", "question_position": "first"}, "--question_position first: expected copy or"),
        ({"task": "copy", "options": "first"}, "--options first: expected lookup, as copy has no such form"),
        ({"task": "copy", "passages": True}, "--passages True: expected lookup, as copy has no such form"),
        ({"train": 0}, "--train: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="needs the package reasoning-gym; pip install -r requirements-opt"):
        build_task(replace(SMALL, task="reasoning"))
    assert "reasoning-gym==" in (ROOT / "requirements-optional.txt").read_text()


def test_a_folder_of_another_task_is_not_replaced(tmp_path):
    write_files(tmp_path / "task", build_task(SMALL))
    with pytest.raises(UserError, match=r"holds other files than are written \(see eval/copy.jsonl\)"):
        write_files(tmp_path / "task", build_task(replace(SMALL, task="copy")))
    assert json.loads((tmp_path / "task" / "train.jsonl").read_text().splitlines()[0])["conversations"]
