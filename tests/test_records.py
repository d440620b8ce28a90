"""Records as they lie in files, what is left out of them and said of it, and any damage to any of them."""

import json
import random
import sys

import pyarrow
import pyarrow.parquet
import pytest

from dataset.conversation import Message
from dataset.formats import PAIRS, parse_messages, read_columns, rename
from dataset.messages import FLAGS
from dataset.preparation import PreparationSettings, write_store
from dataset.records import Rejects, accept, are_too_many, expand, read_records
from dataset.token_store import TokenStore
from dataset.tokenizer import train_tokenizer
from model.errors import UserError
from scripts.prepare_data import main, notes

TOKENIZER = train_tokenizer(["Lima is the capital of Peru"], 300)
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
QUESTION = {"id": "1", "question": "Q", "answers": [{"text": "A", "answer_start": 0}], "is_impossible": False}
ABSURD = {"id": "2", "question": "R", "answers": [], "is_impossible": True}
SQUAD = {
    "version": "v2.0",
    "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [QUESTION, ABSURD]}]}],
}
CMRC = {
    "context_id": "0",
    "context_text": "C",
    "qas": [{"query_id": "1", "query_text": "Q", "answers": ["A"]}],
}


def write(path, *records):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture
def prepare(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")

    def prepare(*data, **settings):
        folders = (str(tmp_path / name) for name in ("tokenizer", "out"))
        asked = PreparationSettings("sft", data, *folders, overwrite=True, num_workers=1, **settings)
        return write_store(asked)[0]

    return prepare


def texts(tmp_path):
    store = TokenStore(tmp_path / "out")
    return [TOKENIZER.decode(store[i].ids) for i in range(len(store))]


@pytest.mark.parametrize(
    "nested", [SQUAD, {"paragraphs": SQUAD["data"][0]["paragraphs"]}, CMRC, {"data": [CMRC]}]
)
def test_nested_questions_come_out_one_by_one(nested):
    first, *others = (value for value, _ in expand(nested))
    assert parse_messages(first) == [Message("user", "C\n\nQ"), Message("assistant", "A")]
    assert first["id"] == "1" and others in ([], [{"context": "C"} | ABSURD])


@pytest.mark.parametrize(
    "record",
    [
        {"data": [], "version": 1},
        {"data": CHAT},
        {"text": "a", "data": [{"text": "b"}]},
        {"messages": CHAT, "data": [{"messages": CHAT}]},
        {"paragraphs": ["a", "b"]},
        [1],
        3,
    ],
)
def test_what_nests_no_records_stays_one(record):
    assert expand(record) == [(record, ())]


def test_records_in_a_record_may_be_of_any_format_and_each_is_counted():
    wrapped = {"version": "1", "data": [{"messages": CHAT}, 3, {"text": "a"}]}
    assert [value for value, _ in expand(wrapped)] == wrapped["data"]


def test_keys_around_nested_records_are_told(prepare, tmp_path):
    inside = {
        "title": "",
        "source": "s",
        "paragraphs": [{"context": "C", "n": 1, "qas": [QUESTION, QUESTION]}],
    }
    path = write(tmp_path / "a.jsonl", {"system": "Be brief", "data": [inside]})
    inner = ["answers.answer_start", "id", "n", "source", "system"]
    assert prepare(path)["sources"][0]["unread_keys"] == inner


def test_messages_after_the_last_target_and_further_answers_are_told(prepare, tmp_path):
    ended = [CHAT[0], CHAT[1], CHAT[0], CHAT[1] | {"weight": 0}]
    told = ["messages after the last answer with loss"]
    assert prepare(write(tmp_path / "a.jsonl", {"messages": ended}))["sources"][0]["unread_keys"] == told
    asked = {"question": "Q", "answers": ["A", "A", "B"]}
    manifest = prepare(write(tmp_path / "b.jsonl", asked, asked | {"answers": ["A", "A"]}))
    assert manifest["sources"][0]["unread_keys"] == ["answers after the first"]


def test_no_text_is_taken_for_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeff\n\n\ufefb\n\nb", encoding="utf-8")  # an Arabic letter of the same three bytes
    assert [record.value for record in read_records([str(path)])] == [{"text": "\ufefb"}, {"text": "b"}]


def test_columns_that_others_are_named_for_are_told(prepare, tmp_path):
    record = {"q": "a", "a": "b", "prompt": "p", "answer": "own", "response": None}
    manifest = prepare(write(tmp_path / "a.jsonl", record), columns=("question=q", "answer=a"))
    assert manifest["sources"][0]["unread_keys"] == ["answer", "prompt"]


def test_a_key_that_stands_twice_is_a_fault_of_its_record(prepare, tmp_path):
    good = json.dumps({"messages": CHAT})
    inside = json.dumps({"messages": json.dumps(CHAT).replace('"role"', '"content": "c", "role"')})
    path = write(tmp_path / "a.jsonl", *[good + "\n"] * 2, good[:-1] + ', "messages": []}\n', inside + "\n")
    assert prepare(path, max_reject_fraction=0.5)["rejects"] == {"a key stands twice": 2}


def test_a_table_with_a_column_twice_is_one_line(tmp_path):
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet cannot be read: a column stands twice"):
        list(read_records([str(tmp_path / "a.parquet")]))


def test_questions_without_answer_are_counted_and_are_no_fault(prepare, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SQUAD, indent=2))
    manifest = prepare(str(tmp_path / "a.json"), max_reject_fraction=0.0)
    assert (manifest["records"], manifest["documents"], manifest["rejects"]) == (2, 1, {"no answer": 1})
    listed = json.loads((tmp_path / "out" / "rejects.jsonl").read_text())
    assert listed == {"file": str(tmp_path / "a.json"), "line": 1, "reason": "no answer"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (json.dumps([CHAT[0]] * 2, indent=1), "line 1: this .jsonl holds one JSON array; name it .json"),
        (json.dumps([CHAT[0]] * 2), "line 1: this .jsonl holds one JSON array; name it .json"),
        ('{"n": ' + "9" * 5000 + "}", "line 1: .*; 1 of 1 records"),
        ('{"n": ' + "[" * 3000 + "]" * 3000 + "}", "line 1: nested too deeply"),
    ],
)
def test_json_that_is_no_line_each_is_named(prepare, tmp_path, content, fault):
    with pytest.raises(UserError, match=fault):
        prepare(write(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize(
    ("num_broken", "num_records", "share", "too_many"),
    [
        (29, 100, 0.29, False),  # though 0.29 * 100 is below 29
        (30, 100, 0.29, True),
        (1, 99, 0.001, False),
        (1, 100, 0.001, True),
        (1, 100, 0.01, False),
        (2, 99, 0.01, True),
        (1, 50, 0.0, True),
        (0, 50, 0.0, False),
    ],
)
def test_a_share_of_records_may_be_broken_and_one_of_few(num_broken, num_records, share, too_many):
    assert are_too_many(num_broken, num_records, share) == too_many


def test_a_record_at_which_parsing_recurses_too_deeply_is_a_reject(tmp_path):
    def parse(record):
        return parse(record) if record["n"] == 1 else record["n"]

    rejects = Rejects()
    path = write(tmp_path / "a.jsonl", *({"n": n} for n in range(3)))
    assert list(accept(read_records([path]), parse, rejects)) == [0, 2]
    assert (rejects.num_records, rejects.reasons) == (3, {"nested too deeply": 1})


def test_reasons_of_their_own_do_not_fill_the_memory(tmp_path):
    rejects, other = Rejects(), Rejects()
    records = ({"messages": [{"role": f"r{n}", "content": "a"}]} for n in range(300))
    assert not list(accept(read_records([write(tmp_path / "a.jsonl", *records)]), parse_messages, rejects))
    other.merge(*rejects.account())
    other.merge(*rejects.account())
    assert len(rejects.reasons) == 101 and other.reasons["other reasons"] == 400
    assert other.reasons.total() == other.num_records == 600


def test_only_answers_that_carry_loss_are_targets_and_count(prepare, tmp_path):
    turns = [*CHAT, *CHAT]
    quiet = [turn | {"weight": int(n == 1)} for n, turn in enumerate(turns)]
    untrained = {"messages": CHAT, "train": False}
    path = write(tmp_path / "a.jsonl", {"messages": turns}, {"messages": quiet}, untrained, untrained)
    manifest = prepare(path)  # half of the records say that they are not to be trained: no fault
    assert manifest["rejects"] == {"no answer that is to be trained": 2}
    assert manifest["targets"] == 4 + 2 and manifest["target_bytes"] == 3
    assert texts(tmp_path)[0].startswith(texts(tmp_path)[1].rstrip("\n"))  # ends with what is trained
    turned = write(tmp_path / "b.jsonl", {"messages": turns, "loss_mask": [0, 0, 0, 1]})
    assert prepare(turned)["targets"] == 2


def test_good_answers_alone_are_trained_on_when_asked(prepare, tmp_path):
    rated = [{"prompt": "a", "completion": text, "label": text == "good"} for text in ("good", "bad")]
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}, *rated)
    manifest = prepare(path, preference="chosen")
    assert manifest["rejects"] == {"a bad answer of preference data": 1} and manifest["documents"] == 2
    assert not any("bad" in text or "c<" in text for text in texts(tmp_path))
    with pytest.raises(UserError, match="line 1: preference data; --preference chosen trains .* 3 of 3"):
        prepare(path)


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        (["question=q", "answer=r"], {"q": "a", "r": "b"}),
        (
            ["question=prompt", "answer=response"],
            {"prompt": "a", "response": "b", "instruction": "x", "output": "y"},
        ),
        (["output=response"], {"instruction": "a", "response": "b", "completion": "c", "prompt": "d"}),
        (["messages=data"], {"data": CHAT, "prompt": "x", "completion": "y"}),
        (["question=answer", "answer=question"], {"answer": "a", "question": "b"}),
        (["question=q", "answers=a", "context=c"], {"q": "a", "a": ["b"], "c": ""}),
    ],
)
def test_named_columns_are_read_and_no_others(columns, record):
    expected = [Message("user", "a"), Message("assistant", "b")]
    assert parse_messages(rename(record, read_columns(columns))) == expected


