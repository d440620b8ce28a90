import json
import sys

import pytest

from model.errors import UserError
from scripts.bench.__main__ import main
from scripts.bench.measuring import measure


def test_the_bench_of_data_measures_every_step(tmp_path, monkeypatch, capsys):
    turns = [{"role": "user", "content": "法国 1"}, {"role": "assistant", "content": "巴黎 2"}]
    (tmp_path / "a.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 3)
    sizes = [
        "--size",
        "1",
        "--slice_size",
        "1",
        "--rounds",
        "1",
        "--batch_seconds",
        "0",
        "--vocab_size",
        "280",
    ]
    flags = ["--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), *sizes]
    monkeypatch.setattr("sys.argv", ["bench", "data", *flags])
    monkeypatch.setattr("scripts.bench.data.MEGABYTE", 2000)
    main()
    table = capsys.readouterr().out
    lines = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.json"]
    assert {line["name"] for line in lines} >= {"train_tokenizer", "prepare_data", "batches"}
    assert all(line["name"] in table and line["seconds"] > 0 and line["documents"] > 0 for line in lines)


def test_a_command_that_fails_says_why():
    with pytest.raises(UserError, match="bad luck"):
        measure([sys.executable, "-c", "raise SystemExit('bad luck')"])


def test_memory_of_child_processes_counts():
    child = "import time; x = bytearray([1]) * 2**27; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 2**27 < measure([sys.executable, "-c", parent]).peak_bytes < 2**28


def test_an_unknown_subject_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "nothing"])
    with pytest.raises(SystemExit):
        main()
    assert "expected what to measure (data), got nothing" in capsys.readouterr().err
