"""What ends a training and what does not: signals, launchers, streams; all with real processes."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from forked_runs import Run
from test_imports import ROOT
from training_runs import SHAPE, SHORT, data, line

from model.checkpoint import load_checkpoint

LAUNCHER = """
import os, subprocess, sys
os.environ["ACCELERATE_DYNAMO_BACKEND"] = "NO"
subprocess.Popen([sys.executable, "-m", "trainer.pretrain", *sys.argv[1:]]).wait()
"""
REAL = {
    "accelerate launch": "accelerate.commands.launch --config_file configs/accelerate/one_cpu.yaml",
    "torchrun": "torch.distributed.run --standalone --nproc_per_node 2",
}


@pytest.fixture
def words(data, tmp_path) -> list[str]:
    """The flags of a training without an end."""
    places = {"--data": data / "pretrain", "--out": tmp_path / "run", "--max_steps": 10**6}
    return line(places | SHAPE | SHORT | {"--dtype": "float32", "--compile": "never"})


def start(log: Path, *command: str, before=None) -> subprocess.Popen:
    """Start a process in a session of its own, of which no shell and no terminal of the tests knows."""
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with open(log, "w") as out:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=out,
            preexec_fn=before,
            start_new_session=True,
        )


def wait_until(is_so, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_steps(out: Path) -> None:
    wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 500)


def is_free(out: Path) -> bool:
    """Whether the training has ended: what it held is no longer locked."""
    import fcntl

    with open(out / ".lock", "a") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def assert_saved(out: Path, log: Path) -> None:
    assert (out / "latest").exists() and load_checkpoint(out)
    assert "stopped and saved after step" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_lost_terminal_and_a_warning_of_slurm_save(number, words, tmp_path):
    run = Run(tmp_path / "log", ["pretrain", *words])
    wait_for_steps(tmp_path / "run")
    run.signal(number)
    assert run.wait(60) == 128 + number
    assert_saved(tmp_path / "run", tmp_path / "log")


def test_a_training_under_nohup_outlives_terminal_and_shell(words, tmp_path):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - as nohup does
    shell = "import subprocess, sys; print(subprocess.Popen([sys.executable, *sys.argv[1:]]).pid, flush=True)"
    log, out = tmp_path / "log", tmp_path / "run"
    assert start(log, "-c", shell, "-m", "trainer.pretrain", *words, before=ignore).wait(60) == 0
    trainer = int(log.read_text().split()[0])
    wait_for_steps(out)
    os.kill(trainer, signal.SIGHUP)
    size = (out / "metrics.jsonl").stat().st_size
    wait_until(lambda: (out / "metrics.jsonl").stat().st_size > size + 2000)
    os.kill(trainer, signal.SIGTERM)
    wait_until(lambda: is_free(out))
    assert_saved(out, log)


def check_orphan(tmp_path: Path, number: int, *command: str) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    launcher = start(log, *command)
    wait_for_steps(out)
    launcher.send_signal(number)
    launcher.wait(60)
    wait_until(lambda: is_free(out))
    assert_saved(out, log)


def test_a_training_whose_launcher_was_killed_saves_and_ends(words, tmp_path):
    check_orphan(tmp_path, signal.SIGKILL, "-c", LAUNCHER, *words)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("launcher", REAL)
def test_a_training_without_its_launcher_saves_and_ends(launcher, number, words, tmp_path):
    check_orphan(tmp_path, number, "-m", *REAL[launcher].split(), "-m", "trainer.pretrain", *words)


def without_reader(rank: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def without_room(rank: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def without_utf8(rank: int) -> None:
    sys.stdout.reconfigure(encoding="latin-1")


def without_terminal(rank: int) -> None:
    """A terminal, with a bar, that goes away after the first lines."""
    ours, theirs = pty.openpty()
    os.dup2(theirs, 1)
    os.close(theirs)
    Thread(target=lambda: (os.read(ours, 1000), os.close(ours))).start()


@pytest.mark.parametrize("fate", [without_reader, without_room, without_utf8, without_terminal])
def test_no_line_that_cannot_be_printed_ends_a_training(fate, data, tmp_path):
    places = {"--data": data / "pretrain", "--out": tmp_path / "run", "--max_steps": 4}
    words = line(
        places | SHAPE | SHORT | {"--sample_prompts": "家"}, "--samples", 2, "--validate_every_steps", 2
    )
    run = Run(tmp_path / "log", ["pretrain", *words], sabotage=fate)
    assert run.wait() == 0, run.output
    assert '"finished": true' in (tmp_path / "run/summary.json").read_text()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4
    assert fate is not without_utf8 or "sample     \\u5bb6" in run.output
