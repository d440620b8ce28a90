"""Tables, of parquet files and of the hub, as lines of JSON: the one place that imports `datasets`."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from hashlib import sha256
from typing import Any

from dataset.messages import read_json, shown
from dataset.printing import NOTE, tell
from model.errors import UnfinishedError, UserError
from model.files import opened

HUB = "hub:"
CHUNK_BYTES = 2**20
MOST_JSON_BYTES = 2**27  # of JSON in one piece, which is held whole
LIKE_OURS = re.compile(r"\.(jsonl?|ndjson)(\.(gz|zst|bz2|xz))?$")  # of the hub, read as local ones are
NO_DATA = ("README.md", "LICENSE", ".gitattributes", ".gitignore", "dataset_infos.json")
READERS = ("json", "csv", "text", "parquet", "arrow")
"""of `datasets`, those that account for all they read; that of samples in .tar leaves out fields and links"""
CUT_UNSEEN = re.compile(r"\.(zstd?|tar|tgz|tbz2?|txz)(\.\w+)?$", re.IGNORECASE)
"""names of what ends early for `datasets` without a word where it is cut"""
TOLD_APART = {"name", "version", "data_dir", "data_files", "description", "features"}
"""what a card says beside how its files are read"""
tell_once = cache(tell)  # evaluations check their sources twice


def on_hub(source: str) -> dict[str, Any]:
    """Return what `hub:org/name[:config][:split]` asks for; two are name and split, None for any."""
    name, *options = source.removeprefix(HUB).split(":")
    if not name or len(options) > 2:
        raise UserError(f"{source}: expected {HUB}org/name, and after it :split or :config:split")
    config, split = options if len(options) == 2 else (None, *options, None)[:2]
    return {"path": name, "name": config, "split": split}


def parquet_rows(path: str) -> Iterator[bytes]:
    """Yield the rows of a parquet file as lines of JSON; raises `UserError` for one that cannot be read."""
    from pyarrow.parquet import ParquetFile  # `datasets` would take the name for a pattern, and open pictures

    with opened(path) as file, _explaining(path, UserError):
        table = ParquetFile(file)
        if len({*table.schema_arrow.names}) < len(table.schema_arrow.names):
            raise ValueError("a column stands twice, of which one would be lost")
        for batch in table.iter_batches(1000):  # else whole row groups are held, and arguments are pairs
            yield from (_line(row, batch.schema) for row in batch.to_pylist(maps_as_pydicts="strict"))


def hub_parts(source: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield what a data set of the hub consists of: the name of a file of JSON and its bytes, or "" and rows.

    `datasets` would take texts for dates where a file of JSON has nothing else in their place, and texts such
    as N/A in one of CSV for nothing. Raises `UnfinishedError`, also later, as the hub may answer next time.
    """
    from datasets.utils.file_utils import xopen

    explaining = _explaining_hub(source)
    with explaining():
        builder, split = _builder(source), on_hub(source)["split"]
        if builder.name == "csv":
            builder.config.keep_default_na, builder.config.na_values = False, [""]
        splits = _files_of_json(builder) or _accounted(builder).as_streaming_dataset()
        split = split or _split_among(source, list(splits))
        if split not in splits:
            raise ValueError(f"it has no split {split}; name one of {', '.join(splits)}")
        found = splits[split]
        if isinstance(found, list):
            for name in found:
                with xopen(name, "rb") as file:
                    yield name, _within(explaining, iter(partial(file.read, CHUNK_BYTES), b""))
        else:
            table = found.decode(False) if found.features else found  # pictures stay what a row says of them
            schema = found.features and found.features.arrow_schema
            yield "", _within(explaining, (_line(row, schema) for row in table))


def hub_state(source: str) -> str:
    """Return a digest of which data set of the hub this is, of the state of its files and of its card."""
    with _explaining_hub(source)():
        return sha256(f"{source} {_builder(source).hash}".encode()).hexdigest()


def tell_unread(source: str) -> None:
    """Say which files and splits of a data set of the hub are not read, and how its card says others are."""
    with _explaining_hub(source)():
        told = _unread(builder := _builder(source))
        if not on_hub(source)["split"]:
            _split_among(source, [*map(str, builder.config.data_files)])
        for what, names in ((what, names) for what, names in told.items() if names):
            tell_once(f"{NOTE}{source}: {what}: {names}")


def _explaining_hub(source: str) -> Callable[[], AbstractContextManager[None]]:
    return partial(_explaining, HUB + on_hub(source)["path"], UnfinishedError)


