"""The documents of a training: several stores as one list, fitted to the row length, their targets chosen."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch

from dataset.batch_settings import BatchSettings, Supervise
from dataset.conversation import TARGET, UNTRAINED, Rendered, Renderer, are_trained
from dataset.packing import RowPlan, best_fit, one_per_row, split_stream
from dataset.token_store import SIDES, TokenStore
from dataset.truncation import truncate
from model.errors import UserError
from model.layouts import parts_of, positions_of, prompt_blocks

TOKENS_AT_ONCE = 2**22  # that are read to count targets
TOKENS_AT_HAND = 2**24  # of conversations that are kept as pieces
MOST_PIECES = 2**31 - 1  # that a `RowPlan` has numbers for


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
    """(D,) int32 tokens as they enter rows; 0 = left out"""
    noun = "documents"

    def __init__(self, stores: Sequence[TokenStore], settings: BatchSettings) -> None:
        """Take over stores of one kind and one tokenizer."""
        self.stores, self.settings = list(stores), settings
        self.kind, self.tokenizer = stores[0].kind, stores[0].tokenizer
        self.lengths = np.concatenate([store.lengths for store in stores], dtype=np.int32, casting="unsafe")
        self._first_of_store = [0, *accumulate(map(len, stores))]

    def arrange(self, epoch: int) -> RowPlan:
        """Return the rows of an epoch; raises `UserError` for more than can be numbered."""
        pieces = len(self.lengths) + int(self.lengths.sum(dtype=np.int64)) // self.settings.max_seq_len
        if pieces > MOST_PIECES:
            wanted = f"expected at most {MOST_PIECES} pieces of documents, got {pieces}"
            raise UserError(f"{wanted}; train on fewer stores")
        ways = {"pack": self.pack, "best_fit": best_fit, "none": one_per_row}
        return ways[self.settings.packing](self.lengths, self.settings.max_seq_len, self.settings.seed, epoch)

    def figures(self, plan: RowPlan, positions: int) -> dict[str, Any]:
        """Return what became of the documents in the rows of the first epoch, which have `positions`."""
        targets = plan.sum_rows(self.count_targets(0, plan.pieces))
        documents, tokens = int(np.count_nonzero(self.lengths)), int(plan.row_tokens.sum())
        alone = int(self.lengths.sum(dtype=np.int64)) - tokens  # in a row, and therefore in none
        return {
            "documents": documents,
            "documents_left_out": int(np.count_nonzero(self.lengths == 0)),
            "answers_too_long": self.num_too_long,
            "answers_cut_out": self.num_cut_out,
            "answers_of_oldest_rounds": self.num_of_rounds,
            "documents_shortened": self.num_shortened,
            "tokens_after_cuts": len(plan.pieces) - documents + alone,
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
    sides = SIDES["sft"]

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
        targets = np.concatenate([self._count(part.codes, part.lengths) for part in parts])
        counted = (each.reshape(-1, self.sides).sum(1, dtype=np.int32) for each in (self.lengths, targets))
        self.lengths, self._targets = counted
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
        return np.add.reduceat(chosen, np.cumsum(lengths, dtype=np.int64) - lengths, dtype=np.int32)

    def pieces(self, epoch: int, planned: np.ndarray) -> list[Piece]:
        """Return what stands in a row, in order, of which the plan names the pieces (p, 3): all are whole."""
        return [self._whole(document) for document in planned[:, 0].tolist()]

    def _build(self, document: int) -> Piece:
        rendered = self._read(document)
        if len(rendered) > self.settings.max_seq_len:
            rendered = truncate(rendered, self.settings.max_seq_len, self._renderer).rendered
        chosen = choose_targets(rendered.codes, np.array([len(rendered)]), self.settings.supervise)
        return self._piece(document, rendered, chosen)

    def count_targets(self, epoch: int, pieces: np.ndarray) -> np.ndarray:
        """Return how many targets each of the pieces (P, 3) holds."""
        return self._targets[pieces[:, 0]]


class Pairs(Conversations):
    """Pairs of a good and a bad answer to one prompt; a pair is one document here, and lies in one row."""

    sides = SIDES["preference"]
    noun = "pairs"

    def pieces(self, epoch: int, planned: np.ndarray) -> list[Piece]:
        """Return both sides of every pair, the good one first."""
        return [side for pair in planned[:, 0].tolist() for side in self._whole(pair)]

    def _truncate(self, pair: int) -> None:
        """Find out what is left of a pair and count it."""
        sides, is_cut_out = self._fit(pair)
        self.num_shortened += bool(sides)
        self.num_cut_out += is_cut_out
        self.num_too_long += not sides and not is_cut_out
        counts = [self._count(side.codes, np.array([len(side)])) for side in sides]
        self.lengths[pair], self._targets[pair] = sum(map(len, sides)), sum(map(int, chain(*counts)))

    def _build(self, pair: int) -> list[Piece]:
        sides = enumerate(self._fit(pair)[0])
        chosen = partial(choose_targets, supervise=self.settings.supervise)
        return [self._piece(2 * pair + n, one, chosen(one.codes, np.array([len(one)]))) for n, one in sides]

    def _fit(self, pair: int) -> tuple[list[Rendered], bool]:
        """Return the sides of a pair as they stand in a row, or none, and whether an answer was cut out.

        P P P P P P c c c   P P P P P P r r     the row has room for 13 tokens
        P P … P c c c       P P … P r r         one prompt for both, their answers whole
        """
        good, bad = (self._read(2 * pair + side) for side in range(self.sides))
        if len(good) + len(bad) <= self.settings.max_seq_len:
            return [good, bad], False

        # What follows the shared prompt stays in both. The good side may take half of the row, more where its
        # answer is the longer one: then the same prompt fits with the bad one, too.
        begin = prompt_of_both(good, bad)
        ends = [int(max(side.trained.nonzero()[0], default=-1)) + 1 for side in (good, bad)]
        limit = (self.settings.max_seq_len + ends[0] - ends[1]) // 2
        left, _, num_cut_out = truncate(good, limit, self._renderer)
        end = len(left) - (ends[0] - begin) if left else 0
        if end < 1 or not is_same(part(left, end, len(left)), part(good, begin, ends[0])):
            return [], num_cut_out > 0
        sides = zip((good, bad), ends, strict=True)
        return [joined(part(left, 0, end), part(side, begin, last)) for side, last in sides], False


class Texts(Documents):
    """Texts, split where they are longer than a row; each fragment is a document of its own."""

    pack = staticmethod(split_stream)
    num_too_long = num_cut_out = num_of_rounds = num_shortened = 0

    def pieces(self, epoch: int, planned: np.ndarray) -> list[Piece]:
        """Return what stands in a row, in order, of which the plan names the pieces (p, 3)."""
        return [self._fragment(epoch, *each) for each in planned.tolist()]

    def _fragment(self, epoch: int, document: int, begin: int, end: int) -> Piece:
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
        prefixes = (self._prefix(epoch, *piece.tolist()) for piece in pieces)  # no list: it would be large
        return pieces[:, 2] - pieces[:, 1] - np.maximum(np.fromiter(prefixes, np.int32, len(pieces)), 1)

    def _prefix(self, epoch: int, document: int, begin: int, end: int) -> int:
        if self.settings.supervise == "all":
            return 0
        return prefix_length(end - begin, self.settings.seed, epoch, document, begin)


def documents_of(stores: Sequence[TokenStore], settings: BatchSettings) -> Documents:
    """Return the documents of stores; raises `UserError` for settings that contradict the data."""
    kinds = {"pretrain": Texts, "sft": Conversations, "preference": Pairs}
    kind = stores[0].kind
    return kinds[kind](stores, settings.resolved(kind))


def prompt_of_both(good: Rendered, bad: Rendered) -> int:
    """Return how many tokens two conversations share before the first answer that carries loss in one."""
    shortest = min(len(good), len(bad))
    differing = np.flatnonzero(good.ids[:shortest] != bad.ids[:shortest])
    return min(*(int(side.trained.argmax()) for side in (good, bad)), *differing[:1].tolist())


def part(whole: Rendered, begin: int, end: int) -> Rendered:
    """Return tokens of a document."""
    return Rendered(whole.ids[begin:end], whole.codes[begin:end])


def joined(*parts: Rendered) -> Rendered:
    """Return parts of documents as one."""
    return Rendered(np.concatenate([one.ids for one in parts]), np.concatenate([one.codes for one in parts]))


def is_same(one: Rendered, other: Rendered) -> bool:
    """Say whether two documents have the same tokens, in the same roles."""
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.codes, other.codes)


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
    all       every token that another predicts, but those of messages that are not trained
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
