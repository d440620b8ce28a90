"""What cannot be read, or is not what its name says, is named in one line and never passed over."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet
import pytest
import zstandard

from dataset import preparation
from dataset.preparation import PreparationSettings, write_store
from dataset.records import read_records
from dataset.sources import check_sources, find_sources
from dataset.tokenizer import train_tokenizer
from dataset.tokenizer_sample import Sample, TokenizerSettings
from eval.questions import load_questions
from model.errors import UserError

ROOT = Path(__file__).parents[1]
LINE = b'{"text": "One day"}\n'
READ = """
import os, sys
from dataset.sources import check_sources, find_sources
if os.geteuid() == 0:
    os.seteuid(65534)  # root may read everything
try:
    check_sources(find_sources([sys.argv[1]]))
except Exception as error:
    print(type(error).__name__, error)
"""


def write(path, content=LINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("name", ["", "*/*.jsonl", "**/*.jsonl", "*/a.jsonl"])
@pytest.mark.parametrize(
    ("place", "mode"),
    [("closed", 0o000), ("closed", 0o400), ("closed/a.jsonl", 0o000), ("open/b.jsonl", 0o000)],
)
def test_a_folder_or_file_without_permission_is_named(name, place, mode):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for path in ("open/a.jsonl", "open/b.jsonl", "closed/a.jsonl"):
            write(Path(folder, path))
        os.chmod(Path(folder, place), mode)
        line = [sys.executable, "-c", READ, str(Path(folder, name))]
        told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout
        os.chmod(Path(folder, place), 0o755)
    if name == "*/a.jsonl" and place == "open/b.jsonl":
        assert told == ""
    else:
        assert told.startswith(f"UserError {folder}/{place}") and "cannot be read: " in told
        assert told.endswith("Permission denied\n") and told.count("\n") == 1


def test_links_to_nothing_pipes_and_devices_are_named_at_once(tmp_path):
    write(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("data", "data/*", "data/b.jsonl"):
        with pytest.raises(UserError, match="not found: .*data/b.jsonl, which is a link to nothing"):
            check_sources(find_sources([str(tmp_path / name)]))
    for name in (tmp_path / "pipe.jsonl", "/dev/null", tmp_path / "p*.jsonl"):
        with pytest.raises(UserError, match="expected a file, got a folder, pipe or device"):
            check_sources(find_sources([str(name)]))
    for name in ("x" * 300, "a\0b", str(tmp_path / "data" / "a.jsonl" / "c.jsonl")):
        with pytest.raises(UserError, match="cannot be read"):
            check_sources(find_sources([name]))


def test_files_of_other_endings_in_a_folder_are_told_of(tmp_path, capsys):
    data = write(tmp_path / "a.jsonl")
    write(tmp_path / "deep" / "b.csv")
    write(tmp_path / "deep" / ".hidden.csv")
    write(tmp_path / "README")
    packed = write(tmp_path / "b.jsonl.gz", gzip.compress(LINE))
    write(tmp_path / "c.csv.gz")
    assert find_sources([str(tmp_path)]) == [data, packed]
    hidden, others = capsys.readouterr().err.splitlines()
    assert hidden == f"note: {tmp_path}: not read, as hidden, are .hidden.csv"
    assert others == f"note: {tmp_path}: not read are files of .csv, .csv.gz, no ending"


def test_a_file_that_changes_while_it_is_read_is_told_of(tmp_path, monkeypatch):
    source = tmp_path / "a.jsonl"
    write(source, LINE * 9)
    texts = Sample(TokenizerSettings((str(source),), "tok")).texts()
    next(texts, None)
    source.write_bytes(LINE * 10)
    with pytest.raises(UserError, match="a.jsonl changed while it was read; run the same command again"):
        list(texts)
    train_tokenizer(["One day"], 280).save(tmp_path / "tok")
    encode = preparation.Encoder.__call__

    def grow(self, job):
        source.write_bytes(LINE * 11)
        return encode(self, job)

    monkeypatch.setattr(preparation.Encoder, "__call__", grow)
    settings = PreparationSettings("pretrain", (str(source),), str(tmp_path / "tok"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="a.jsonl changed while it was read"):
        write_store(settings)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    source.unlink()
    with pytest.raises(UserError, match="a.jsonl cannot be read: No such file"):
        list(read_records([str(source)]))


def test_zstd_with_the_longest_window_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    source = write(tmp_path / "a.jsonl.zst", packer.compress(LINE * 99) + packer.flush())
    assert sum(record.value == json.loads(LINE) for record in read_records([source])) == 99


UTF16, GBK = "not UTF-8: looks like UTF-16", "not UTF-8: looks like GBK"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b'[\n {"text": "a"}\n]\n', "this .jsonl holds one JSON array; name it .json"),
        (
            "a.jsonl.gz",
            gzip.compress(b'[{"text": "a"}]', mtime=0),  # the time would give the test another name
            "this .jsonl holds one JSON array; name it .json",
        ),
        ("a.jsonl", b'{\n "text": "a"\n}\n', "this .jsonl holds objects over several lines; name it .json"),
        ("a.jsonl", LINE.strip() * 2, "several JSON values on one line"),
        ("a.jsonl", '{"text": "今天下雨"}\n'.encode("utf-16"), UTF16),
        ("a.jsonl", LINE.decode().encode("utf-16-le"), UTF16),
        ("a.txt", LINE.decode().encode("utf-16-be"), UTF16),
        ("a.jsonl", '{"text": "今天下雨，我在家读书"}\n'.encode("gbk"), GBK),
        ("a.txt", "今天下雨".encode("gb18030"), GBK),
        ("a.txt", "café".encode("latin-1"), "not UTF-8"),
        ("a.jsonl", b'{"text": [' + b"[]," * 2**19 + b"0]}", "not a JSON object"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_fault_says_what_the_file_looks_like(tmp_path, name, content, fault):
    first = next(read_records([write(tmp_path / name, content)]))
    assert first.value is None and first.fault.startswith(fault)
    assert "iconv" in first.fault or first.fault == fault


FORMS = {
    "a.jsonl": lambda lines: b"\n".join(lines),
    "a.jsonl.gz": lambda lines: gzip.compress(b"\n\n".join(lines)),
    "a.jsonl.zst": lambda lines: zstandard.ZstdCompressor().compress(b"\r\n".join(lines)),
    "a.json": lambda lines: b"\n".join(lines) + b"\n",
    "b.json": lambda lines: b"[" + b",\n".join(line for line in lines if json_like(line)) + b"]",
    "a.txt": lambda lines: b"\n\n".join(lines),
}


def json_like(line):
    try:
        return json.loads(line) is not None
    except ValueError:
        return False


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("block_bytes", [1, 50, 2**22])
def test_kept_and_rejected_are_all_there_is(tmp_path, monkeypatch, name, block_bytes):
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", block_bytes)
    faulty = [b"{", b"[1]", b"3", b"\xff", b'{"other": 1}', b'{"text": ""}', b'{"text": "\\ud83d"}', b"{}x"]
    lines = [b'{"text": "a"}' if n % 3 else faulty[n // 3 % len(faulty)] for n in range(1, 60)]
    source = write(tmp_path / name, FORMS[name](lines))
    train_tokenizer(["One day"], 280).save(tmp_path / "tok")
    paths = (source,), str(tmp_path / "tok"), str(tmp_path / "out")
    manifest, _ = write_store(PreparationSettings("pretrain", *paths, max_reject_fraction=1.0))
    there = sum(map(json_like, lines)) if name == "b.json" else len(lines)
    listed = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert manifest["records"] == there == manifest["documents"] + len(listed)
    assert sum(manifest["rejects"].values()) == len(listed) > 0


def test_questions_inside_of_records_and_rows_of_tables_are_all_there_too(tmp_path):
    answers = [["d"], [], [""], None]
    rows = [{"context": "c d", "question": "q" * (n % 5 > 0), "answers": answers[n % 4]} for n in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    write(
        tmp_path / "a.json", json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": rows}]}]}).encode()
    )
    train_tokenizer(["One day"], 280).save(tmp_path / "tok")
    for name in ("a.parquet", "a.json"):
        paths = (str(tmp_path / name),), str(tmp_path / "tok"), str(tmp_path / "out")
        settings = PreparationSettings("sft", *paths, max_reject_fraction=1.0, overwrite=True)
        manifest, _ = write_store(settings)
        assert (manifest["records"], manifest["documents"]) == (60, 12)
        assert sum(manifest["rejects"].values()) == 48


def test_a_file_that_breaks_off_is_no_smaller_file(tmp_path):
    source = write(tmp_path / "a.jsonl.gz", gzip.compress(LINE * 999)[:-9])
    train_tokenizer(["One day"], 280).save(tmp_path / "tok")
    paths = (source,), str(tmp_path / "tok"), str(tmp_path / "out")
    with pytest.raises(
        UserError, match=r"a.jsonl.gz line \d+: compressed data ends early, and how much is lost"
    ):
        write_store(PreparationSettings("pretrain", *paths))
    assert write_store(PreparationSettings("pretrain", *paths, max_reject_fraction=1.0))[0]["documents"] > 900
    sample = Sample(TokenizerSettings((source,), "tok"))
    with pytest.raises(UserError, match="compressed data ends early, and how much is lost"):
        list(sample.texts())
    questions = write(
        tmp_path / "q.jsonl.gz", gzip.compress(b'{"question": "a", "answer": "b"}\n' * 999)[:-9]
    )
    with pytest.raises(UserError, match="compressed data ends early, and how much is lost"):
        load_questions([questions])
    assert len(load_questions([questions], max_reject_fraction=1.0).questions) > 900
