"""Train a byte-level BPE tokenizer: python -m scripts.train_tokenizer --data a.jsonl b.txt --out tokenizer"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset.progress import with_progress
from dataset.sources import Rejects, accept, check_sources, read_records, texts_of
from dataset.tokenizer import FILES, Tokenizer, train_tokenizer
from dataset.whole_folder import check_free, whole_folder
from trainer.command_line import parse, run

SAMPLE_BYTES = 200_000


@dataclass(frozen=True)
class TokenizerSettings:
    """What `scripts.train_tokenizer` is asked for."""

    data: tuple[str, ...]
    """.jsonl files of texts or chats, or .txt files"""
    out: str
    """tokenizer directory to write"""
    vocab_size: int = 6400
    """tokens, bytes and special tokens included"""
    isolate_han: bool = True
    """keep each Han character apart before merging; without it tokens run across Chinese words"""
    text_column: str = "text"
    """key of the text in a record"""
    max_reject_fraction: float = 0.01
    """share of the records that may be unusable; more is an error"""
    overwrite: bool = False
    """replace what lies at --out"""


def main() -> None:
    """Train the tokenizer that the command line asks for and print what it makes of its data."""
    settings = parse(TokenizerSettings, "Train a byte-level BPE tokenizer on text or chat files.")
    check_sources(settings.data)
    replaces = settings.overwrite and is_tokenizer(settings.out)
    check_free(settings.out, replaces)
    started = time.monotonic()
    rejects = Rejects(settings.max_reject_fraction)
    tokenizer = train_tokenizer(_texts(settings, rejects), settings.vocab_size, settings.isolate_han)
    with whole_folder(settings.out, replaces) as folder:
        tokenizer.save(folder)
    print(f"{settings.out}: {tokenizer.vocab_size:,} tokens, {time.monotonic() - started:.1f} s")
    for path in settings.data:
        print(f"  {path}: {_bytes_per_token(tokenizer, path, settings.text_column):.2f} bytes per token")


def is_tokenizer(path: str | Path) -> bool:
    """Say whether a folder holds a tokenizer and nothing else."""
    return Path(path).is_dir() and {file.name for file in Path(path).iterdir()} == set(FILES)


def _texts(settings: TokenizerSettings, rejects: Rejects) -> Iterator[str]:
    total_bytes = sum(Path(path).stat().st_size for path in settings.data)
    records = with_progress(read_records(settings.data), total_bytes, "reading")
    for texts in accept(records, lambda record: texts_of(record, settings.text_column), rejects):
        yield from texts
    rejects.check()
    print("merging", file=sys.stderr)


def _bytes_per_token(tokenizer: Tokenizer, path: str, text_column: str) -> float:
    """Return the mean over the beginning of a file."""
    num_bytes = num_tokens = 0
    for texts in accept(read_records([path]), lambda record: texts_of(record, text_column), Rejects()):
        for text in texts:
            num_bytes += len(text.encode())
            num_tokens += len(tokenizer.encode(text))
        if num_bytes > SAMPLE_BYTES:
            break
    return num_bytes / max(num_tokens, 1)


if __name__ == "__main__":
    run(main)
