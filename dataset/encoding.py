"""From a block of a source to documents in tokens: the part of a preparation that other processes do."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from io import StringIO
from itertools import chain, compress
from multiprocessing import get_context, parent_process
from typing import Any, NamedTuple, TypeVar

import numpy as np

import dataset.formats as formats
from dataset.batch_settings import Kind
from dataset.blocks import BLOCK_BYTES, Block
from dataset.chat_form import OURS, Message
from dataset.conversation import Rendered, Renderer
from dataset.messages import LeftOutError, held_keys, read_text
from dataset.preferences import parse_pair, unread_of_bad
from dataset.records import Rejects, accept, records_of, text_key
from dataset.text_files import Marks, ReadingSettings
from dataset.token_store import Part
from dataset.tokenizer import Tokenizer
from dataset.unread_keys import dropped, note, noting, unread_keys
from model.errors import UnfinishedError, UserError

AFTER_TARGETS = "messages after the last answer with loss"
MOST_BYTES_WAITING = 2**26
MOST_WORKERS = 2**10
Item = TypeVar("Item")
Result = TypeVar("Result")
Together = tuple[list[Message], ...]
"""the messages of a document, or of the documents of a pair"""


@dataclass(frozen=True)
class PreparationSettings(ReadingSettings):
    """What `scripts.prepare_data` is asked for."""

    kind: Kind
    """pretrain: texts; sft: conversations; preference: pairs of a chosen and a rejected answer"""
    data: tuple[str, ...]
    """files (.jsonl .json .txt, each also packed as .gz .zst .bz2 .xz, .parquet), folders, globs,
    hub:name[:config][:split]"""
    tokenizer: str
    """tokenizer directory"""
    out: str
    """token store to write"""
    format: formats.ChatFormat | None = None
    """chat format of the records (not of texts); each file's first record tells it otherwise"""
    columns: tuple[str, ...] = ()
    """keys of the records by our names: question=prompt answer=response (not of texts)"""
    preference: formats.Preference | None = None
    """chosen: train on the good answers of preference data, which is refused otherwise (sft)"""
    question_position: formats.QuestionPosition = "last"
    """where the question stands in records of context, question and answers (not of texts)"""
    weights: tuple[float, ...] = ()
    """how often each of --data is stored: 2 twice, 0.5 a half of its documents; once by default"""
    validation_fraction: float = 0.0
    """share of the documents to keep apart in OUT/validation; more data moves none from side to side"""
    num_workers: int = 0
    """processes that encode; 0 = one for each core"""

    def __post_init__(self) -> None:
        """Check what no type can say."""
        if self.weights and len(self.weights) != len(self.data):
            raise UserError(f"weights: expected one for each of {len(self.data)} --data, got {self.weights}")
        if any(not 0 < weight < 1000 for weight in self.weights):
            raise UserError(f"weights: expected numbers between 0 and 1000, got {self.weights}")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"validation_fraction: expected below 1, got {self.validation_fraction:g}")
        if not 0 <= self.num_workers <= MOST_WORKERS:
            wanted = f"expected 0 (one for each core) to {MOST_WORKERS}"
            raise UserError(f"num_workers: {wanted}, got {self.num_workers}")
        if self.kind == "pretrain" and self.format:
            raise UserError(f"format {self.format} is one of chats; pretraining takes --text_column")
        of_texts = ("text_column", "document_separator", "text_marks")
        of_chats = ("question_position", "columns", "preference")
        idle = {"pretrain": of_chats, "sft": of_texts, "preference": (*of_texts, "preference")}
        for other in idle[self.kind]:
            if (value := getattr(self, other)) != getattr(PreparationSettings, other):
                raise UserError(f"{other} {value} changes nothing of {self.kind} data; leave it out")
        formats.read_columns(self.columns)


class Job(NamedTuple):
    """One block, and what is known of its source."""

    block: Block
    weight: float
    chat_format: formats.ChatFormat | None
    tokenizer: str
    """fingerprint"""


class Encoded(NamedTuple):
    """What became of one block."""

    parts: tuple[Part | None, Part | None]
    """documents to train on, documents kept apart"""
    num_bytes: np.ndarray
    """(2, 2) int64 for each of `parts`: bytes of text, and of them in answers"""
    account: tuple[int, dict[str, int], str, int]
    """of `Rejects`"""
    rejects: str
    """lines for `rejects.jsonl`"""
    marks: Marks
    unread: list[str]
    """keys of the records that were not looked at"""
    source: str
    size: int
    """bytes of the block"""
    columns: Sequence[str] = ()
    """keys that users name which some record has"""


