import io
import json
from contextlib import closing

import pytest

from dataset.formats import RecordError, read_text
from dataset.printing import Bars, reporting
from dataset.records import Rejects, accept, read_records, texts_of
from dataset.sources import check_sources
from model.errors import UserError
from model.files import resumable_folder, whole_folder


def test_a_broken_line_costs_that_line_only(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "a"}',
        b'{"text": ',
        b"",
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "b\\n"}',
    ]
    file.write_bytes(b"\r\n".join([*lines, b"[" * 10**5]))
    records = [(record.line, record.value, record.fault) for record in read_records([str(file)])]
    assert records == [
        (1, {"text": "a"}, ""),
        (2, None, "not JSON"),
        (4, None, "not a JSON object"),
        (5, None, "not UTF-8"),
        (6, {"text": "b\n"}, ""),
        (7, None, "nested too deeply"),
    ]


def test_a_text_file_is_split_on_blank_lines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\n\n一\n二\n \n\n三\n\n".encode() + b"\xff\n\n" + b"end")
    records = [(record.line, record.value, record.fault) for record in read_records([str(file)])]
    assert records == [
        (3, {"text": "一\n二"}, ""),
        (7, {"text": "三"}, ""),
        (9, None, "not UTF-8"),
        (11, {"text": "end"}, ""),
    ]


def test_files_are_read_in_the_order_given(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "' + name + '"}\n')
    records = list(read_records([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]))
    assert [record.value["text"] for record in records] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "not found"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "x", "ends in .jsonl, .json, .txt"),
    ],
)
def test_what_cannot_be_a_source_is_a_user_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        check_sources([str(tmp_path / name)])


def account(tmp_path, good, bad, **settings):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' * good + '{"text": 3}\n' * bad)
    rejects = Rejects(**settings)
    texts = list(accept(read_records([str(file)]), lambda value: read_text(value["text"], "text"), rejects))
    assert len(texts) == good
    return rejects


def test_rejects_are_counted_by_reason_and_listed_with_file_and_line(tmp_path):
    listing = io.StringIO()
    rejects = account(tmp_path, good=2, bad=2, listing=listing)
    entries = [json.loads(line) for line in listing.getvalue().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in entries] == [
        (str(tmp_path / "a.jsonl"), n) for n in (3, 4)
    ]
    assert rejects.reasons == {"text is not a string": 2}
    assert {entry["reason"] for entry in entries} == set(rejects.reasons)


def test_too_many_rejects_are_an_error_that_names_the_first(tmp_path):
    account(tmp_path, good=99, bad=1).check()
    with pytest.raises(UserError, match=r"a.jsonl line 99: text is not a string \(and 1 more\); 2 of 100"):
        account(tmp_path, good=98, bad=2).check()
    account(tmp_path, good=98, bad=2, max_fraction=0.02).check()
    with pytest.raises(UserError, match="1 of 1 records"):
        account(tmp_path, good=0, bad=1, max_fraction=1.0).check()
    with pytest.raises(UserError, match="no records"):
        account(tmp_path, good=0, bad=0).check()
    with pytest.raises(UserError, match="between 0 and 1"):
        Rejects(1.5)


def test_a_tokenizer_sees_the_texts_of_every_kind_of_record():
    assert texts_of({"text": "a"}) == ["a"]
    assert texts_of({"body": "b"}, "body") == ["b"]
    assert texts_of({"messages": [{"role": "assistant", "content": "c"}]}) == ["c"]
    assert texts_of({"context": "d", "question": "e", "answers": ["f"]}) == ["d\n\ne", "f"]
    assert texts_of({"text": None, "messages": [{"role": "assistant", "content": "c"}]}) == ["c"]
    with pytest.raises(RecordError, match="^no text, and no chat format has these keys$"):
        texts_of({"body": "b"})


def test_progress_writes_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("dataset.printing.LINE_EVERY_SECONDS", 0.0)
    with reporting(20, "reading") as report:
        report(2, 10)
        report(1, 10)
        report(1, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reading: 50%, 2 records")
    assert lines[1].startswith("reading: 100%") and lines[1].endswith(" 0 s left")
    assert lines[2].startswith("reading: 4 records")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bars_and_every_line_above_them(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with closing(Bars(terminal := Terminal())) as bars:
        bars.say("first")
        bars.show("reading", 5, 10, "5 records")
        bars.say("[b]a.jsonl[/b]\x1b]0;")
        bars.show("all", 10, 0, "10 records")
    shown = terminal.getvalue()
    assert shown.startswith("first\n") and "[b]a.jsonl[/b]\\x1b]0;" in shown
    assert "reading" in shown and "10 records" in shown.rpartition("5 records")[2]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), whole_folder(out) as folder:
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with whole_folder(out) as folder:
        (folder / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "a").read_text() == "whole"


def test_a_folder_is_replaced_only_on_demand_and_only_by_a_whole_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    (tmp_path / ".out.partial").mkdir()  # what a killed run left
    with pytest.raises(UserError, match="exists already"), whole_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(out, overwrite=True):
        raise ZeroDivisionError
    assert (out / "a").read_text() == "old"
    with whole_folder(out, overwrite=True) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["b"]


@pytest.mark.parametrize("new_folder", [whole_folder, resumable_folder])
def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path, new_folder):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for text in ("first", "second"):
        with new_folder(tmp_path / "link", overwrite=True) as folder:
            (folder / "a").write_text(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real/a").read_text() == text
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}
