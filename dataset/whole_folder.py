"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset.systems import fcntl
from model.errors import UnfinishedError, UserError


@contextmanager
def whole_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `path` when the block ends well, and is removed otherwise.

    Raises `UserError` if something lies at `path` already and may not be overwritten.
    """
    check_free(path, overwrite)
    path = Path(path).resolve()  # a link stays, its folder is replaced
    partial = _beside(path, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    try:
        yield partial
        _take_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder as `whole_folder` does, which a kill or Ctrl-C leaves for the next call.

    So does an `UnfinishedError`; only any other `UserError` removes it. Raises `UserError` also if another
    process is at work in it.
    """
    check_free(path, overwrite)
    path = Path(path).resolve()
    partial = _beside(path, "partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        try:
            yield partial
        except UnfinishedError:
            raise
        except UserError:
            shutil.rmtree(partial)
            raise
        _take_place(partial, path)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _take_place(partial: Path, path: Path) -> None:
    old = _beside(path, "old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the system lets go of it however this one ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process writes {folder}; wait for it or choose another --out") from None
        yield
    finally:
        os.close(descriptor)


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Raise `UserError` unless a folder may be written at `path`."""
    path = Path(path)
    check_place(path)
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"--out {path} exists already; choose another (--overwrite, if offered, replaces its like)"
        )


def check_place(path: Path) -> None:
    """Raise `UserError` unless a folder lies at `path` or can be made there, which every library can name."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--out {path}: expected a name in UTF-8; choose another") from None
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"--out {path} is a file; expected the name of a folder")
    parent = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if parent is None:
        raise UserError(f"--out {path} is the root of all folders; expected the name of a folder in one")
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--out {path} cannot be made in {parent}; choose a folder that can be written")