def _builder(source: str) -> Any:
    """Return what reads a data set of the hub; damaged files and lines are errors, whatever its card says."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it raises says the same
    request = on_hub(source)
    builder = datasets.load_dataset_builder(request["path"], request["name"])
    for name in {"on_bad_lines", "on_bad_files", "on_mixed_types"} & vars(builder.config).keys():
        setattr(builder.config, name, "error")  # else texts among other values become JSON of themselves
    return builder


def _files_of_json(builder: Any) -> dict[str, list[str]]:
    """Return the files of each split of a data set where all are such as we read, else nothing."""
    from datasets.utils.file_utils import xgetsize

    if builder.name != "json" or builder.config.field is not None:
        return {}
    splits = {str(split): names for split, names in builder.config.data_files.items()}
    names = [name for split in splits.values() for name in split]
    is_small = all(xgetsize(name) <= MOST_JSON_BYTES for name in names if name.endswith(".json"))
    return splits if is_small and all(map(LIKE_OURS.search, names)) else {}


def _accounted(builder: Any) -> Any:
    """Return a builder; raises `ValueError` for what it may lose a part of without a word."""
    names = [part for of in builder.config.data_files.values() for name in of for part in name.split("::")]
    if builder.name not in READERS:
        raise ValueError(f"its files would be read as {builder.name}; expected {', '.join(READERS)}")
    if cut := next(filter(CUT_UNSEEN.search, names), ""):
        raise ValueError(f"whether {cut} is whole would not be seen; unpack it, or name .jsonl.zst alone")
    return builder


def _unread(builder: Any) -> dict[str, str]:
    from fsspec.core import url_to_fs

    system, root = url_to_fs(builder.base_path)
    plain = os.path.realpath if os.path.isdir(root) else str  # a file may have several names
    files = {plain(name): name.removeprefix(root).strip("/") for name in system.find(root)}
    named = [name for names in builder.config.data_files.values() for name in names]
    read = {plain(name.rpartition("::")[2].rpartition("://")[2]) for name in named}
    unread = [name for file, name in files.items() if file not in read]
    others = sorted(read - files.keys())
    if plain is str and len(others) == len(read):  # the hub calls its files otherwise than is known here
        unread, others = [], []
    packed = [files.get(file, file) for file in sorted(read) if file.lower().endswith(".zip")]
    usual = vars(type(builder.config)(name="usual"))
    options = {k: v for k, v in vars(builder.config).items() if k not in TOLD_APART and v != usual.get(k)}
    return {
        "not read are the files": shown(each for each in unread if each.rpartition("/")[2] not in NO_DATA),
        "its card has others read": shown(others),
        "of archives its card has read": shown(name.partition("::")[0] for name in named if "::" in name),
        "of archives are not read names and folders that begin with . or __": shown(packed),
        "its card says what is read of a file, and how": str(options or ""),
    }


def _within(context: Callable[[], AbstractContextManager[None]], chunks: Iterator[bytes]) -> Iterator[bytes]:
    with context():
        yield from chunks


def _split_among(source: str, splits: list[str]) -> str:
    """Return the split that is read where none is named: train, or the only one; say which are not."""
    if "train" not in splits and len(splits) > 1:
        raise ValueError(f"it has no split train; name one of {', '.join(splits)}")
    read = "train" if "train" in splits else splits[0]
    if others := [split for split in splits if split != read]:
        tell_once(f"{NOTE}{source}: {read} is read; not read are the splits {', '.join(others)}")
    return read


@contextmanager
def _explaining(what: str, kind: type[UserError]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each format, file system and server raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what} cannot be read: {reason}") from None


def _line(row: dict[str, Any], schema: Any) -> bytes:
    row = {name: _given(value, schema and schema.field(name).type) for name, value in row.items()}
    return json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"


def _given(value: Any, kind: Any) -> Any:
    """Return a value as it was before Arrow gave it a type: objects without the keys of all the others."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType) and value is not None:
        return read_json(value)
    if isinstance(value, dict) and pa.types.is_map(kind):
        return {key: _given(each, kind.item_type) for key, each in value.items()}
    if isinstance(value, dict):
        return {key: _given(each, kind.field(key).type) for key, each in value.items() if each is not None}
    is_list = isinstance(value, list) and pa.types.is_nested(kind)
    return [_given(each, kind.value_type) for each in value] if is_list else value


def _plain(value: Any) -> str | dict[str, int]:
    """Return what a line of JSON holds for a value that it has no form for.

    Bytes are the text that they hold, as some write texts so; of others only their number is told.
    """
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"bytes": len(value)}
