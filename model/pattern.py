"""What a layer sees of what the one rule (`model/masks.py`) makes visible; imports no torch."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from numpy import ndarray as Array
    from torch import Tensor


class Pattern(NamedTuple):
    """Bounds on the keys that a token sees; without any, it sees all that the rule lets it."""

    window: int | None = None
    """number of last keys that it sees, itself included (Beltagy et al. 2020, arXiv 2004.05150)"""
    both_sides: bool = False
    """whether the window bounds the later keys of a bidirectional block, too"""
    sinks: int = 0
    """number of first tokens of its document that it sees besides (Xiao et al. 2023, arXiv 2309.17453)"""
    chunk: int | None = None
    """tokens of the pieces that documents are cut into, of which it sees its own alone (Llama 4)"""

    @property
    def reach(self) -> int | None:
        """How many last keys it may see, itself included and sinks left aside; None = all."""
        return min((bound for bound in (self.window, self.chunk) if bound), default=None)

    def is_near(self, query: "Tensor", key: "Tensor") -> "Tensor":
        """Return True where a key is near a query or a sink, by their positions in one document.

        The window looks left only (Gemma 3 report, arXiv 2503.19786), or bounds later keys of a block, too:
        |q - k| < window. Chunks are counted from the first token, and bound blocks.
        """
        near = key >= 0
        if self.window is not None:
            near = near & (key > query - self.window)  # so no numbers are made for all pairs
            if self.both_sides:
                near = near & (key < query + self.window)
        if self.chunk is not None:
            near = near & (query // self.chunk == key // self.chunk)
        return near | (key < self.sinks) if self.sinks else near

    def bounded(self, place: "Array", first: "Array", last: "Array") -> tuple["Array", "Array"]:
        """Return the first and last key that `is_near` leaves, sinks aside, of those that queries see.

        All are places in a row; `first` is where the document of a query starts.
        """
        near = first
        if self.window is not None:
            near = first.clip(min=place - self.window + 1)
            last = last.clip(max=place + self.window - 1) if self.both_sides else last
        if self.chunk is not None:
            chunk = place - (place - first) % self.chunk
            near, last = near.clip(min=chunk), last.clip(max=chunk + self.chunk - 1)
        return near, last

    def within(self, length: int) -> "Pattern":
        """Return what does the same in documents of up to `length` tokens, without bounds that none meets."""
        window = self.window if self.window and self.window < length else None
        chunk = self.chunk if self.chunk and self.chunk < length else None
        if not (window or chunk) or self.sinks >= length:
            return ALL
        return Pattern(window, self.both_sides and bool(window), self.sinks, chunk)


ALL = Pattern()
"""of layers that see all that the rule lets them"""
