"""What a training asks of its batches, and which demands contradict each other; imports no torch."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from model.errors import UserError
from model.strategies import PromptMask, TextMask, strategy_named

Kind = Literal["pretrain", "sft", "preference"]
Packing = Literal["pack", "best_fit", "none"]
Supervise = Literal["answers", "last", "all", "suffix"]

SHORTEST_ROW, LONGEST_ROW = 16, 2**20


@dataclass(frozen=True)
class RowSettings:
    """How documents become rows; raises `UserError` for values that make no rows."""

    max_seq_len: int = 512
    """tokens of a row: longer conversations are shortened, longer texts split"""
    packing: Packing = "pack"
    """pack: several documents in a row, texts cut where a row ends; best_fit: texts cut only where they are
    longer than a row; none: one document in a row, padded to the longest of its batch"""
    isolate_documents: bool = True
    """whether each document of a row sees itself alone; false: also those before it, and positions run on, as
    packers without masks have it; a validation measures each by itself all the same, as it is served"""
    seed: int = 0
    """of the order of documents, of the lengths of prefixes, and of fresh weights"""

    def __post_init__(self) -> None:
        if self.packing == "none" and not self.isolate_documents:
            fault = "isolate_documents false changes nothing of packing none, whose rows hold one document"
            raise UserError(f"{fault}; leave it out, or choose another packing")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: expected 0 to 2^63 - 1, got {self.seed}")
        if self.max_seq_len < SHORTEST_ROW:
            raise UserError(f"max_seq_len: expected at least {SHORTEST_ROW} tokens, got {self.max_seq_len}")
        if self.max_seq_len > LONGEST_ROW:
            raise UserError(f"max_seq_len: expected at most {LONGEST_ROW:,} tokens, got more")


@dataclass(frozen=True)
class BatchSettings(RowSettings):
    """How rows become batches."""

    prompt_mask: PromptMask = "causal"
    """strategy that sets the bidirectional blocks; not all are for texts"""
    supervise: Supervise | None = None
    """tokens that carry loss: of chats answers, last (answer) or all, of texts all or suffix (what follows
    the prefix); the default depends on data and mask"""

    def resolved(self, kind: Kind) -> "BatchSettings":
        """Return the settings with `supervise` filled in; raises `UserError` for what the data rules out."""
        if kind != "pretrain" and self.packing == "best_fit":
            raise UserError("packing best_fit is for texts: pack fits conversations in best already")
        if kind == "preference" and not self.isolate_documents:
            raise UserError("isolate_documents false would show an answer of a pair to the other; drop it")
        strategy = strategy_named(self.prompt_mask)
        if strategy.passages != "open" and not self.isolate_documents:
            fault = f"prompt_mask {self.prompt_mask} gives passages positions of a document of its own"
            raise UserError(f"{fault}; expected isolate_documents true with it, got false")
        losses = strategy.text_losses if kind == "pretrain" else strategy.losses
        allowed = tuple(each for each in losses if (kind, each) != ("preference", "all"))
        if not allowed:
            masks = " or ".join(get_args(TextMask))
            raise UserError(f"prompt_mask {self.prompt_mask} needs conversations; pretraining takes {masks}")
        if self.supervise is not None and self.supervise not in allowed:
            pair = f"supervise {self.supervise} does not go with prompt_mask {self.prompt_mask}"
            raise UserError(f"{pair} on {kind} data; choose {' or '.join(allowed)}")
        return replace(self, supervise=self.supervise or allowed[0])
