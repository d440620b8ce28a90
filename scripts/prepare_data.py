"""Turn text or chat files into a token store: python -m scripts.prepare_data --kind sft --data a.jsonl …"""

import sys

if not __package__:
    print("error: run python -m scripts.prepare_data from the repository root", file=sys.stderr)
    sys.exit(2)

import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dataset.blocks import form_of
from dataset.command_line import parse, run
from dataset.messages import shown
from dataset.preparation import PreparationSettings, read_notes, write_store
from dataset.printing import NOTE, printable, tell
from dataset.text_files import Marks, counts
from eval.cluster import ClusterSettings
from eval.tables import grouped
from model.errors import UserError

SHORT_TOKENS, LARGE_BYTES = 5, 100_000  # of the median document, of a .txt file that is one document


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(PreparationSettings, ClusterSettings):
    """Which store is written, and by whom."""

    tasks: int = 0
    """jobs among which the sources are divided with --cluster, each with --num_workers processes"""

    def __post_init__(self) -> None:
        """Check both parts, and what one says of the other."""
        PreparationSettings.__post_init__(self)
        ClusterSettings.__post_init__(self)
        if self.cluster == "none" and self.tasks:
            raise UserError("--tasks changes nothing without --cluster; leave it out")
        if self.cluster != "none" and self.tasks < 1:
            raise UserError(f"--cluster {self.cluster} needs --tasks: expected 1 or more, got {self.tasks}")


def main() -> None:
    """Prepare what the command line asks for and print a summary."""
    settings = parse(PrepareSettings, "Tokenize text or chat files into a store that trainers read.")
    started = time.monotonic()
    manifest, was_finished = _written(settings)
    said = "prepared already, nothing to do" if was_finished else f"{time.monotonic() - started:.1f} s"
    print(f"{printable(settings.out)}: {said}")
    for store in manifest["stores"]:
        if store != ".":
            print(printable(f"{Path(settings.out) / store}:"))
        for name, value in summary(read_notes(Path(settings.out) / store)).items():
            lines = textwrap.wrap(printable(value), 80 - 22)
            print(f"  {name:<20}" + ("\n" + " " * 22).join(lines))
    for line in notes(manifest):
        tell(f"{NOTE}{line}")


def _written(settings: PrepareSettings) -> tuple[dict[str, Any], bool]:
    own = {field.name: getattr(settings, field.name) for field in fields(PreparationSettings)}
    preparation = PreparationSettings(**own)
    if settings.cluster == "none":
        return write_store(preparation)
    from eval.preparing import write_store_by_tasks

    return write_store_by_tasks(preparation, settings, settings.tasks)


def notes(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what of the sources is not in the stores."""
    if rejects := manifest["rejects"]:
        reasons = "; ".join(f"{count} {reason}" for reason, count in rejects.items())
        yield f"records rejected: {sum(rejects.values()):,} ({reasons}; rejects.jsonl lists them)"
    unread = [source for source in manifest["sources"] if source.get("unread_keys")]
    for keys, files in grouped(unread, lambda source: shown(source["unread_keys"], most=20)).items():
        others = f" and {len(files) - 1} more" if len(files) > 1 else ""
        yield f"{files[0]['path']}{others}: keys not read: {keys}"
    if absent := manifest.get("absent_columns"):
        yield f"keys of --columns that no record has: {shown(absent)}"
    for source in (each for each in manifest["sources"] if not each["documents"]):
        yield f"{source['path']}: no document was made of it"


def summary(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the figures of a store by name."""
    lengths, tokens = manifest["lengths"], manifest["tokens"]
    marks, sizes = Marks(**manifest["marks"]), {name: lengths[name] for name in lengths if name != "mean"}
    became = f"{marks.records:,} records became {marks.documents:,} documents"
    unknown = "which look like marks and are none that are known"
    pairs = f", two in each of {manifest['documents'] // 2:,} pairs" * (manifest["kind"] == "preference")
    figures = {
        "records": f"{manifest['records']:,}",
        "rejected": f"{sum(manifest['rejects'].values()):,}",
        "marks in texts": marks.found and f"{counts(marks.found)}; {became}",
        "trained as text": marks.kept and f"{counts(marks.kept)}, {unknown}",
        "documents": f"{manifest['documents']:,}" + pairs + _doubt(manifest),
        "tokens": f"{tokens:,}",
        "targets": f"{manifest['targets']:,} ({manifest['targets'] / tokens:.1%})",
        "bytes per token": f"{manifest['bytes'] / tokens:.2f}",
        "tokens a document": "  ".join(f"{name} {value:,.0f}" for name, value in sizes.items()),
    }
    return {name: value for name, value in figures.items() if value}


def _doubt(manifest: dict[str, Any]) -> str:
    """Say so where texts look as if they were divided at wrong places."""
    if manifest["kind"] != "pretrain":
        return ""
    if manifest["lengths"]["median"] < SHORT_TOKENS:
        return f": half of them have less than {SHORT_TOKENS} tokens; is this where documents end?"
    for source in manifest["sources"]:
        if form_of(source["path"]) == ".txt" and source["documents"] == 1 and source["bytes"] > LARGE_BYTES:
            return f": {source['path']} is one of them; see --document_separator"
    return ""


if __name__ == "__main__":
    run(main)
