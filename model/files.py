"""Files and folders that are there whole or not at all, locks, and what a user may have damaged in files.

out               as it was, until
.out.partial      which is being written, takes its name in one instant; a kill leaves only this
"""

import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from model.errors import UnfinishedError, UserError
from model.systems import fcntl

if TYPE_CHECKING:
    from torch import Tensor

LOCK, MOST_FOLDERS = ".lock", 300
HARMLESS = "\u200c\u200d"  # joiners of emoji and of several scripts
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, half surrogates, line and paragraph separators


def is_seen(character: str) -> bool:
    """Say whether a character is shown for what it is: it neither steers a terminal nor cuts a line."""
    return character.isprintable() or character in HARMLESS or unicodedata.category(character) not in ESCAPED


class _Written(dict[int, str]):
    """How each character stands in JSON, found when it is met; line ends are those between values."""

    def __missing__(self, code: int) -> str:
        self[code] = chr(code) if code == ord("\n") or is_seen(chr(code)) else json.dumps(chr(code))[1:-1]
        return self[code]


WRITTEN = _Written()


def as_json(value: Any, indent: int | None = None) -> str:
    """Return JSON in which every script stays readable, and what is not seen stands as an escape.

    So a file of ours may be shown in a terminal, and its lines are those that every reader finds.
    """
    return json.dumps(value, indent=indent, ensure_ascii=False).translate(WRITTEN)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file to be read; raises `UserError` where the system cannot, now or later."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def text_in(file: Path) -> str:
    """Return what a file of UTF-8 holds; raises `UserError`, which names it, for other bytes."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is damaged: expected UTF-8, got other bytes ({error})") from None


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Return the object in a JSON file; raises `UserError`, which ends with `advice`, for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {advice}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON (it is nested too deeply); {advice}") from None
    except ValueError:  # Python refuses to count digits for minutes
        raise UserError(f"{path} is not valid JSON (a number has thousands of digits); {advice}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}; {advice}")
    return values


def write_json(path: Path, values: dict[str, Any], indent: int | None = 2) -> None:
    """Write an object, whole or not at all."""
    write_text(path, as_json(values, indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all; names of files that are no UTF-8 are escaped as JSON has it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def open_tensors(path: Path) -> safe_open:
    """Open a file for reading: safetensors alone, so that opening a stranger's runs nothing that lies in it.

    The library checks that tensors fill the file. Raises `UserError` for one that is missing, damaged, cut
    short or too large.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error
    except RuntimeError as error:  # the system maps no file so much larger than memory
        raise UserError(f"{path} is too large for the memory of this machine ({error})") from error


def write_tensors(path: Path, tensors: dict[str, "Tensor"], metadata: dict[str, str]) -> None:
    """Write tensors, and words about them; raises `OSError` where the disk does not take them."""
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{path} cannot be written: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write to; what was written takes the place of `path` in one instant, on the disk.

    An `OSError` names `path`, which the user knows.
    """
    partial = beside(path, "partial")
    try:
        partial.unlink(missing_ok=True)  # what a kill left, or a link that a stranger did
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    except OSError as error:
        if error.errno and error.filename in (None, partial, str(partial)):  # else it says all in words
            error.filename = str(path)
        raise


@contextmanager
def whole_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `path` when the block ends well, and is removed otherwise.

    Raises `UserError` if something lies at `path` already and may not be overwritten.
    """
    check_free(path, overwrite)
    path = Path(path).resolve()  # a link stays, its folder is replaced
    partial = beside(path, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    try:
        yield partial
        take_place(partial, path)
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
    partial = beside(path, "partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        try:
            yield partial
        except UnfinishedError:
            raise
        except UserError:
            shutil.rmtree(partial)
            raise
        take_place(partial, path)


def take_place(partial: Path, path: Path) -> None:
    """Give a folder its name once all of it is on the disk; a folder that had the name goes."""
    for member in (*partial.rglob("*"), partial):
        flush(member)
    old = beside(path, "old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    (partial / LOCK).unlink(missing_ok=True)
    os.replace(partial, path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def beside(path: Path, suffix: str) -> Path:
    """Return the hidden name beside a file or folder for what is not it yet, or no longer."""
    if not path.name or "\0" in path.name:
        raise UserError(f"{path}: expected the name of a file or folder")
    return path.with_name(f".{path.name}.{suffix}")


def flush(path: Path) -> None:
    """Wait until what was written of a file or folder would survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(path: Path) -> Path:
    """Return a file that is about to be written to; raises `UserError` for a link.

    In a folder from a stranger it could lead to any file of the user's.
    """
    if os.path.islink(path):
        raise UserError(f"{path} is a link, which may lead to any file; expected a file, take the link away")
    return path


def flush_written(file: IO) -> None:
    """Do the same for what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def locked(folder: Path, waits: bool = False) -> Iterator[int]:
    """Hold a folder against other processes by a file in it that names this one; yield its descriptor.

    The system lets go of it when this process has ended in any way, and those that got the descriptor. Raises
    `UserError` where another process holds the folder, unless it `waits`.
    """
    with open(own(folder / LOCK), "a+", errors="replace") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            fault = f"--out {folder} is being written by process {lock.read()}"
            raise UserError(f"{fault}; wait for it or stop it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock.fileno()


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Raise `UserError` unless a folder may be written at `path`."""
    path = Path(path)
    check_place(path)
    if path.exists() and any(path.iterdir()) and not overwrite:
        fault = f"--out {path} exists already"
        raise UserError(f"{fault}; choose another (--overwrite, if offered, replaces its like)")


def check_place(path: Path) -> None:
    """Raise `UserError` unless a folder lies at `path` or can be made there, which every library can name."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--out {path}: expected a name in UTF-8; choose another") from None
    if len(path.absolute().parts) > MOST_FOLDERS:
        raise UserError(f"--out: expected at most {MOST_FOLDERS} folders in each other; choose another")
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"--out {path} is a file; expected the name of a folder")
    parent = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if parent is None:
        raise UserError(f"--out {path} is the root of all folders; expected the name of a folder in one")
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--out {path} cannot be made in {parent}; choose a folder that can be written")