@pytest.mark.parametrize("columns", [["q"], ["q=question"], ["question="], ["question=a", "question=b"]])
def test_columns_that_name_nothing_of_ours_are_refused(columns):
    with pytest.raises(UserError, match="columns: expected OURS=THEIRS, .*answer.*question"):
        PreparationSettings("sft", ("a",), "t", "o", columns=tuple(columns))


def test_keys_beyond_those_that_are_named_are_counted():
    source = {"path": "a.jsonl", "documents": 1, "unread_keys": [f"key{n:02}" for n in range(30)]}
    [said] = notes({"rejects": {}, "sources": [source]})
    assert said.startswith("a.jsonl: keys not read: key00, key01, ") and said.endswith(", key19 and 10 more")


def test_keys_that_are_not_read_are_said_once_a_file(prepare, tmp_path, monkeypatch, capsys):
    record = {"q": "a", "answer": "b", "topic\x1b": "c", "id": 3, "source": None}
    write(tmp_path / "a.jsonl", *[record] * 3)
    write(tmp_path / "b.jsonl", record)
    prepare(write(tmp_path / "c.jsonl", {"messages": CHAT}))
    flags = [
        "--kind",
        "sft",
        "--overwrite",
        "--columns",
        "question=q",
        "--tokenizer",
        str(tmp_path / "tokenizer"),
    ]
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    monkeypatch.setattr("sys.argv", ["x", *flags, "--out", str(tmp_path / "out"), "--data", *files])
    for _ in range(2):
        main()
        said = capsys.readouterr()
        assert said.err.splitlines()[-2:] == [
            f"note: {files[0]} and 1 more: keys not read: id, topic\\x1b",
            f"note: {files[2]}: no document was made of it",
        ]
        assert max(map(len, said.out.splitlines()[1:])) <= 80
        sys.argv[:] = [flag for flag in sys.argv if flag != "--overwrite"]
    texts = write(tmp_path / "t.jsonl", {"text": "a", "title": "T", "n": 0, "tags": [], "url": None})
    settings = PreparationSettings(
        "pretrain", (str(texts),), str(tmp_path / "tokenizer"), str(tmp_path / "t")
    )
    manifest, _ = write_store(settings)
    assert manifest["sources"][0]["unread_keys"] == ["n", "title"]


