"""One cell at work: a command in a process group of its own, and the record that it leaves.

    cells/ADDRESS.json    the record of a finished cell: what was run, how long, and what came of it
    work/ADDRESS/         its folder: STAGE/ (what the command wrote), job.json, log.txt; done or failed.txt

A cell that was killed runs its command again, which goes on from what lies there.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TextIO

from dataset.printing import NOTE, prepare_streams, printable
from dataset.sources import check_unchanged
from eval.forks import Fork
from eval.records import ITEMS, NAMED, POINT, TRAINING, not_finite
from model.errors import UserError
from model.files import locked, own, write_json
from model.typed_json import read_as, read_file, read_lines
from trainer.provenance import provenance

PATIENCE_SECONDS = 60.0
"""how long a command may take to save and end after SIGTERM"""
LOOK_EVERY_SECONDS = 0.2
SAMPLES = 40
"""answers that a record keeps"""
AGAIN = "run the cell again"
CPU = "configs/accelerate/one_cpu.yaml"
ON_CPU = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
"""what the launcher sets by that file"""
JOB = {
    **{"cell": NAMED, "command": list[str], "record": str, "output": str},
    **{"threads": int, "measures": bool, "trains": bool, "files": dict[str, list[int]]},
}
"""job.json"""
MESSAGE = {"content": str}
ANSWERED = {"split": str, "messages": list[MESSAGE], "answers": list[str], "prediction": str}
"""a line of predictions.jsonl"""


def run_cell(folder: str, is_left: Callable[[], bool] = lambda: False, forks: bool = False) -> None:
    """Run the command of a cell to its record; raises `UserError` with its last words where it fails.

    One process at a time is at work in a folder: another one waits, and finds what it left. The command is
    stopped when `is_left` says that nobody waits for it; it may be a fork of this process.
    """
    place = Path(folder)
    job = read_file(JOB, place / "job.json", "start the experiment again")
    record, log, began = Path(job["record"]), place / "log.txt", time.monotonic()
    with locked(place, waits=True) as lock:
        if record.exists() and (place / "done").exists():
            return
        for former in ("failed.txt", "done"):
            (place / former).unlink(missing_ok=True)
        made_by = provenance()
        try:
            if status := _run(job, log, lock, is_left, forks):
                raise UserError(_last_words(log) or f"exit code {status}")
            _check_files(job)
            result = _result(job, Path(job["output"]), log)
        except (UserError, OSError) as error:
            raise _failed(place, str(error)) from None
        if "items" in result and (broken := not_finite(result["items"])):
            raise _failed(place, f"{broken} is not finite, as that of a training that diverged")
        if not record.exists():  # the one of another machine stays
            seconds = round(time.monotonic() - began, 1)
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, _record(job) | {"seconds": seconds, **made_by, "result": result}, indent=None)
        own(place / "done").touch()


def _check_files(job: dict[str, Any]) -> None:
    """Raise `UserError` where a file of the user's is no longer what the cell's address tells of it."""
    try:
        check_unchanged(job["files"])
    except UserError:
        shutil.rmtree(job["output"], ignore_errors=True)
        raise


def _run(job: dict[str, Any], log: Path, lock: int, is_left: Callable[[], bool], forks: bool) -> int:
    """Return the exit code of the command, which holds the lock too: it may outlive this process."""
    with open(own(log), "a", encoding="utf-8") as output:
        process = _started(job, output, lock, forks)
        try:
            while process.poll() is None:
                if is_left():
                    raise KeyboardInterrupt
                with suppress(subprocess.TimeoutExpired):  # comes back as soon as it ends
                    process.wait(LOOK_EVERY_SECONDS)
        finally:
            _stop(process)
    return process.poll()


def _started(job: dict[str, Any], output: TextIO, lock: int, forks: bool) -> subprocess.Popen | Fork:
    """Begin the command of a cell in a session of its own."""
    words, needed = _runnable(job["command"])
    needed = needed | {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    if forks:
        return Fork(words[1:], output, needed)
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
    session = {"env": os.environ | needed, "start_new_session": True, "pass_fds": (lock,)}
    return subprocess.Popen([sys.executable, *words], **streams, **session)


def _runnable(command: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return what this interpreter is to run, whatever the PATH says, and variables that it needs.

    For one process on a CPU the launcher of accelerate only sets variables, and takes seconds to import.
    """
    if command[0] != "accelerate":
        return command[1:], {}
    if command[3] == CPU:
        return command[4:], ON_CPU
    return ["-m", "accelerate.commands.launch", *command[2:]], {}


def _stop(process: subprocess.Popen | Fork) -> None:
    """Let what is left of a process group save and end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with suppress(ProcessLookupError, PermissionError):  # there is nothing left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(LOOK_EVERY_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)


def _last_words(log: Path) -> str:
    """Return the last line of a log that names an error, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    named = [line for line in lines if line.startswith("error: ")]
    return (named or lines or [""])[-1]


def _failed(place: Path, words: str) -> UserError:
    (place / "failed.txt").write_text(printable(words, keep="\n") + "\n", encoding="utf-8")
    return UserError(words)


def _record(job: dict[str, Any]) -> dict[str, Any]:
    named = {key: job["cell"][key] for key in NAMED}
    return named | {"command": shlex.join(job["command"]), "threads": job["threads"]}


def _result(job: dict[str, Any], output: Path, log: Path) -> dict[str, Any]:
    """Return what a command left, in small: scores of items, and what a training says of itself."""
    found: dict[str, Any] = {"notes": notes} if (notes := _notes(log)) else {}
    if job["trains"]:
        found["training"] = read_file(TRAINING, output / "summary.json", AGAIN)
        points = read_lines(partial(read_as, POINT), output / "metrics.jsonl", AGAIN)
        kept = [key.removesuffix("?") for key in POINT]
        found["curve"] = [{key: point[key] for key in kept if key in point} for point in points]
    if job["measures"]:
        found["items"] = read_file(ITEMS, output / "items.json", AGAIN)
        found["said"] = list(_said(output / "predictions.jsonl"))
    return found


def _notes(log: Path) -> list[str]:
    lines = dict.fromkeys(log.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [line.removeprefix(NOTE) for line in lines if line.startswith(NOTE)]


def _said(file: Path) -> Iterator[dict[str, Any]]:
    """Yield some of the answers of an evaluation, the same questions whatever the model."""
    lines = read_lines(partial(read_as, ANSWERED), file, AGAIN) if file.exists() else []
    for each in lines[:: max(1, len(lines) // SAMPLES)]:
        asked = "\n".join(message["content"] for message in each["messages"])
        names = {"task": each["split"], "question": asked, "expected": each["answers"]}
        yield names | {"answer": each["prediction"]}


def run_until_left(folder: str, forks: bool = False) -> None:
    """Run a cell, as a process of its own, for as long as the one that started it is there."""
    starter, parent = parent_process(), os.getppid()  # of a fork, the parent is the server, which stays
    stops: list[int] = []

    def stop(number: int, *_: object) -> None:
        stops.append(number)  # where what it raises is lost, as in what Python calls on its own after a fork
        raise KeyboardInterrupt

    def is_left() -> bool:
        return bool(stops) or os.getppid() != parent or bool(starter and not starter.is_alive())

    signal.signal(signal.SIGTERM, stop)
    try:
        run_cell(folder, is_left, forks)
    except (UserError, OSError, KeyboardInterrupt):
        sys.exit(1)  # failed.txt says why, where it can be written


if __name__ == "__main__":
    prepare_streams()
    run_until_left(sys.argv[1])