@dataclass(frozen=True)
class Encoder:
    """Turns a block into documents; a function that can be sent to another process."""

    settings: PreparationSettings

    def __call__(self, job: Job) -> Encoded:
        """Return the documents of a block; raises `UserError` where a file mixes formats."""
        renderer, listing = _renderer(self.settings.tokenizer, job.tokenizer), StringIO()
        rejects = Rejects(self.settings.max_reject_fraction, listing)
        num_bytes = np.zeros((2, 2), dtype=np.int64)
        documents: tuple[list[Rendered], list[Rendered]] = ([], [])
        marks, unread, found = Marks(), set(), set()
        records = noting(records_of(job.block), unread)
        accepted = accept(records, self._parser(job, marks, unread, found), rejects)
        for together in chain.from_iterable(accepted):
            place, copies = self._draw(together, job.weight)
            if copies:
                rendered = [self._render(messages, renderer) for messages in together]
                documents[place].extend(rendered * copies)
                num_bytes[place] += copies * np.sum([_count_bytes(messages) for messages in together], axis=0)
        told = (rejects.account(), listing.getvalue(), marks, sorted(unread))
        of_block = (job.block.source, len(job.block.content), sorted(found))
        return Encoded(tuple(map(self._gather, documents)), num_bytes, *told, *of_block)

    def _render(self, messages: list[Message], renderer: Renderer) -> Rendered:
        is_text = self.settings.kind == "pretrain"
        return renderer.render_text(messages[0].content) if is_text else renderer.render(messages)

    def _parser(
        self, job: Job, marks: Marks, unread: set[str], found: set[str]
    ) -> Callable[[dict[str, Any]], list[Together]]:
        """Return the function from a record to the messages of documents; a text is one answer to nothing."""
        settings, columns = self.settings, formats.read_columns(self.settings.columns)
        chat_format, column = job.chat_format, text_key(job.block.source, settings.text_column)

        def parse_text(record: dict[str, Any]) -> list[Together]:
            text = read_text(record.get(column), column)
            note(unread, (key for key in held_keys(record) if key != column))
            documents = marks.divide(text) if settings.text_marks == "split" else [text]
            return [([Message("assistant", document)],) for document in documents]

        def parse_chat(record: dict[str, Any]) -> list[Together]:
            found.update(columns.values() & record.keys())
            given, record = record, formats.rename(record, columns)
            if settings.format is None:
                formats.check_format(record, chat_format)
            if settings.kind == "preference":
                chats = parse_pair(record, settings.question_position)
                note(unread, unread_of_bad(record))
            else:
                ways = (settings.question_position, chat_format, settings.preference)
                chats = (formats.parse_messages(record, *ways),)
            together = tuple(map(_until_target, chats))
            late = {AFTER_TARGETS} if sum(map(len, together)) < sum(map(len, chats)) else set()
            note(unread, unread_keys(record, chat_format) | dropped(given, record, columns) | late)
            return [together]

        return parse_text if settings.kind == "pretrain" else parse_chat

    def _draw(self, together: Together, weight: float) -> tuple[int, int]:
        """Return the store of a document or pair, and how often it is stored: a pure function of its text."""
        if weight == 1 and not self.settings.validation_fraction:
            return 0, 1
        text = "\0".join(chain.from_iterable((m.role, *OURS.parts(m)) for m in chain(*together)))
        digest = np.frombuffer(blake2b(text.encode(), digest_size=16).digest(), np.uint64)
        first, second = (digest >> np.uint64(11)) / 2.0**53
        copies = int(weight + second)
        if first < self.settings.validation_fraction:
            return 1, min(copies, 1)
        return 0, copies

    def _gather(self, documents: list[Rendered]) -> Part | None:
        if not documents:
            return None
        ids = np.concatenate([document.ids for document in documents])
        lengths = np.array([len(document) for document in documents], dtype=np.uint32)
        if self.settings.kind == "pretrain":
            return Part(ids, None, lengths)
        return Part(ids, np.concatenate([document.codes for document in documents]), lengths)


@cache
def _renderer(tokenizer: str, fingerprint: str) -> Renderer:
    """Return a renderer that is opened once in a process for each state of a tokenizer directory."""
    loaded = Tokenizer.load(tokenizer)
    if loaded.fingerprint != fingerprint:
        raise UserError(f"{tokenizer} has changed since this began; run the command again")
    return Renderer(loaded)


def _count_bytes(messages: list[Message]) -> tuple[int, int]:
    """Return the bytes of all texts, without anything of a form, and of the answers that carry loss."""
    texts = [(message.content, message.thought, *message.tool_calls, *message.tools) for message in messages]
    sizes = [sum(len(text.encode()) for text in each) for each in texts]
    are_targets = [message.role == "assistant" and message.is_trained for message in messages]
    return sum(sizes), sum(compress(sizes, are_targets))


def _until_target(messages: list[Message]) -> list[Message]:
    """Leave out what follows the last answer that carries loss, where that is not the last answer.

    It would teach nothing, and `--supervise last` and the mask `history` rely on the last answer.
    """
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    trained = [number for number in answers if messages[number].is_trained]
    if not trained:
        raise LeftOutError("no answer that is to be trained")
    return messages if trained[-1] == answers[-1] else messages[: trained[-1] + 1]


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int, size: Callable[[Item], int]
) -> Iterator[Result]:
    """Yield `function(item)` for each item in order; at most 64 MB of items are in other processes.

    A larger one is not sent to another, where it would lie twice, and none are where all are no more than one
    block. Raises what `function` raises, and `UnfinishedError` if a process dies.
    """
    items = iter(items)
    first, is_all = ([], True) if processes == 1 else _few(items, size)
    items = chain(first, items)
    if is_all:
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
        fault = "a process died, out of memory? The same command goes on"
        raise UnfinishedError(f"{fault}; --num_workers 1 takes less") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _few(items: Iterator[Item], size: Callable[[Item], int]) -> tuple[list[Item], bool]:
    """Take one item, or several of a block's size in all; return them, and whether there are no others."""
    taken, num_bytes = [], 0
    for item in items:
        taken.append(item)
        num_bytes += size(item)
        if num_bytes > BLOCK_BYTES and len(taken) > 1:
            return taken, False
    return taken, True


def _begin_process() -> None:
    """Leave Ctrl-C to the first process, one core to each, and end when the first process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)