def test_a_file_that_gives_no_document_is_named(prepare, tmp_path, monkeypatch, capsys):
    prepare(write(tmp_path / "a.jsonl", *[{"messages": CHAT}] * 150))
    array = tmp_path / "b.jsonl"
    array.write_text(json.dumps([{"messages": CHAT}] * 50))
    flags = ["--kind", "sft", "--overwrite", "--tokenizer", str(tmp_path / "tokenizer")]
    data = ["--data", str(tmp_path / "a.jsonl"), str(array)]
    monkeypatch.setattr("sys.argv", ["x", *flags, "--out", str(tmp_path / "out"), *data])
    main()
    assert capsys.readouterr().err == (
        "note: records rejected: 1 (1 this .jsonl holds one JSON array; name it .json; rejects.jsonl "
        "lists them)\n"
        f"note: {array}: no document was made of it\n"
    )


def test_keys_that_arrow_filled_with_null_are_left_out(tmp_path):
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    other = {"function": {"name": "g", "arguments": {"b": [{"c": 2}, {"d": 3}]}}}
    turns = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call, other]}]
    tools = [
        {"name": "f", "parameters": {"a": {"type": "number"}}},
        {"name": "g", "parameters": {"b": {"x": 1}}},
    ]
    records = [{"messages": turns, "tools": tools}, {"messages": CHAT, "tools": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    read = [parse_messages(record.value) for record in read_records([str(tmp_path / "a.parquet")])]
    assert read[0][2].tool_calls == (
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "g", "arguments": {"b": [{"c": 2}, {"d": 3}]}}',
    )
    assert read[0][0].tools == (
        '{"name": "f", "parameters": {"a": {"type": "number"}}}',
        json.dumps(tools[1]),
    )
    assert read[1] == parse_messages({"messages": CHAT})


SEEDS = [
    *(
        {question: "a", answer: ["b"] if answer == "answers" else "b"}
        for ps in PAIRS.values()
        for question, answer in ps
    ),
    {
        "messages": [turn | {name: None for name in FLAGS} for turn in CHAT],
        "tools": [{"name": "f"}],
        "system": "s",
    },
    {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '[{"name": "f"}]'},
        ]
    },
    {"messages": [CHAT[0], CHAT[1] | {"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, CHAT[1] | {"thinking": "t"}]},
    {"prompt": "a", "chosen": CHAT, "rejected": CHAT},
    {"prompt": "a", "completion": "b", "label": True, "history": [["c", "d"]]},
    {"question": "a", "context": "c", "answers": {"text": ["b"], "answer_start": [0]}},
    SQUAD,
    CMRC,
]
JUNK = [
    None, True, 0, 1.5, float("nan"), float("inf"), "", "a", "\ud800", "\x1b[2J", "[", "<think>t</think>",
    [], [None], ["a", "b"], [[]], [{}], {}, {"text": []}, {"role": "user"}, {"a": {"b": [1]}}, "9" * 5000,
    " ", -1,
]  # fmt: skip


def mutated(value, noise):
    """Return a copy of a JSON value with junk, losses, doubles and exchanges at random places."""
    if noise.random() < 0.08:
        return noise.choice(JUNK)
    if isinstance(value, dict):
        items = [(key, mutated(each, noise)) for key, each in value.items() if noise.random() > 0.04]
        if items and noise.random() < 0.1:
            items.append((noise.choice([*FLAGS, "image", "label", "is_impossible", "x"]), noise.choice(JUNK)))
        return dict(items)
    if isinstance(value, list):
        kept = [mutated(each, noise) for each in value if noise.random() > 0.04]
        return kept + kept[:1] * (noise.random() < 0.05)
    return value


def line_of(seed, noise):
    """Return a record as bytes, perhaps torn, deepened or with a number that no reader takes."""
    line = json.dumps(mutated(seed, noise)).encode()
    way = noise.randrange(12)
    if way == 0:
        return line[: noise.randrange(len(line) + 1)] + line[noise.randrange(len(line) + 1) :]
    if way == 1:
        at = noise.randrange(len(line) + 1)
        return line[:at] + noise.choice([b"\xff", b"9" * 5000, b"[" * 3000, b"]" * 9, b"NaN"]) + line[at:]
    return line


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_any_damage_costs_its_record_and_none_is_lost(prepare, tmp_path, number, form):
    for seed in range(0, number, 100):
        noise = random.Random(seed)
        lines = [line_of(noise.choice(SEEDS), noise).replace(b"\n", b"") for _ in range(100)]
        path = tmp_path / f"{seed}.{form}"
        path.write_bytes(b"\n".join([json.dumps({"messages": CHAT}).encode(), *lines]))
        records, rejects, preference = (
            list(read_records([str(path)])),
            Rejects(),
            noise.choice([None, "chosen"]),
        )
        kept = list(accept(records, lambda value: parse_messages(value, preference=preference), rejects))  # noqa: B023
        assert len(kept) + rejects.reasons.total() == len(records) >= 90 * (form == "jsonl")
        named = noise.choice(["messages", "alpaca", "prompt_completion", "reading", "preference"])
        try:
            manifest = prepare(str(path), format=named, preference=preference, max_reject_fraction=1.0)
        except UserError as error:
            assert "cannot be used" in str(error)  # not one was kept
            continue
        listed = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
        assert manifest["records"] == manifest["documents"] + len(listed) == len(records)
        assert sum(manifest["rejects"].values()) == len(listed)
