"""From source files to a token store: read, parse, encode in batches, written whole or not at all."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.conversation import Message, QuestionPosition, Renderer, parse_messages, read_text
from dataset.progress import with_progress
from dataset.settings import Kind
from dataset.sources import Rejects, accept, check_sources, describe_source, read_records
from dataset.token_store import StoreWriter, TokenStore, read_manifest
from dataset.tokenizer import Tokenizer
from dataset.whole_folder import whole_folder
from model.errors import UserError

BATCH_RECORDS, BATCH_CHARACTERS = 1024, 1_000_000  # what is encoded at a time, whichever is less


@dataclass(frozen=True)
class PreparationSettings:
    """What `scripts.prepare_data` is asked for."""

    kind: Kind
    """pretrain: texts; sft: conversations"""
    data: tuple[str, ...]
    """.jsonl or .txt files (a .txt file holds texts between blank lines)"""
    tokenizer: str
    """tokenizer directory"""
    out: str
    """token store to write"""
    text_column: str = "text"
    """key of the text in a record (pretrain)"""
    question_position: QuestionPosition = "last"
    """where the question stands in records of context, question and answers (sft)"""
    max_reject_fraction: float = 0.01
    """share of the records that may be unusable; more is an error"""
    overwrite: bool = False
    """replace what lies at --out"""


def write_store(settings: PreparationSettings) -> tuple[dict[str, Any], bool]:
    """Write the token store that is asked for; return its manifest, and whether it lay there already.

    Raises `UserError` for missing or empty files, too many unusable records, or anything else at `out`.
    """
    check_sources(settings.data)
    tokenizer = Tokenizer.load(settings.tokenizer)
    sources = [describe_source(path) for path in settings.data]
    request = _request(settings, tokenizer, sources)
    if not settings.overwrite and is_store(settings.out):
        return _finished(settings.out, request), True
    notes = {"sources": sources, "request": request}
    with (
        whole_folder(settings.out, settings.overwrite and is_store(settings.out)) as folder,
        open(folder / "rejects.jsonl", "w") as listing,
        closing(StoreWriter(folder, settings.kind, tokenizer)) as writer,
    ):
        rejects = Rejects(settings.max_reject_fraction, listing)
        return writer.finish(_write_documents(settings, writer, rejects) | notes), False


def is_store(path: str | Path) -> bool:
    """Say whether a token store lies at `path`."""
    return all((Path(path) / name).is_file() for name in ("manifest.json", "rejects.jsonl"))


def _request(
    settings: PreparationSettings, tokenizer: Tokenizer, sources: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return all that decides the bytes of the store."""
    return {
        "kind": settings.kind,
        "text_column": settings.text_column,
        "question_position": settings.question_position,
        "tokenizer": tokenizer.fingerprint,
        "sources": [source["sha256"] for source in sources],
    }


def _finished(out: str, request: dict[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(out)
    if differing := [key for key in request if request[key] != manifest["request"][key]]:
        raise UserError(
            f"{out} was prepared with other {', '.join(differing)}; choose another --out, or --overwrite it"
        )
    TokenStore(out).verify()
    return manifest


def _write_documents(settings: PreparationSettings, writer: StoreWriter, rejects: Rejects) -> dict[str, Any]:
    """Append every usable record; return what was counted."""
    total_bytes = sum(Path(path).stat().st_size for path in settings.data)
    records = with_progress(read_records(settings.data), total_bytes, "preparing")
    renderer = Renderer(writer.tokenizer)
    num_bytes, target_bytes = 0, 0
    for batch in _in_batches(accept(records, _parser(settings), rejects)):
        _append(writer, renderer, batch)
        for message in (message for messages in batch for message in messages):
            size = len(message.content.encode())
            num_bytes += size
            target_bytes += size * (message.role == "assistant")
    rejects.check()
    counts = {"records": rejects.num_records, "rejects": dict(rejects.reasons)}
    return counts | {"bytes": num_bytes, "target_bytes": target_bytes}


def _parser(settings: PreparationSettings) -> Callable[[dict[str, Any]], list[Message]]:
    """Return the function from a record to messages; a text is one answer to nothing."""

    def parse_text(record: dict[str, Any]) -> list[Message]:
        return [Message("assistant", read_text(record.get(settings.text_column), settings.text_column))]

    def parse_chat(record: dict[str, Any]) -> list[Message]:
        return parse_messages(record, settings.question_position)

    return parse_text if settings.kind == "pretrain" else parse_chat


def _in_batches(documents: Iterable[list[Message]]) -> Iterator[list[list[Message]]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += sum(len(message.content) for message in document)
        if len(batch) >= BATCH_RECORDS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _append(writer: StoreWriter, renderer: Renderer, batch: list[list[Message]]) -> None:
    tokenizer = renderer.tokenizer
    texts = [message.content for messages in batch for message in messages]
    encoded = iter(tokenizer.encode_batch(texts))
    for messages in batch:
        contents = [next(encoded) for _ in messages]
        if writer.kind == "pretrain":
            writer.append([tokenizer.endoftext_id, *contents[0], tokenizer.endoftext_id])
        else:
            rendered = renderer.assemble([message.role for message in messages], contents)
            writer.append(rendered.ids, rendered.codes)
