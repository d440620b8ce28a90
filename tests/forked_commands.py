"""Commands of ours as processes of their own that begin with their imports done, as forks."""

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from forked_runs import SERVER

from dataset import command_line

ROOT = Path(__file__).parent.parent
MOST_SECONDS = 120


def begin(
    words: Sequence[str], streams: Sequence[Path | str | None], folder: Path = ROOT, **variables: str
) -> BaseProcess:
    """Begin `python -m WORDS` in a session of its own, streams to these files; None is closed."""
    process = SERVER.Process(target=_be, args=(list(words), streams, folder, variables))
    process.start()
    return process


def call(
    words: Sequence[str], said: str = "", folder: Path = ROOT, closed: int | None = None, **variables: str
) -> CompletedProcess[str]:
    """Run `python -m WORDS` to its end, one of its streams perhaps closed."""
    with TemporaryDirectory() as kept:
        files = [Path(kept, name) for name in ("stdin", "stdout", "stderr")]
        for file, text in zip(files, (said, "", ""), strict=True):
            file.write_bytes(text.encode())
        streams = [None if number == closed else file for number, file in enumerate(files)]
        process = begin(words, streams, folder, **variables)
        process.join(60)
        process.kill()
        assert process.exitcode is not None, "it takes too long"
        shown = [file.read_bytes().decode() for file in files[1:]]
        return CompletedProcess(words, process.exitcode, *shown)


def _be(
    words: list[str], streams: Sequence[Path | str | None], folder: Path, variables: dict[str, str]
) -> None:
    os.setsid()
    signal.alarm(MOST_SECONDS)  # nothing outlives a test that failed for long
    for number, file in enumerate(streams):
        if file is None:
            os.close(number)
        else:
            opened = os.open(file, os.O_RDWR | os.O_APPEND)
            os.dup2(opened, number)
            os.close(opened)
    modes = ({"mode": "r"}, {"mode": "w"}, {"mode": "w", "errors": "backslashreplace", "buffering": 1})
    for number, (name, mode) in enumerate(zip(("stdin", "stdout", "stderr"), modes, strict=True)):
        is_closed = streams[number] is None
        stream = None if is_closed else open(number, encoding="utf-8", closefd=False, **mode)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    _run(words, folder, variables)


def _run(words: list[str], folder: Path, variables: dict[str, str]) -> None:
    """Do what `python -m WORDS` does."""
    os.chdir(folder)
    os.environ.update(variables)
    command_line.PARENT = os.getppid()
    sys.argv = words
    sys.modules.pop(words[0], None)  # a module that is imported already runs with a warning only
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
