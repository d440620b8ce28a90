"""The documents of a training: several stores as one list, fitted to the row length, their targets chosen."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch

from dataset.batch_settings import BatchSettings, Supervise
from dataset.conversation import TARGET, UNTRAINED, Rendered, Renderer, are_trained
from dataset.packing import RowPlan, best_fit, one_per_row, split_stream
from dataset.token_store import TokenStore
from dataset.truncation import truncate
from model.errors import UserError
from model.layouts import parts_of, positions_of, prompt_blocks

TOKENS_AT_ONCE = 2**22  # that are read to count targets
TOKENS_AT_HAND = 2**24  # of conversations that are kept as pieces


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
    parts: np.ndarray | None = None
    """(n,) part that sees no other, counted from 0 up or -2 down in each piece; -1 = none; None = all are"""

    @property
    def positions(self) -> np.ndarray:
        """Return the position (n,) of every token."""
        return positions_of(self.parts, len(self.ids))


class Documents:
    """The documents of stores, one after the other; the two kinds say what becomes of them."""

    lengths: np.ndarray
    """(D,) int64 tokens as they enter rows; 0 = left out"""

    def __init__(self, stores: Sequence[TokenStore], settings: BatchSettings) -> None:
        """Take over stores of one kind and one tokenizer."""
        self.stores, self.settings = list(stores), settings
        self.kind, self.tokenizer = stores[0].kind, stores[0].tokenizer
        self.lengths = np.concatenate([store.lengths for store in stores])
        self._first_of_store = [0, *accumulate(map(len, stores))]

    def arrange(self, epoch: int) -> RowPlan:
        """Return the rows of an epoch."""
        ways = {"pack": self.pack, "best_fit": best_fit, "none": one_per_row}
        return ways[self.settings.packing](self.lengths, self.settings.max_seq_len, self.settings.seed, epoch)

    def figures(self, plan: RowPlan, positions: int) -> dict[str, Any]:
        """Return what became of the documents in the rows of the first epoch, which have `positions`."""
        targets, tokens = plan.sum_rows(self.count_targets(0, plan.pieces)), int(plan.row_tokens.sum())
        return {
            "documents": int(np.count_nonzero(self.lengths)),
            "documents_left_out": int(np.count_nonzero(self.lengths == 0)),
            "answers_too_long": self.num_too_long,
            "answers_cut_out": self.num_cut_out,
            "answers_of_oldest_rounds": self.num_of_rounds,
            "documents_shortened": self.num_shortened,
            "rows": len(plan),
            "tokens": tokens,
            "targets": int(targets.sum()),
            "real_share": tokens / positions,
            "target_share": float(targets.sum()) / positions,
            "rows_without_target": int(np.count_nonzero(targets == 0)),
        }

    def _piece(self, document: int, rendered: Rendered, supervised: np.ndarray) -> Piece:
        answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
        blocks = prompt_blocks(self.settings.prompt_mask, answers, starts).numpy().astype(np.int16)
        parts = parts_of(self.settings.prompt_mask, rendered.passages)
        return Piece(document, rendered.ids, rendered.roles, supervised, blocks, parts)

    def _read(self, document: int) -> Rendered:
        store = bisect_right(self._first_of_store, document) - 1
        return self.stores[store][document - self._first_of_store[store]]


class Conversations(Documents):
    """Whole conversations, truncated where they are longer than a row."""

    pack = staticmethod(best_fit)

    def __init__(self, stores: Sequence[TokenStore], settings: BatchSettings) -> None:
        """Measure all; raises `UserError` if nothing is left."""
        super().__init__(stores, settings)
        self._whole = lru_cache(maxsize=TOKENS_AT_HAND // settings.max_seq_len)(self._build)
        self._renderer = Renderer(self.tokenizer)
        self.num_too_long = self.num_cut_out = 0  # answers left out, see `Truncated`
        self.num_of_rounds = 0  # answers that went with their rounds
        self.num_shortened = 0  # conversations that lost something

        # What fits into a row is counted as it stands in the stores, the rest one by one: what is left of a
        # conversation is known only when it is truncated. Its length is then another, 0 where nothing is.
        parts = chain.from_iterable(store.parts(TOKENS_AT_ONCE) for store in stores)
        self._targets = np.concatenate([self._count(part.codes, part.lengths) for part in parts])
        for document in np.flatnonzero(self.lengths > settings.max_seq_len).tolist():
            self._truncate(document)
        self.lengths[self._targets == 0] = 0
        if not self.lengths.any():
            raise UserError(f"no answer fits into {settings.max_seq_len} tokens; raise max_seq_len")

    def _truncate(self, document: int) -> None:
        """Find out what is left of a conversation and count it."""
        whole = self._read(document)
        rendered, too_long, cut_out = truncate(whole, self.settings.max_seq_len, self._renderer)
        if self.settings.supervise != "last":
            left = count_answers(rendered.codes) if rendered else 0
            self.num_of_rounds += count_answers(whole.codes) - left - too_long - cut_out
        self.num_too_long += too_long
        self.num_cut_out += cut_out
        self.num_shortened += rendered is not None
        self.lengths[document] = len(rendered) if rendered else 0
        self._targets[[document]] = self._count(rendered.codes, self.lengths[[document]]) if rendered else 0

    def _count(self, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the targets (D,) of conversations, one after the other."""
        chosen = choose_targets(codes, lengths, self.settings.supervise)
        return np.add.reduceat(chosen, np.cumsum(lengths, dtype=np.int64) - lengths, dtype=np.int64)

    def piece(self, epoch: int, document: int, begin: int, end: int) -> Piece:
        """Return a conversation; it has no fragments and is the same in every epoch."""
        return self._whole(document)

    def _build(self, document: int) -> Piece:
        rendered = self._read(document)
        if len(rendered) > self.settings.max_seq_len:
            rendered = truncate(rendered, self.settings.max_seq_len, self._renderer).rendered
        chosen = choose_targets(rendered.codes, np.array([len(rendered)]), self.settings.supervise)
        return self._piece(document, rendered, chosen)

    def count_targets(self, epoch: int, pieces: np.ndarray) -> np.ndarray:
        """Return how many targets each of the pieces (P, 3) holds."""
        return self._targets[pieces[:, 0]]


