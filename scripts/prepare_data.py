"""Turn text or chat files into a token store: python -m scripts.prepare_data --kind sft --data a.jsonl …"""

import sys

if not __package__:
    print("error: run python -m scripts.prepare_data from the repository root", file=sys.stderr)
    sys.exit(2)

import time
from pathlib import Path
from typing import Any

from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import read_manifest
from trainer.command_line import parse, run


def main() -> None:
    """Prepare what the command line asks for and print a summary."""
    settings = parse(
        PreparationSettings, "Tokenize text or chat files into a token store that trainers read."
    )
    started = time.monotonic()
    manifest, was_finished = write_store(settings)
    seconds = time.monotonic() - started
    print(f"{settings.out}: " + ("prepared already, nothing to do" if was_finished else f"{seconds:.1f} s"))
    for store in manifest["stores"]:
        if store != ".":
            print(f"{Path(settings.out) / store}:")
        for name, value in summary(read_manifest(Path(settings.out) / store)).items():
            print(f"  {name:<20}{value}")


def summary(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the figures of a store by name."""
    lengths, tokens, rejects = manifest["lengths"], manifest["tokens"], manifest["rejects"]
    reasons = "; ".join(f"{count} {reason}" for reason, count in rejects.items())
    return {
        "records": f"{manifest['records']:,}",
        "rejected": f"{sum(rejects.values()):,}" + (f" ({reasons}; see rejects.jsonl)" if rejects else ""),
        "documents": f"{manifest['documents']:,}",
        "tokens": f"{tokens:,}",
        "targets": f"{manifest['targets']:,} ({manifest['targets'] / tokens:.1%})",
        "bytes per token": f"{manifest['bytes'] / tokens:.2f}",
        "tokens a document": "  ".join(f"{name} {value:,.0f}" for name, value in lengths.items()),
    }


if __name__ == "__main__":
    run(main)
