"""A stream of JSON objects, one to a line, from a .json file of any size: an array, an object, or many."""

import re
from collections.abc import Iterable, Iterator

TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\(?:.|\Z))*+("?)|[{}\[\]]', re.DOTALL)
BETWEEN = b" \t\r\n,"
DEEPEST_INDENT = 64


def as_json_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the outermost objects, each on the line on which it begins, or on the next one that is free.

    Only brackets are counted, and strings passed over, so an object that is not JSON comes out as well. One
    whose brackets do not match ends where a line begins as that of the first object did.

        [{"a": 1},          {"a": 1}
         {"b":              {"b":  2}
           2}, 3]           3           a line as well, which the reader will refuse
    """
    splitter, waiting, enough = _Splitter(), b"", 0
    failure: Exception | None = None
    try:
        for chunk in chunks:
            waiting += chunk
            if len(waiting) >= enough:
                yield b"".join(splitter.feed(waiting))
                waiting = splitter.rest
                enough = 2 * len(waiting)  # so that a long string is not searched again with every chunk
    except Exception as error:  # what was read before it still comes out
        failure = error
    yield b"".join([*splitter.feed(waiting, is_last=True), *splitter.end(b"")])
    if failure:
        raise failure


class _Splitter:
    def __init__(self) -> None:
        self.rest = b""
        self._base: int | None = None  # depth at which objects begin: 1 inside an array
        self._depth, self._text = 0, bytearray()
        self._line = self._lines_written = 0
        self._indent: bytes | None = None

    def feed(self, data: bytes, is_last: bool = False) -> Iterator[bytes]:
        """Yield the lines that are complete; what `rest` holds is to be fed again, with more behind it."""
        begin, stop = 0, len(data)
        for token in TOKEN.finditer(data):
            sign, here = token[0][:1], token.start()
            if token.end() == len(data) and not token[1] and not is_last:
                stop = here  # what it is depends on what comes
                break
            if sign == b'"':
                continue
            if self._base is None:
                self._base = int(sign == b"[")
            if sign in b"{[" and self._begins_object(sign, data, begin, here):
                yield from self.end(data[begin:here])
                begin, self._depth = here, self._base + 1
            elif self._depth > self._base:
                self._depth += 1 if sign in b"{[" else -1
                if self._depth == self._base:
                    yield from self.end(data[begin : token.end()])
                    begin = token.end()
            else:  # the brackets of the array
                self._text += data[begin:here]
                begin, self._depth = token.end(), int(sign == b"[")
        self._text += data[begin:stop]
        self.rest = data[stop:]

    def end(self, last_piece: bytes) -> Iterator[bytes]:
        """Yield what was gathered, if it is anything but what stands between objects."""
        text, self._text = bytes(self._text + last_piece), bytearray()
        content = text.removeprefix(b"\xef\xbb\xbf").strip(BETWEEN)
        if content:
            line = self._line + text[: text.index(content)].count(b"\n")
            gap = b"\n" * max(0, line - self._lines_written)
            self._lines_written += len(gap) + 1
            yield gap + content.replace(b"\n", b" ") + b"\n"
        self._line += text.count(b"\n")

    def _begins_object(self, sign: bytes, data: bytes, begin: int, here: int) -> bool:
        before = bytes(self._text[-DEEPEST_INDENT:]) + data[max(begin, here - DEEPEST_INDENT) : here]
        _, newline, indent = before.rpartition(b"\n")
        indent = indent if newline else b"?"
        if self._depth > self._base:
            return sign == b"{" and indent == self._indent
        if self._depth < self._base and sign == b"[":
            return False
        is_bare = not indent and data[here + 1 : here + 2] in b"\r\n"  # then inner objects may begin so, too
        if self._indent is None and not indent.strip() and not is_bare:
            self._indent = indent
        return True
