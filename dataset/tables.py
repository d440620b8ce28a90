"""Tables, of parquet files and of the hub, as lines of JSON: the one place that imports `datasets`."""

import json
from collections.abc import Iterator
from typing import Any

from model.errors import UnfinishedError, UserError

HUB = "hub:"


def on_hub(source: str) -> dict[str, Any]:
    """Return what `hub:org/name[:config][:split]` asks for; two parts are a name and a split."""
    name, *options = source.removeprefix(HUB).split(":")
    if not name or len(options) > 2:
        raise UserError(f"{source}: expected {HUB}org/name, and after it :split or :config:split")
    config, split = options if len(options) == 2 else (None, *options, "train")[:2]
    return {"path": name, "name": config, "split": split}


def rows(**request: Any) -> Iterator[bytes]:
    """Yield the rows of what `datasets` opens as lines of JSON.

    Raises `UserError` for a file that it cannot read, `UnfinishedError` for a hub that may answer next time.
    """
    import datasets

    what = request.get("data_files", [HUB + request["path"]])[0]
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it raises says the same
    if request["path"] == "parquet":
        request["batch_size"] = 1000  # else whole row groups are held
    try:
        for row in datasets.load_dataset(**request, streaming=True):
            row = {column: _without_nulls(value) for column, value in row.items()}
            yield json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"
    except Exception as error:  # each format, file system and server raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = UnfinishedError if what.startswith(HUB) else UserError
        raise kind(f"{what} cannot be read: {reason}") from None


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
