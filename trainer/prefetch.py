"""What the loop will need next, made ahead in a thread."""

from collections.abc import Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
ITEMS_AHEAD = 2
PATIENCE_SECONDS = 0.1
"""how long the thread waits for room before it looks whether anybody still wants items"""


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """Pass items on in their order, made up to `ITEMS_AHEAD` ahead in a thread.

    What goes wrong in the thread is raised here, after the items before it. The thread ends when the
    receiver does.
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(ITEMS_AHEAD)
    is_over = Event()
    Thread(target=_produce, args=(items, queue, is_over), daemon=True).start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        is_over.set()


def _produce(items: Iterator[Item], queue: Queue, is_over: Event) -> None:
    error = None
    while error is None and not is_over.is_set():
        item = None
        try:
            item = next(items)
        except BaseException as caught:
            error = caught
        while not is_over.is_set():
            try:
                queue.put((item, error), timeout=PATIENCE_SECONDS)
                break
            except Full:
                continue
