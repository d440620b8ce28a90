"""What ends a training and what does not: signals, launchers, streams, full disks, lost processes."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import math
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from forked_runs import KillInBackward, Run
from safetensors.torch import load_file, save_file
from test_imports import ROOT
from training_runs import SHAPE, SHORT, after_step, data, init, line, metrics, pretrain, run_trainer

import trainer.pretrain
from dataset import command_line
from dataset.tokenizer import Tokenizer
from model.checkpoint import load_checkpoint
from model.errors import UserError
from trainer.loop import Training

REAL = {
    "accelerate launch": "accelerate.commands.launch --config_file configs/accelerate/one_cpu.yaml",
    "torchrun": "torch.distributed.run --standalone --nproc_per_node 2",
}


@pytest.fixture
def words(data, tmp_path) -> list[str]:
    """The flags of a training without an end."""
    places = {"--data": data / "pretrain", "--out": tmp_path / "run", "--max_steps": 10**6}
    return line(places | SHAPE | SHORT | {"--dtype": "float32", "--compile": "never"})


def start(log: Path, *command: str) -> subprocess.Popen:
    """Start a process in a session of its own, of which no shell and no terminal of the tests knows."""
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with open(log, "w") as out:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in the background
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


def by_a_shell_that_ends(rank: int) -> None:
    """Be a shell that starts the training under nohup, and end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if trainer := os.fork():
        print(trainer, flush=True)
        os._exit(0)


def test_a_training_under_nohup_outlives_terminal_and_shell(words, tmp_path):
    log, out = tmp_path / "log", tmp_path / "run"
    shell = Run(log, ["pretrain", *words], sabotage=by_a_shell_that_ends)
    assert shell.wait(60) == 0
    trainer = int(log.read_text().split()[0])
    wait_for_steps(out)
    os.kill(trainer, signal.SIGHUP)
    size = (out / "metrics.jsonl").stat().st_size
    wait_until(lambda: (out / "metrics.jsonl").stat().st_size > size + 2000)
    os.kill(trainer, signal.SIGTERM)
    wait_until(lambda: is_free(out))
    assert_saved(out, log)


def by_a_launcher(rank: int) -> None:
    """Be a launcher: wait for the training that goes on as its child."""
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "NO"
    if trainer := os.fork():
        os.waitpid(trainer, 0)
        os._exit(0)
    command_line.PARENT = os.getppid()


def test_a_training_whose_launcher_was_killed_saves_and_ends(words, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    launcher = Run(log, ["pretrain", *words], sabotage=by_a_launcher)
    wait_for_steps(out)
    launcher.signal(signal.SIGKILL)
    assert launcher.wait(60) == -signal.SIGKILL
    wait_until(lambda: is_free(out))
    assert_saved(out, log)
    assert "the launcher is gone" in log.read_text()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("launcher", REAL)
def test_a_training_without_its_launcher_saves_and_ends(launcher, number, words, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start(log, "-m", *REAL[launcher].split(), "-m", "trainer.pretrain", *words)
    wait_for_steps(out)
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: is_free(out))
    assert_saved(out, log)


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


FLAGS = ["--max_steps", 6, "--save_every_steps", 2]
WHOLE = "step-00000004 is whole, and the same command continues from there"


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run to which nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "run"
    places = {"--data": data / "pretrain", "--out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pretrain", *line(places | SHAPE | SHORT, *FLAGS)])
        trainer.pretrain.main()
    return out


