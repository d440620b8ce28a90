"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import UserError


@contextmanager
def whole_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `path` when the block ends well, and is removed otherwise.

    Raises `UserError` if something lies at `path` already and may not be overwritten.
    """
    check_free(path, overwrite)
    path = Path(path).resolve()  # a link stays, its folder is replaced
    partial, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Raise `UserError` unless a folder may be written at `path`."""
    path = Path(path)
    check_place(path)
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"--out {path} exists already; choose another (--overwrite, if offered, replaces its like)"
        )


def check_place(path: Path) -> None:
    """Raise `UserError` unless a folder lies at `path` or can be made there."""
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"--out {path} is a file; expected the name of a folder")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--out {path} cannot be made in {parent}; choose a folder that can be written")
