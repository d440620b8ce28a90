"""Many processes at one function: results in order, little in memory, nothing left behind."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from model.errors import UnfinishedError
from model.systems import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_BYTES_WAITING = 2**26


def num_processes(asked: int, num_jobs: int | None) -> int:
    """Return how many processes are worth while: one for each core where none are asked for."""
    available = asked or num_cores()
    return max(1, available if num_jobs is None else min(available, num_jobs))


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int, size: Callable[[Item], int]
) -> Iterator[Result]:
    """Yield `function(item)` for each item in order; at most 64 MB of items are in other processes.

    A larger one is not sent to another, where it would lie twice.
    Raises what `function` raises, and `UnfinishedError` if a process dies.
    """
    if processes == 1:
        yield from map(function, items)
        return
    waiting: deque[tuple[Future[Result], int]] = deque()
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin_process)
    try:
        for item in items:
            num_bytes = size(item)
            while waiting and (
                len(waiting) > 2 * processes or num_bytes + sum(n for _, n in waiting) > MOST_BYTES_WAITING
            ):
                yield waiting.popleft()[0].result()
            if num_bytes > MOST_BYTES_WAITING:
                yield function(item)
            else:
                waiting.append((pool.submit(function, item), num_bytes))
        while waiting:
            yield waiting.popleft()[0].result()
    except BrokenProcessPool:
        raise UnfinishedError(
            "a process died, out of memory? The same command goes on; --num_workers 1 takes less"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """Leave Ctrl-C to the first process, one core to each, and end when the first process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)
