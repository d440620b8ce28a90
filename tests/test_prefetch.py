"""Items made ahead in a thread: all of them, in order, with their errors."""

import threading
import time

import pytest

from trainer.loop import ITEMS_AHEAD, prefetched


def wait_for(claim) -> None:
    deadline = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_items_pass_through_in_their_order():
    assert list(prefetched(iter(range(50)))) == list(range(50))


def test_items_are_made_ahead_and_not_too_far():
    made = []
    items = prefetched(made.append(number) or number for number in range(50))
    assert next(items) == 0
    wait_for(lambda: len(made) == 1 + ITEMS_AHEAD)  # that which was taken, and those between
    time.sleep(0.05)
    assert len(made) == 1 + ITEMS_AHEAD


def test_an_error_is_raised_to_the_receiver_after_the_items_before_it():
    def broken():
        yield 1
        yield 2
        raise OSError("disk gone")

    items, seen = prefetched(broken()), []
    with pytest.raises(OSError, match="disk gone"):
        for item in items:
            seen.append(item)
    assert seen == [1, 2]


def test_the_thread_ends_with_its_receiver():
    others = set(threading.enumerate())
    items = prefetched(iter(range(10**9)))
    next(items)
    (thread,) = set(threading.enumerate()) - others
    items.close()
    wait_for(lambda: not thread.is_alive())
