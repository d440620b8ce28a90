"""Trainings in processes of their own, whole groups of which can be killed, at a fraction of the usual start.

All are forked from one server, a fork of the tests' own process when it has imported everything and computed
nothing.
"""

import gc
import logging
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import accelerate
import torch
from forced_units import force_units

import trainer.dpo
import trainer.pretrain
import trainer.sft
from dataset import command_line
from dataset.command_line import run
from trainer import training_state

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("trainer.loop", "trainer.dpo", "trainer.pretrain", "trainer.sft", "peft"),
        *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.algorithms.ddp_comm_hooks"),
        *("PIL.ImageFont", "PIL.PngImagePlugin", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    ]
)
EXECUTE = multiprocessing.util.spawnv_passfds
STANDARD_STREAMS = 3
MOST_SECONDS = 300
"""on a machine that others keep busy; two are usual"""


def start_server() -> None:
    """Fork the server from this process, where multiprocessing would start another that imports anew."""
    alone = patch.dict(os.environ, TOKENIZERS_PARALLELISM="false")  # its threads are not forked, and it warns
    with alone, patch("multiprocessing.util.spawnv_passfds", _fork):
        multiprocessing.forkserver.ensure_running()


def _fork(program: bytes, words: list[str], kept: list[int]) -> int:
    """Be told to execute `python … -c CODE` with some files open; fork and run the code."""
    if process := os.fork():
        return process
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    # Handlers are pytest's, or write where it caught output: to numbers of files that are others' now.
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in [*getattr(logger, "handlers", ())]:
            if not isinstance(handler, logging.NullHandler):  # without which lines go to stderr
                logger.removeHandler(handler)
    multiprocessing.util.spawnv_passfds = EXECUTE
    multiprocessing.forkserver._forkserver._lock.release()  # which the one who forked holds
    edges = sorted([STANDARD_STREAMS - 1, *kept, os.sysconf("SC_OPEN_MAX")])
    for before, after in pairwise(edges):
        os.closerange(before + 1, after)
    torch.set_num_threads(1)  # others are not forked, and would be waited for
    gc.freeze()  # what is collected in a fork is copied first
    try:
        exec(words[-1])
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


class Run:
    """A training of one or more processes in a process group of their own."""

    def __init__(
        self,
        log: Path,
        words: list[str],
        world: int = 1,
        sabotage: Callable[[int], None] | None = None,
        nodes: int = 1,
    ) -> None:
        """Start the trainer `words[0]`; each process calls `sabotage(rank)` before it."""
        self._log = log
        log.unlink(missing_ok=True)
        self._process = SERVER.Process(target=_lead, args=(log, words, world, nodes, _free_port(), sabotage))
        self._process.start()

    def kill(self) -> None:
        """Kill the group, which may have ended already."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to the main process alone."""
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = MOST_SECONDS) -> int | None:
        """Return the exit code of the main process; None if it still runs after the time."""
        self._process.join(seconds)
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What all processes have written."""
        return self._log.read_text()


def write_to(log: Path) -> None:
    """Let this process write into a file, after what others wrote."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _lead(log: Path, words: list[str], world: int, nodes: int, port: int, sabotage: Callable | None) -> None:
    """Be rank 0 and the head of the group; the other ranks are children."""
    os.setsid()
    write_to(log)
    rank = next((rank for rank in range(1, world) if os.fork() == 0), 0)
    command_line.PARENT = os.getppid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup would hand down that it is ignored
    force_units()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        here = world // nodes
        place = {"RANK": rank, "LOCAL_RANK": rank % here, "WORLD_SIZE": world, "MASTER_PORT": port}
        place |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": here}
        place |= {"TORCHELASTIC_RUN_ID": "nodes"} if nodes > 1 else {}
        os.environ |= {name: str(value) for name, value in place.items()}
    code = _train(words, rank, sabotage)
    others = [os.wait()[1] for _ in range(1, world)] if rank == 0 else []
    os._exit(code or any(others))


def _train(words: list[str], rank: int, sabotage: Callable | None) -> int:
    if sabotage:
        sabotage(rank)
    sys.argv = words
    try:
        run(getattr(trainer, words[0]).main, stdout_is_log=True)
    except SystemExit as end:
        return end.code
    finally:
        sys.stdout.flush()
    return 0


class KillInBackward:
    """Dies after a backward pass, alone or with its group."""

    def __init__(self, call: int, rank: int, alone: bool = False) -> None:
        """Name the pass, counted from 1 over all micro-batches, and who dies."""
        self.calls_left, self.rank, self.alone = call, rank, alone

    def __call__(self, rank: int) -> None:
        """Prepare the death of this process."""
        backward = accelerate.Accelerator.backward

        def dying(accelerator, loss):
            backward(accelerator, loss)
            self.calls_left -= 1
            if not self.calls_left and rank == self.rank:
                os.kill(os.getpid(), signal.SIGKILL) if self.alone else _kill_group()

        accelerate.Accelerator.backward = dying


class KillInSave:
    """Dies with its group when half of an optimizer's state is written."""

    def __init__(self, save: int) -> None:
        """Name the save, counted from 1."""
        self.saves_left = save

    def __call__(self, rank: int) -> None:
        """Prepare the death of this process."""
        write = training_state.write_tensors

        def dying(file, *contents):
            write(file, *contents)
            self.saves_left -= rank == 0
            if not self.saves_left:
                os.truncate(file, file.stat().st_size // 2)
                _kill_group()

        training_state.write_tensors = dying


class KillAtRename:
    """Dies with its group right before or after a checkpoint gets its name."""

    def __init__(self, name: str, after: bool) -> None:
        """Name the checkpoint."""
        self.name, self.after = name, after

    def __call__(self, rank: int) -> None:
        """Prepare the death of this process."""
        replace = os.replace

        def dying(source, target):
            is_it = Path(target).name == self.name
            if is_it and not self.after:
                _kill_group()
            replace(source, target)
            if is_it:
                _kill_group()

        os.replace = dying


def _kill_group() -> None:
    os.killpg(0, signal.SIGKILL)
