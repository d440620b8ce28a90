"""Folders of generated records: written whole, and replaced only where nothing else stands in them."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from dataset.printing import printable
from model.errors import UserError
from model.files import check_free, whole_folder

Files = dict[str, list[dict]]
"""the records of each file, by its path in the folder"""


def write_files(out: str | Path, files: Files) -> dict[str, int]:
    """Write the files into the folder `out`, all or none, and return their sizes in bytes.

    A folder of the same files is replaced. Raises `UserError` if anything else stands there.
    """
    check_replaceable(out, files)
    with whole_folder(out, overwrite=True) as folder:
        for name, records in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (folder / name).write_bytes("".join(lines).encode())
    return {name: (Path(out) / name).stat().st_size for name in files}


def check_replaceable(out: str | Path, names: Collection[str]) -> None:
    """Raise `UserError` unless `out` is free, empty, or holds the files `names` and nothing else."""
    out = Path(out)
    check_free(out, overwrite=True)
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if found and found != set(names):
        odd = min(found ^ set(names))
        raise UserError(
            f"{out} exists and holds other files than are written (see {odd}); choose another --out"
        )


def table(out: str, files: Files, sizes: dict[str, int]) -> Iterator[str]:
    """Yield lines that say what was written."""
    yield f"{'file':<36}{'records':>9}{'kilobytes':>11}"
    for name, records in files.items():
        path = printable(str(Path(out) / name))
        yield f"{path:<36}{len(records):>9,}{sizes[name] / 1000:>11,.0f}"
