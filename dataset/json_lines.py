"""The objects of a .json file, one to a line: those of an array, or one after the other."""

import json
import re
from collections.abc import Iterable, Iterator

from dataset.text_files import not_utf8
from dataset.unpacking import BrokenOffError
from model.errors import UserError

MOST_BYTES = 2**27
BETWEEN = re.compile(r"[ \t\r\n,]*+")
DECODER = json.JSONDecoder(parse_int=str)  # numbers with too many digits are a fault of their own record


def as_json_lines(source: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the objects, each on the line on which it begins, or on the next one that is free.

        [{"a": 1},          {"a": 1}
         {"b":              {"b":  2}
           2}, 3]           3           a line as well, which the reader will refuse

    A file whose first line is an object is one of lines already and passes as it is. Any other is held whole:
    raises `UserError` where it is larger than `MOST_BYTES` or not JSON.
    """
    content, is_first_line = bytearray(), True
    chunks = iter(chunks)
    try:
        for chunk in chunks:
            content += chunk
            if is_first_line and b"\n" in chunk:
                is_first_line = False
                if _is_object(content.lstrip(b"\xef\xbb\xbf\r\n").partition(b"\n")[0]):
                    yield bytes(content)
                    yield from chunks
                    return
            if len(content) > MOST_BYTES:
                raise UserError(
                    f"{source}: expected at most {MOST_BYTES >> 20} MB of JSON in one piece; convert it to "
                    ".jsonl, a record on each line: jq -c '.[]' a.json > a.jsonl"
                )
        text = content.decode("utf-8-sig")
        if is_bomb(text):
            raise UserError(f"{source}: hardly anything but brackets; expected records of text")
    except BrokenOffError as error:
        raise UserError(f"{source}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: {not_utf8(bytes(content[: 2**16]))}") from None
    yield from _objects(source, text)


def is_bomb(text: str) -> bool:
    """Say whether JSON is a megabyte or more of hardly anything but brackets: parsed, it takes far more."""
    return len(text) >= 2**20 and 8 * (text.count("[") + text.count("{")) > len(text)


def _is_object(line: bytes | bytearray) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _objects(source: str, text: str) -> Iterator[bytes]:
    position = BETWEEN.match(text).end()
    in_array = text.startswith("[", position)
    position, counted, line, written = position + in_array, 0, 0, 0
    while (position := BETWEEN.match(text, position).end()) < len(text):
        line, counted = line + text.count("\n", counted, position), position
        if in_array and text[position] == "]":
            if text[position + 1 :].strip():
                raise UserError(f"{source} line {line + 1}: more follows the end of the array; mend the file")
            return
        try:
            _, end = DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(f"{source} line {error.lineno}: not JSON ({error.msg}); mend the file") from None
        except RecursionError:
            raise UserError(f"{source} line {line + 1}: nested too deeply; mend the file") from None
        gap = "\n" * max(0, line - written)
        written += len(gap) + 1
        yield (gap + text[position:end].replace("\n", " ") + "\n").encode()
        position = end
    if in_array:
        raise UserError(f"{source}: the array has no end; mend the file")
