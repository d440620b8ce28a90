"""The documents of a training: several stores as one list, fitted to the row length, their targets chosen."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import torch

from dataset.conversation import TARGET, UNTRAINED, Rendered, Renderer, are_trained
from dataset.packing import RowPlan, one_per_row, pack_fragments, pack_whole, split_stream
from dataset.settings import BatchSettings
from dataset.token_store import Part, TokenStore
from dataset.truncation import truncate
from model.errors import UserError
from model.masks import prompt_blocks

TOKENS_AT_ONCE = 2**22
TOKENS_AT_HAND = 2**24


class Piece(NamedTuple):
    """A document, or a fragment of one, as it stands in a row."""

    document: int
    """counted over all stores"""
    ids: np.ndarray
    """(n,) token ids"""
    roles: np.ndarray
    """(n,) uint8 index into ROLES"""
    supervised: np.ndarray
    """(n,) bool: tokens that are to carry loss"""
    blocks: np.ndarray
    """(n,) int16 bidirectional block, counted from 0 in each piece; -1 = causal"""


class Documents:
    """The documents of stores, one after the other; the two kinds say what becomes of them."""

    lengths: np.ndarray
    """(D,) int64 tokens as they enter rows; 0 = left out"""

    def __init__(self, stores: Sequence[TokenStore], settings: BatchSettings) -> None:
        """Take over stores of one kind and one tokenizer."""
        self.stores, self.settings = list(stores), settings
        self.lengths = np.concatenate([store.lengths for store in stores])
        self._first_of_store = [0, *accumulate(map(len, stores))]

    def arrange(self, epoch: int) -> RowPlan:
        """Return the rows of an epoch."""
        ways = {"pack": self.pack, "best_fit": pack_fragments, "none": one_per_row}
        return ways[self.settings.packing](self.lengths, self.settings.max_seq_len, self.settings.seed, epoch)

    def _piece(self, document: int, rendered: Rendered, supervised: np.ndarray) -> Piece:
        answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
        blocks = prompt_blocks(self.settings.prompt_mask, answers, starts).numpy().astype(np.int16)
        return Piece(document, rendered.ids, rendered.roles, supervised, blocks)

    def _read(self, document: int) -> Rendered:
        store = bisect_right(self._first_of_store, document) - 1
        return self.stores[store][document - self._first_of_store[store]]


class Conversations(Documents):
    """Whole conversations, truncated where they are longer than a row."""

    pack = staticmethod(pack_whole)

    def __init__(self, stores: Sequence[TokenStore], settings: BatchSettings) -> None:
        """Measure all; raises `UserError` if nothing is left."""
        super().__init__(stores, settings)
        self._whole = lru_cache(maxsize=TOKENS_AT_HAND // settings.max_seq_len)(self._build)
        self._renderer = Renderer(stores[0].tokenizer)
        self.num_too_long = self.num_cut_out = 0  # answers left out, see `Truncated`
        self.num_shortened = 0  # conversations that lost something
        parts = chain.from_iterable(store.parts(TOKENS_AT_ONCE) for store in stores)
        self._targets = np.concatenate([_count_targets(part, settings.supervise) for part in parts])
        for document in np.flatnonzero(self.lengths > settings.max_seq_len).tolist():
            self._truncate(document)
        self.lengths[self._targets == 0] = 0
        if not self.lengths.any():
            raise UserError(f"no answer fits into {settings.max_seq_len} tokens; raise max_seq_len")

    def _truncate(self, document: int) -> None:
        """Find out what is left of a conversation and count it."""
        rendered, too_long, cut_out = truncate(
            self._read(document), self.settings.max_seq_len, self._renderer
        )
        self.num_too_long += too_long
        self.num_cut_out += cut_out
        self.num_shortened += rendered is not None
        self.lengths[document] = len(rendered) if rendered else 0
        supervised = choose_targets(rendered, self.settings.supervise) if rendered else ()
        self._targets[document] = np.count_nonzero(supervised)

    def piece(self, epoch: int, document: int, begin: int, end: int) -> Piece:
        """Return a conversation; it has no fragments and is the same in every epoch."""
        return self._whole(document)

    def _build(self, document: int) -> Piece:
        rendered = self._read(document)
        if len(rendered) > self.settings.max_seq_len:
            rendered = truncate(rendered, self.settings.max_seq_len, self._renderer).rendered
        return self._piece(document, rendered, choose_targets(rendered, self.settings.supervise))

    def count_targets(self, epoch: int, pieces: np.ndarray) -> np.ndarray:
        """Return how many targets each of the pieces (P, 3) holds."""
        return self._targets[pieces[:, 0]]


class Texts(Documents):
    """Texts, split where they are longer than a row; each fragment is a document of its own."""

    pack = staticmethod(split_stream)
    num_too_long = num_cut_out = num_shortened = 0

    def piece(self, epoch: int, document: int, begin: int, end: int) -> Piece:
        """Return a fragment; what comes before its suffix is prompt."""
        whole = self._read(document)
        codes = whole.codes[begin:end].copy()
        codes[: self._prefix(epoch, document, begin, end)] &= ~np.uint8(TARGET)
        rendered = Rendered(whole.ids[begin:end], codes)
        is_target = rendered.targets
        is_target[0] = False  # no token before it predicts it
        return self._piece(document, rendered, is_target)

    def count_targets(self, epoch: int, pieces: np.ndarray) -> np.ndarray:
        """Return how many targets each of the pieces (P, 3) holds."""
        prefixes = [self._prefix(epoch, *piece) for piece in pieces.tolist()]
        return pieces[:, 2] - pieces[:, 1] - np.maximum(prefixes, 1)

    def _prefix(self, epoch: int, document: int, begin: int, end: int) -> int:
        if self.settings.supervise == "all":
            return 0
        return prefix_length(end - begin, self.settings.seed, epoch, document, begin)


def prefix_length(num_tokens: int, seed: int, epoch: int, document: int, offset: int) -> int:
    """Return the tokens of a fragment that are its prefix: uniform over 0 … n-1, a pure hash of the rest."""
    key = f"{seed} {epoch} {document} {offset}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") % num_tokens


def choose_targets(rendered: Rendered, supervise: str) -> np.ndarray:
    """Return which tokens (n,) of a conversation are to carry loss: none of an answer that is not trained.

    "last" is the last answer that is.
    """
    if supervise == "all":
        return (np.arange(len(rendered)) > 0) & (rendered.codes & UNTRAINED == 0)
    targets = rendered.trained
    if supervise == "last":
        targets &= _last_run(targets, np.array([len(targets)]))
    return targets


def _last_run(targets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return which tokens follow the beginning of their document's last run of targets, that one included.

    `targets` (n,) bool are those of documents of the given lengths, one after the other.
    """
    begins = targets.copy()
    begins[1:] &= ~targets[:-1]
    run = np.cumsum(begins)
    return run == np.repeat(run[np.cumsum(lengths) - 1], lengths)


def _count_targets(part: Part, supervise: str) -> np.ndarray:
    """Return the number of supervised tokens of every conversation (D,), none of them truncated."""
    begins = np.cumsum(part.lengths, dtype=np.int64) - part.lengths
    targets = are_trained(part.codes)
    if supervise == "all":
        targets = part.codes & UNTRAINED == 0
        targets[begins] = False
    if supervise == "last":
        targets &= _last_run(targets, part.lengths)
    return np.add.reduceat(targets, begins, dtype=np.int64)
