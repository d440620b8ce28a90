"""Print one row of a training as a table, and its mask as a picture: what is seen, and what carries loss."""

import sys

if not __package__:
    print("error: run python -m scripts.show_batch from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataset.batch_settings import BatchSettings
from dataset.command_line import parse, run
from dataset.printing import printable
from model.errors import UserError

if TYPE_CHECKING:
    from dataset.batches import Batch, BatchStream

WIDEST_PICTURE_TOKENS = 80


@dataclass(frozen=True, kw_only=True)
class ShowBatchSettings(BatchSettings):
    """Flags of the picture; those of the batch are a trainer's."""

    data: tuple[str, ...]
    """token stores"""
    row: int = 0
    """which row of the epoch, counted from 0"""
    epoch: int = 0
    """which epoch, counted from 0"""
    png: str | None = None
    """file to draw the mask into"""


def main() -> None:
    """Print the row that was asked for."""
    settings = parse(ShowBatchSettings, "Show a row of a training: tokens, blocks, labels and mask.")
    from dataset.batches import BatchStream
    from dataset.documents import documents_of
    from dataset.token_store import open_stores
    from eval.plots import MaskPanel, check_picture, draw_mask, save_masks
    from model.masks import visible_mask

    if settings.png:
        check_picture(settings.png)
    if settings.epoch < 0:
        raise UserError(f"--epoch: expected 0 or more, got {settings.epoch}")
    stream = BatchStream(documents_of(open_stores(settings.data), settings))
    rows = len(stream.plan(settings.epoch))
    if not 0 <= settings.row < rows:
        raise UserError(f"--row: expected 0 to {rows - 1}, got {settings.row}")
    batch = next(stream.batches(settings.epoch, settings.row, rows_per_step=1))
    tokens = [stream.documents.tokenizer.token_text(token_id) for token_id in batch.ids[0].tolist()]
    print_table(stream, settings, batch, tokens)
    mask, shown = visible_mask(batch.layout)[0], min(len(tokens), WIDEST_PICTURE_TOKENS)
    if shown < len(tokens):
        print(f"the mask of the first {shown} tokens (--png draws all):")
    print(draw_mask(mask[:shown, :shown], tokens[:shown]))
    if settings.png:
        real, title = batch.num_real, f"{settings.prompt_mask}, row {settings.row}"
        panel = MaskPanel(title, mask[:real, :real], batch.block_ids[0, :real])
        save_masks(settings.png, [panel], tokens[:real])
        print(f"{printable(settings.png)} is drawn")


def print_table(
    stream: "BatchStream", settings: ShowBatchSettings, batch: "Batch", tokens: list[str]
) -> None:
    """Print a line per token of a batch of one row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dataset.conversation import ROLES

    pieces = stream.pieces(settings.epoch, settings.row)
    names = ("text",) * len(ROLES) if stream.documents.kind == "pretrain" else ROLES
    roles = [names[code] for piece in pieces for code in piece.roles]
    table = Table("position", "token", "role", "document", "block", "label", box=box.SIMPLE_HEAD)
    columns = (batch.position_ids, batch.document_ids, batch.block_ids, batch.labels)
    documents = [*batch.document_ids[0].tolist(), -1]
    for t, role in enumerate(roles):
        position, document, block, label = (column[0, t].item() for column in columns)
        named_block, target = "causal" if block < 0 else str(block), tokens[t] if label >= 0 else ""
        row = (str(position), tokens[t], role, str(document), named_block, target)
        table.add_row(*row, end_section=documents[t + 1] != document)
    held = f"{batch.num_real} tokens, {len(pieces)} documents, {batch.num_targets} labels"
    padding, rows = batch.ids.numel() - batch.num_real, len(stream.plan(settings.epoch))
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table, f"row {settings.row} of {rows}: {held}, {padding} padding", sep="\n")


if __name__ == "__main__":
    run(main)