class Texts(Documents):
    """Texts, split where they are longer than a row; each fragment is a document of its own."""

    pack = staticmethod(split_stream)
    num_too_long = num_cut_out = num_of_rounds = num_shortened = 0

    def piece(self, epoch: int, document: int, begin: int, end: int) -> Piece:
        """Return a fragment; what comes before its suffix is prompt."""
        whole = self._read(document)

        # A prefix is context, so that its tokens are no targets, and the mask makes a block of them.
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


def documents_of(stores: Sequence[TokenStore], settings: BatchSettings) -> Documents:
    """Return the documents of stores; raises `UserError` for settings that contradict the data."""
    kind = stores[0].kind
    return (Conversations if kind == "sft" else Texts)(stores, settings.resolved(kind))


def prefix_length(num_tokens: int, seed: int, epoch: int, document: int, offset: int) -> int:
    """Return how many tokens of a fragment are its prefix: uniform over 0 … n-1, a hash of the arguments."""
    key = f"{seed} {epoch} {document} {offset}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") % num_tokens


def count_answers(codes: np.ndarray) -> int:
    """Return how many answers of a conversation, whose tokens have these codes (n,), carry loss."""
    return int(np.count_nonzero(np.diff(are_trained(codes).astype(np.int8), prepend=0) > 0))


def choose_targets(codes: np.ndarray, lengths: np.ndarray, supervise: Supervise) -> np.ndarray:
    """Return which tokens (n,) of conversations, one after the other, are to carry loss.

    answers   those of every answer that is trained
    last      those of the last one of these
    all       every token that another predicts, but those of answers that are not trained
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    if supervise == "all":
        chosen = codes & UNTRAINED == 0
        chosen[ends - lengths] = False
        return chosen
    targets = are_trained(codes)
    if supervise == "answers":
        return targets

    # Answers are numbered through all conversations: a token is of the last one of its own conversation
    # where its number, and that at the end of the conversation, are the same.
    begins = targets.copy()
    begins[1:] &= ~targets[:-1]
    number = np.cumsum(begins)
    return targets & (number == np.repeat(number[ends - 1], lengths))
