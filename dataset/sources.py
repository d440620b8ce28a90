"""Where data lies: files, folders, globs and the hub, found, checked before they are read, and told apart.

What stands in them is read by `dataset/blocks.py`.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from glob import glob, has_magic
from hashlib import file_digest
from itertools import chain, takewhile
from pathlib import Path
from stat import S_ISREG, ST_DEV, ST_INO
from typing import Any, NoReturn

from dataset.blocks import COMPRESSIONS, ENDINGS, form_of
from dataset.messages import shown
from dataset.printing import NOTE, tell
from dataset.tables import HUB, hub_state, on_hub, tell_unread
from dataset.text_files import DEFAULT_RULES, ReadingSettings
from model.errors import UserError
from model.files import opened

PRODUCTS = {"a token store": ("manifest.json", "ids-00000.bin"), "a tokenizer": ("tokenizer.json",)}
"""files that tell a folder which is no data, though its files end as data do; a model has its tokenizer"""
UNTOLD = {".DS_Store", ".git", ".gitignore", ".gitattributes", ".gitkeep"}
"""hidden files and folders that nobody takes for data"""


def find_sources(names: Sequence[str]) -> list[str]:
    """Return the sources that names stand for: files, files in folders, matches of globs, hub names."""
    return list(chain.from_iterable(map(_expand, names)))


def _expand(name: str) -> list[str]:
    if not name:
        raise UserError("data: expected the name of a file, folder, glob or hub data set, got ''")
    path = Path(name)
    if not name.startswith(HUB):
        if os.path.isdir(name):
            return _data_among(_files_in(path), path, name)
        if has_magic(name) and not os.path.lexists(name):
            plain = takewhile(lambda part: not has_magic(part), path.parts)
            return _data_among(_matches(path), Path(*plain), name)
    return [name]


def _files_in(folder: Path) -> list[str]:
    """Return the files in a folder, however deep; links to folders, and what is hidden, are named alone."""
    if product := _product(folder):
        raise UserError(f"{folder} is {product}, not data; name the files in it that are data, if any")
    entries: list[Path] = []
    hidden: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        hidden += [name for name in {*folders, *files} - UNTOLD if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]  # half-made stores among them
        entries += [Path(place, name) for name in folders + files if not name.startswith(".")]
    _tell_hidden(str(folder), hidden)
    for link in sorted(entry for entry in entries if entry.is_symlink() and os.path.isdir(entry)):
        tell(f"{NOTE}{link} is a link to a folder: name it to read it")
    return [str(entry) for entry in sorted(entries) if not os.path.isdir(entry)]


def _tell_hidden(place: str, names: Iterable[str]) -> None:
    if hidden := sorted(Path(name).name for name in names):
        tell(f"{NOTE}{place}: not read, as hidden, are {shown(hidden)}")


def _matches(pattern: Path) -> list[str]:
    """Return the files that a glob finds; one that could not look everywhere would find too few."""
    for depth in range(1, len(pattern.parts)):
        for folder in filter(os.path.isdir, glob(str(Path(*pattern.parts[:depth])), recursive=True)):
            try:
                os.listdir(folder)
            except OSError as error:
                _refuse(error)
    found = sorted(glob(str(pattern), recursive=True))
    hidden = {*glob(str(pattern), recursive=True, include_hidden=True)} - {*found}
    _tell_hidden(str(pattern), (name for name in hidden if UNTOLD.isdisjoint(Path(name).parts)))
    files = [each for each in found if not os.path.isdir(each)]
    read = {folder for file in files for folder in Path(file).parents}
    for folder in filter(os.path.isdir, found):
        if Path(folder) not in read and os.listdir(folder):
            tell(f"{NOTE}{folder} is a folder: name it to read it")
    return files


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _data_among(files: list[str], root: Path, name: str) -> list[str]:
    """Return the files of known forms that lie in no product below `root`, and say what is left out."""
    products = _products_around(files, root)
    outside = [file for file in files if not products[file]]
    if not (data := list(filter(form_of, outside))):
        wanted = f"no data files in {name}: expected names that end in {', '.join(ENDINGS)}"
        raise UserError(f"{wanted}, outside tokenizers and token stores")
    for folder in dict.fromkeys(filter(None, products.values())):
        tell(f"{NOTE}{folder} is {_product(folder)}: not read as data")
    if others := sorted({_ending(file) for file in outside if not form_of(file)}):
        tell(f"{NOTE}{name}: not read are files of {', '.join(others)}")
    return data


def _ending(file: str) -> str:
    """Return the last ending of a name, with the one before it where it tells of compression."""
    packed = Path(file).suffix if Path(file).suffix in COMPRESSIONS else ""
    return Path(file.removesuffix(packed)).suffix + packed or "no ending"


def _products_around(files: Iterable[str], root: Path) -> dict[str, Path | None]:
    """Return for each file the outermost folder below `root` around it that is no data, else None."""
    is_product = cache(_product)
    around = {file: takewhile(lambda folder: folder != root, Path(file).parents) for file in files}
    return {file: next(filter(is_product, reversed(list(above))), None) for file, above in around.items()}


def _product(folder: Path) -> str:
    """Say what a folder is that the project itself may have written, "" for any other."""
    for product, names in PRODUCTS.items():
        if all(os.path.isfile(folder / name) for name in names):
            return product
    return ""


def check_sources(sources: Sequence[str]) -> None:
    """Raise `UserError` unless every source is a file of a known form that is not empty, or on the hub.

    None may be named twice, by whatever path: its documents would be read, and counted, twice. What is not
    read of data sets of the hub is told.
    """
    names: dict[Any, list[str]] = {}
    for source in sources:
        if source.startswith(HUB):  # of most data sets these are what is read where nothing is named
            file = str({"name": "default", "split": "train"} | {k: v for k, v in on_hub(source).items() if v})
        else:
            status = _check_file(source)
            if not form_of(source):
                raise UserError(f"{source}: expected a file that ends in {', '.join(ENDINGS)}")
            if not status.st_size:
                raise UserError(f"data file is empty: {source}")
            file = status[ST_INO : ST_DEV + 1]
        names.setdefault(file, []).append(source)
    if twice := [each for each in names.values() if len(each) > 1]:
        raise UserError(f"data named more than once: {' and '.join(twice[0])}; name each file once")
    for source in (each for each in sources if each.startswith(HUB)):
        tell_unread(source)


def _check_file(path: str) -> os.stat_result:
    """Return the state of a file; raises `UserError` for what is none, without waiting for it."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        aim = ", which is a link to nothing" if os.path.islink(path) else ""
        raise UserError(f"data file not found: {path}{aim}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not S_ISREG(status.st_mode):
        raise UserError(f"{path}: expected a file, got a folder, pipe or device")
    with opened(path):
        return status


def begin_reading(sources: Sequence[str], settings: ReadingSettings) -> dict[str, list[int]]:
    """Check what is about to be read, and return the states of files for `check_unchanged` when it has been.

    Raises `UserError` as `check_sources` does, and for a separator or column that none of the sources heeds.
    """
    check_sources(sources)
    column, rules, forms = settings.text_column, settings.text_rules, {*map(form_of, sources)}
    if column != "text" and forms == {".txt"}:
        raise UserError(f"text_column {column}: .txt files have no columns; leave it out")
    if rules.separator != DEFAULT_RULES.separator:
        rules.check()
        if ".txt" not in forms:
            fault = f"document_separator {rules.separator}: none of the data is a .txt file"
            raise UserError(f"{fault}; leave it out")
    return {source: state_of(source) for source in sources if not source.startswith(HUB)}


def check_unchanged(states: dict[str, list[int]]) -> None:
    """Raise `UserError` if a file was written to, replaced or removed since `state_of` it was asked for."""
    if changed := [source for source, state in states.items() if state_of(source) != state]:
        raise UserError(f"{changed[0]} changed while it was read; run the same command again once it stays")


def state_of(path: str) -> list[int]:
    """Return what changes when a file is written to or replaced; nothing of one that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def size_of(source: str) -> int:
    """Return the bytes of a file, 0 for what is on the hub or gone, which its reading will say."""
    return os.path.getsize(source) if os.path.exists(source) else 0


def describe_source(source: str) -> dict[str, Any]:
    """Return what tells this state of a source from another: name, bytes of a file, sha256 (of its state)."""
    if source.startswith(HUB):
        return {"path": source, "bytes": 0, "sha256": hub_state(source)}
    with opened(source) as file:
        digest = file_digest(file, "sha256").hexdigest()
        return {"path": str(source), "bytes": file.tell(), "sha256": digest}
