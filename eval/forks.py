"""Commands that begin with their imports done, as forks of a process that imported what most of them need.

Importing torch takes seconds, as long as many a cell of a small experiment computes.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from typing import Any, TextIO
from unittest.mock import patch

from dataset import command_line
from dataset.printing import show_traceback

IMPORTS = ["trainer.loop", "trainer.setup", "eval.evaluation", "dataset.preparation", "matplotlib.figure"]
ON_IMPORT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""what libraries read when they are imported"""
CAN_FORK = sys.platform == "linux"  # elsewhere libraries of the system do not survive it


def start(work: Callable[..., None], *inputs: Any) -> BaseProcess:
    """Call `work` in a process of its own, which a third one forks: in this one nothing is imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with patch.dict(os.environ, ON_IMPORT):
        ensure_running()
    process = context.Process(target=_call, args=(os.getcwd(), dict(os.environ), work, inputs))
    process.start()
    return process


def _call(folder: str, variables: dict[str, str], work: Callable[..., None], inputs: tuple[Any, ...]) -> None:
    """Call `work` where and with what `start` was called, in a session of its own."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with _showing_mistakes():
        work(*inputs)


class Fork:
    """`python -m …` in a fork of this process; has what is used of `subprocess.Popen`."""

    def __init__(self, words: list[str], output: TextIO, variables: dict[str, str]) -> None:
        """Begin, in a process group of its own, what is printed going to `output`."""
        context = get_context("fork")
        self._process = context.Process(target=_run_module, args=(words, output, variables))
        self._process.start()
        self.pid = self._process.pid
        with suppress(ProcessLookupError):  # the fork does so, too; whoever is first, it can be stopped now
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """Return the exit code, None where there is none yet."""
        return self._process.exitcode

    def wait(self, seconds: float) -> None:
        """Come back when the command has ended, or after a while."""
        self._process.join(seconds)


def _run_module(words: list[str], output: TextIO, variables: dict[str, str]) -> None:
    import torch

    os.setpgid(0, 0)
    for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output.fileno()), (2, output.fileno())):
        os.dup2(file, stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(variables)
    command_line.PARENT = os.getppid()
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = words
    with _showing_mistakes():
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


@contextmanager
def _showing_mistakes() -> Iterator[None]:
    """Show a mistake as a command by itself does: `multiprocessing` shows foreign text in it as it is."""
    try:
        yield
    except Exception as error:
        show_traceback(error)
        sys.exit(1)
