"""Tables, of parquet files and of the hub, as lines of JSON: the one place that imports `datasets`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dataset.printing import printable
from model.errors import UnfinishedError, UserError
from model.files import opened

HUB = "hub:"
ROWS_AT_ONCE = 1000  # of a parquet file; else whole row groups are held


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
        for batch in table.iter_batches(ROWS_AT_ONCE):
            yield from map(_line, batch.to_pylist(maps_as_pydicts="strict"))  # else arguments are pairs


def hub_rows(source: str) -> Iterator[bytes]:
    """Yield the rows of a data set of the hub; raises `UnfinishedError` as that may answer next time."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it raises says the same
    request = on_hub(source)
    with _explaining(HUB + request["path"], UnfinishedError):
        table = datasets.load_dataset(**request, streaming=True)
        if request["split"] is None:
            table = table[_split_among(source, list(table))]
        table = table.decode(False) if table.features else table  # pictures stay what a row says of them
        yield from map(_line, table)


def _split_among(source: str, splits: list[str]) -> str:
    """Return the split that is read where none is named: train, or the only one; say which are not."""
    if "train" not in splits and len(splits) > 1:
        raise ValueError(f"it has no split train; name one of {', '.join(splits)}")
    read = "train" if "train" in splits else splits[0]
    if others := [split for split in splits if split != read]:
        said = f"{source}: {read} is read; not read are the splits {', '.join(others)}"
        print(printable(said), file=sys.stderr)
    return read


@contextmanager
def _explaining(what: str, kind: type[UserError]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each format, file system and server raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what} cannot be read: {reason}") from None


def _line(row: dict[str, Any]) -> bytes:
    row = {column: _without_nulls(value) for column, value in row.items()}
    return json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that hold null: Arrow gives every object the keys of all the others."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


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
