"""The thread that computes: answers of several models, each in a running batch that others may join.

Everything of a model is touched by this one thread; what is asked and answered passes through queues.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple

from torch import Tensor

from dataset.printing import show_traceback
from eval.answer_text import AnswerText
from eval.served_model import ServedModel
from model.errors import in_a_line
from model.generator import Generator
from model.prefix_cache import PrefixCache, SharingBatch
from model.sampling import Answer

PREFILL_TOKENS = 512
"""tokens of prompts that join in one step, where the first is not longer by itself: what others wait for"""


class Token(NamedTuple):
    """A token of an answer with its log-probability, and the most probable ones in its place."""

    id: int
    log_probability: float
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """What a step adds to an answer: whole characters, often none, and the token."""

    text: str
    tokens: tuple[Token, ...]


@dataclass(eq=False)
class Job:
    """An answer that somebody waits for."""

    answer: Answer
    text: AnswerText
    top: int | None = None
    """how many of the most probable tokens are wanted beside each; None = no log-probabilities"""
    on_change: Callable[[], None] = lambda: None
    """called, in the thread of the engine, when there is more"""
    is_cancelled: bool = False
    """set by whoever does not want it any more"""
    error: str | None = None
    """why there is no answer, in a line"""
    is_done: bool = False
    _pieces: deque[Piece] = field(default_factory=deque)

    def take(self) -> list[Piece]:
        """Return what came since the last call."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def add(self, logits: Tensor) -> None:
        """Note what the answer has become by a token that was chosen from `logits` (V,)."""
        is_done = self.answer.finish_reason is not None
        text = self.text.take() + (self.text.finish() if is_done else "")
        has_token = self.answer.finish_reason != "stop"
        self._pieces.append(Piece(text, (self._token(logits),) if has_token else ()))
        if is_done:
            self.end()

    def cancel(self) -> None:
        """Say, from any thread, that nobody waits for it any more."""
        self.is_cancelled = True

    def end(self, error: str | None = None) -> None:
        """Let nobody wait any longer."""
        self.error, self.is_done = error, True

    def _token(self, logits: Tensor) -> Token:
        token_id = self.answer.ids[-1]
        if self.top is None:
            return Token(token_id, 0.0, ())
        scores = logits.float().log_softmax(-1)
        best = scores.topk(min(self.top, len(scores)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Token(token_id, float(scores[token_id]), tuple(top))


class Lane:
    """The answers of one model: those that go on, in a batch, and those that wait for a row."""

    def __init__(self, served: ServedModel, batch_size: int, prefix_bytes: int) -> None:
        self.served, self.batch_size = served, batch_size
        self.generator: Generator = served.generator()
        self.prefixes = PrefixCache(prefix_bytes)
        self.batch = SharingBatch(self.generator, self.prefixes)
        self.waiting: deque[Job] = deque()
        self.going: dict[Answer, Job] = {}

    @property
    def has_work(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self.waiting or self.going)

    def step(self) -> list[Job]:
        """Let jobs join, or decode a token of all others; return those for which something changed."""
        self._let_go()
        fresh = self._fresh()
        jobs = fresh or [*self.going.values()]
        self.going |= {job.answer: job for job in fresh}
        try:
            for answer, logits in self.batch.step([job.answer for job in fresh]):
                self.going[answer].add(logits)
        except Exception as error:  # of memory or of ours: the others are answered all the same
            if (line := in_a_line(error)) is None:
                show_traceback(error)
            for job in jobs:
                job.answer.finish_reason = "cancelled"
                job.end(line or "the model could not be computed; the server's log says more")
        self.going = {answer: job for answer, job in self.going.items() if not job.is_done}
        if not self.going:
            self.batch.step()  # empties the cache
        return jobs

    def _let_go(self) -> None:
        """Drop the jobs that nobody wants any more."""
        self.waiting = deque(job for job in self.waiting if not job.is_cancelled)
        for answer, job in list(self.going.items()):
            if job.is_cancelled:
                answer.finish_reason = "cancelled"
                del self.going[answer]

    def _fresh(self) -> list[Job]:
        """Take the jobs that join now: as many as there are rows, but not more than a moment's work."""
        fresh, tokens = [], 0
        while self.waiting and len(self.going) + len(fresh) < self.batch_size:
            tokens += len(self.waiting[0].answer.prompt.ids)
            if fresh and tokens > PREFILL_TOKENS:
                break
            fresh.append(self.waiting.popleft())
        return fresh


class Engine:
    """Computes a step of each model in turn, as long as somebody waits for its answers.

    with Engine(lanes) as engine:
        engine.submit("sft-prefix", [job])
    """

    def __init__(self, lanes: dict[str, Lane]) -> None:
        self.lanes = lanes
        self._inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)

    def __enter__(self) -> "Engine":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave off, whoever waits, and end the thread."""
        self._inbox.put(lambda: setattr(self, "_is_open", False))
        self._thread.join()

    def submit(self, model: str, jobs: Sequence[Job]) -> None:
        """Let a model answer; `on_change` of each job tells when there is more."""
        self._inbox.put(lambda: self.lanes[model].waiting.extend(jobs))

    def call(self, work: Callable[[], object]) -> Future:
        """Return what `work` will return in the thread of the engine, between two steps."""
        future: Future = Future()

        def answer() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # the caller's
                future.set_exception(error)

        self._inbox.put(answer)
        return future

    def _run(self) -> None:
        while self._is_open:
            for work in self._arrived():
                work()
            for lane in self.lanes.values():
                if lane.has_work:
                    _tell(lane.step())
        for lane in self.lanes.values():
            for job in [*lane.waiting, *lane.going.values()]:
                job.end("the server is being shut down")
                _tell([job])

    def _arrived(self) -> Iterator[Callable[[], object]]:
        """Yield what has been put into the inbox; wait for it where there is nothing else to do."""
        if not any(lane.has_work for lane in self.lanes.values()):
            yield self._inbox.get()
        while not self._inbox.empty():
            yield self._inbox.get()


def _tell(jobs: Iterable[Job]) -> None:
    for tell in {job.on_change for job in jobs}:
        tell()
