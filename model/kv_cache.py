"""Keys and values of the tokens seen so far, and the layout they were computed under."""

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError
from model.masks import Layout

GROWTH_TOKENS = 128


class KVCache:
    """Preallocated keys and values, one document per row; the slot of a token is its position.

    Rows are right-padded and have lengths of their own. A call of the model first `extend`s the cache
    with the layout of its tokens, then every layer stores its keys and values with `update`.
    """

    def __init__(
        self, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.max_tokens = config.max_position_embeddings
        shape = (batch, config.num_key_value_heads, 1, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.block_ids = torch.full((batch, 1), -1, device=device)  # (B, slots)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self._slots = self.lengths[:, None]

    @property
    def used(self) -> int:
        """Length of the longest row in tokens."""
        return int(self.lengths.max()) if len(self.lengths) else 0

    @property
    def layout(self) -> Layout:
        """The layout (B, used) of the cached keys."""
        index = torch.arange(self.used, device=self.lengths.device).expand(len(self.lengths), -1)
        documents = torch.where(index < self.lengths[:, None], 0, -1)
        return Layout(documents, index, self.block_ids[:, : self.used])

    def extend(self, layout: Layout) -> Tensor:
        """Make room at the end of each row for right-padded tokens of `layout` (B, T); return slots.

        Raises `ValueError` for tokens that do not continue their row or whose block began before this
        call (the cut rule), and `UserError` when a row would pass `max_position_embeddings`.
        """
        real = layout.document_ids >= 0
        self._check_continues(layout, real)
        lengths = self.lengths + real.sum(1)
        used = int(lengths.max())
        if used > self.max_tokens:
            raise UserError(
                f"the context needs {used} tokens but the model takes {self.max_tokens}; "
                "shorten it or raise max_position_embeddings"
            )
        self._reserve(used + 1)
        # padding goes to the last slot, which no key view ever reaches
        self._slots = torch.where(real, layout.position_ids, self.block_ids.shape[1] - 1)
        self.block_ids.scatter_(1, self._slots, layout.block_ids)
        self.lengths = lengths
        return self._slots

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, D) of the new tokens; return those of all (B, Hkv, used, D)."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        used = self.used
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            store[rows, :, self._slots] = new.transpose(1, 2).to(store.dtype)
        return self.keys[layer][:, :, :used], self.values[layer][:, :, :used]

    def cut(self, lengths: Tensor) -> None:
        """Forget the tokens of each row from `lengths` (B,) on; the caller knows the cut legal."""
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths.device))

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows, in the given order."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.block_ids, self.lengths = self.block_ids[rows], self.lengths[rows]

    def _check_continues(self, layout: Layout, real: Tensor) -> None:
        first = layout.position_ids[:, 0]
        if bool(((first != self.lengths) & real[:, 0]).any()):
            raise ValueError(
                f"positions begin at {first.tolist()} but the cache holds {self.lengths.tolist()} tokens"
            )
        last_blocks = self.block_ids.gather(1, (self.lengths - 1).clamp(min=0)[:, None])[:, 0]
        split = (self.lengths > 0) & real[:, 0] & (last_blocks >= 0) & (last_blocks == layout.block_ids[:, 0])
        if bool(split.any()):
            row = int(split.nonzero()[0])
            raise ValueError(
                f"block {int(last_blocks[row])} of row {row} is cut after {int(self.lengths[row])} tokens: "
                "a bidirectional block must be computed in one call"
            )

    def _reserve(self, slots: int) -> None:
        missing = slots - self.block_ids.shape[1]
        if missing <= 0:
            return
        missing = -(-missing // GROWTH_TOKENS) * GROWTH_TOKENS
        self.block_ids = torch.nn.functional.pad(self.block_ids, (0, missing), value=-1)
        self.keys = [torch.nn.functional.pad(keys, (0, 0, 0, missing)) for keys in self.keys]
        self.values = [torch.nn.functional.pad(values, (0, 0, 0, missing)) for values in self.values]
