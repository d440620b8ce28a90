"""Operating systems that lack what Linux has, and commands that are started in another way than ours."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_imports import COMMANDS, ROOT

from model.systems import num_cores
from trainer import device


def command(words: list[str], cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("missing", ["fcntl", "resource"])
@pytest.mark.parametrize(
    "name", ["scripts.build_world", "scripts.chat", "scripts.train_tokenizer", "trainer.sft"]
)
def test_windows_is_told_in_one_line_which_systems_work(name, missing, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
    done = command(["-m", name, "--help"], PYTHONPATH=str(tmp_path))
    line = "error: Sightline needs Linux or macOS; on Windows run it in WSL (wsl --install)\n"
    assert (done.stderr, done.stdout, done.returncode) == (line, "", 2)


def test_where_the_system_does_not_say_which_cores_are_ours_all_are(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 3})
    assert num_cores() == 2
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert num_cores() == 5


def test_work_is_waited_for_on_every_kind_of_device(monkeypatch):
    waited = []
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(f"torch.{kind}.synchronize", lambda *_, kind=kind: waited.append(kind))
        device.finish(torch.device(kind))
    device.finish(torch.device("cpu"))
    assert waited == ["cuda", "mps"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if " " not in name])
def test_a_file_that_is_started_by_its_path_says_how_to_start_it(name, tmp_path):
    file = ROOT / f"{name.replace('.', '/')}.py"
    done = command([str(file)], cwd=tmp_path)
    line = f"error: run python -m {name} from the repository root\n"
    assert (done.stderr, done.stdout, done.returncode) == (line, "", 2)