@pytest.fixture
def stopped(pretrain, tmp_path) -> Path:
    """A run that was stopped after its fourth step."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        after_step(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(tmp_path / "run", *FLAGS)
    return tmp_path / "run"


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; skips the test where that is forbidden."""
    (place := tmp_path / "disk").mkdir()
    mount(place, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def mount(place: Path, *options: str) -> None:
    try:
        subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk is forbidden here: {error}")


def assert_goes_on(train, out: Path, whole: Path) -> None:
    """The last save is whole, nothing unfinished lies about, and the same command ends as if nothing was."""
    load_checkpoint(out)
    load_checkpoint(out / "checkpoints" / (out / "latest").read_text())
    assert not [entry for entry in out.rglob("*") if "partial" in entry.name or entry.suffix == ".tmp"]
    train(out, *FLAGS)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(whole)


# what does not fit: the metrics, the weights, the state of the optimizer, the copy of the weights
@pytest.mark.parametrize("room", [1_000, 60_000, 250_000, 550_000])
def test_a_full_disk_costs_one_save(pretrain, stopped, disk, whole, room):
    out, filler = disk / "run", disk / "filler"
    shutil.copytree(stopped, out)
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
    with pytest.raises(UserError, match=f"No space left on device.*{WHOLE}"):
        pretrain(out, *FLAGS)
    filler.unlink()
    assert_goes_on(pretrain, out, whole)


@pytest.mark.parametrize("most_bytes", [100_000, 200_000])  # of the weights, of the state of the optimizer
def test_a_file_that_grows_too_large_costs_one_save(pretrain, stopped, whole, most_bytes):
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, former[1]))
    try:
        with pytest.raises(UserError, match=f"File too large.*{WHOLE}"):
            pretrain(stopped, *FLAGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert_goes_on(pretrain, stopped, whole)


def test_a_folder_that_cannot_be_written_is_refused(pretrain, stopped, disk, whole):
    out = disk / "run"
    shutil.copytree(stopped, out)
    mount(disk, "-o", "remount,ro")
    with pytest.raises(UserError, match=f"--out {disk}/new cannot be made in {disk}; choose a folder"):
        pretrain(disk / "new", *FLAGS)
    with pytest.raises(UserError, match=f"--out {out} cannot be written; make it writable, or choose"):
        pretrain(out, *FLAGS)
    mount(disk, "-o", "remount,rw")
    assert_goes_on(pretrain, out, whole)


@pytest.mark.parametrize("name", ["ids-00000.bin", "lengths-00000.bin", "manifest.json", "tokenizer"])
@pytest.mark.parametrize("fate", ["vanished", "shortened"])
def test_data_that_was_damaged_is_named_before_anything_is_done(
    pretrain, stopped, data, whole, tmp_path, name, fate
):
    victim = shutil.copytree(data / "pretrain", tmp_path / "store") / name
    if fate == "vanished":
        victim.rename(tmp_path / name)
    else:
        file = victim / "tokenizer.json" if victim.is_dir() else victim
        os.truncate(file, file.stat().st_size // 2)
    before = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    for out in (tmp_path / "new", stopped):
        with pytest.raises(UserError, match=f"{victim}|{victim.parent} holds no|no token store in"):
            pretrain(out, *FLAGS, "--data", tmp_path / "store")
    assert not (tmp_path / "new").exists()
    assert before == {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    assert_goes_on(pretrain, stopped, whole)


def test_a_store_that_is_deleted_while_it_is_read_costs_no_checkpoint_its_tokenizer(
    pretrain, data, whole, tmp_path, monkeypatch
):
    store = shutil.copytree(data / "pretrain", tmp_path / "store")
    after_step(monkeypatch, 1, lambda: shutil.rmtree(store))
    pretrain(tmp_path / "run", *FLAGS, "--data", store)
    for folder in (tmp_path / "run", *(tmp_path / "run/checkpoints").iterdir()):
        assert Tokenizer.load(folder).fingerprint == Tokenizer.load(data / "tokenizer").fingerprint
    files = {file.name: file.read_bytes() for file in whole.iterdir() if "token" in file.name}
    assert files and files == {name: (tmp_path / "run" / name).read_bytes() for name in files}
    assert metrics(tmp_path / "run") == metrics(whole)


def test_a_weight_that_is_not_a_number_is_not_saved(pretrain, stopped, whole, monkeypatch):
    update = Training._update

    def planting(training, batch):
        next(training.model.parameters()).data[0, 0] = math.nan
        return update(training, batch)

    monkeypatch.setattr(Training, "_update", planting)
    with pytest.raises(UserError, match=f"the weights are no longer finite and are not saved; .*{WHOLE}"):
        pretrain(stopped, *FLAGS)
    monkeypatch.setattr(Training, "_update", update)
    assert_goes_on(pretrain, stopped, whole)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on(pretrain, stopped, whole):
    file = stopped / "checkpoints/step-00000004/model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, file)
    with pytest.raises(UserError, match="step-00000004 is damaged .*write the name of an earlier one into"):
        pretrain(stopped, *FLAGS)
    (stopped / "latest").write_text("step-00000002")
    assert_goes_on(pretrain, stopped, whole)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_process_whose_partner_was_killed_ends_with_one_line(data, init, tmp_path, victim):
    out = tmp_path / "run"
    places = {"--data": data / "sft", "--init": init, "--out": out}
    words = ["sft", *line(places | SHORT, *FLAGS, "--batch_size", 2)]
    run = Run(tmp_path / "log", words, 2, KillInBackward(call=4, rank=victim, alone=True))
    assert run.wait() == (2 if victim == 1 else -signal.SIGKILL)
    deadline = time.monotonic() + 20
    while "error: another process" not in run.output and time.monotonic() < deadline:
        time.sleep(0.05)
    errors = run.output[run.output.index("error:") :]
    assert errors.count("\n") == 1 and "step-00000002 is whole, and the same command continues" in errors
    again = Run(tmp_path / "log", words, 2)
    assert again.wait() == 0, again.output
    load_checkpoint(out)


def test_a_second_signal_ends_at_once(pretrain, whole, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("trainer.stopping.LAUNCHER_SECONDS", -1)
    end_of_step(monkeypatch, 3, times=2)
    with pytest.raises(SystemExit) as caught:
        pretrain(tmp_path / "run", *FLAGS)
    assert caught.value.code == 128 + signal.SIGTERM
    first, second = capfd.readouterr().err.splitlines()
    assert first == "SIGTERM: finishing this step, then saving; once more ends at once"
    assert second == "SIGTERM again: ended at once; the same command continues from the last save"
    assert (tmp_path / "run/latest").read_text() == "step-00000002"
    assert_goes_on(pretrain, tmp_path / "run", whole)


def test_a_signal_that_a_launcher_passes_on_counts_once(pretrain, whole, tmp_path, monkeypatch):
    end_of_step(monkeypatch, 3, times=2)
    with pytest.raises(SystemExit):
        pretrain(tmp_path / "run", *FLAGS)
    assert (tmp_path / "run/latest").read_text() == "step-00000003"
    assert_goes_on(pretrain, tmp_path / "run", whole)


def end_of_step(monkeypatch, step: int, times: int) -> None:
    """Let SIGTERM come after a step."""

    def act() -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGTERM)

    after_step(monkeypatch, step, act)
