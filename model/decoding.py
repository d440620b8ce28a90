"""Steps of one token per row: through the model as it is written, or as one compiled graph.

Both give the same logits; which is faster depends on the machine and is measured.
"""

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter

import torch
from torch import Tensor

from model.kv_cache import GROWTH_TOKENS, Held, KVCache, next_positions, slot_layout, write_layout
from model.masks import causal_step
from model.rolling_cache import part_of, slots_of
from model.transformer import LanguageModel

TRIALS = 12
TRIAL_ROWS = 23
"""rows of the first batch that is compiled; a size of the model that equals it would be taken for it"""
MOST_COMPILED_SLOTS = 4096
"""slots of a cache beyond which torch's compiler sums in another way, for which a step is not compiled"""
Step = Callable[[Tensor, KVCache], Tensor]
"""Maps causal tokens (B, 1) that continue the rows of a cache to logits (B, V)."""


class Steps:
    """Takes every step of a model in the way that is chosen for its number of rows."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._compiled: dict[bool, Step] = {}  # for one row, for more

    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Return the logits (B, V) after one causal token (B, 1) per row."""
        step = self._compiled.get(len(tokens) == 1, self._model.step)
        if cache.parts[0].keys[0].shape[2] + GROWTH_TOKENS > MOST_COMPILED_SLOTS:
            step = self._model.step
        return step(tokens, cache)

    def compile(self, for_one_row: bool) -> str:
        """Compile the steps of one row, or of any larger number of rows; keep that if it is faster here.

        Returns what was measured, in words. Takes a minute or two, less where it was done before.
        """
        compiled, rows = CompiledStep(self._model), 1 if for_one_row else TRIAL_ROWS
        with_it, without = (1000 * self._seconds(step, rows) for step in (compiled, self._model.step))
        measured = f"{with_it:.1f} ms a step compiled, {without:.1f} not, {rows} at a time"
        if with_it >= without:
            return f"not compiled ({measured})"
        self._compiled[for_one_row] = compiled
        return f"compiled ({measured})"

    @torch.no_grad()
    def _seconds(self, step: Step, rows: int) -> float:
        """Return the least time of a few steps, on zeros; the first one may compile."""
        cache = self._model.new_cache(rows)
        tokens = torch.zeros(rows, 1, dtype=torch.long, device=cache.lengths.device)
        moments = [perf_counter()]
        for _ in range(min(TRIALS, cache.max_tokens)):
            step(tokens, cache).sum().item()
            moments.append(perf_counter())
        return min(after - before for before, after in pairwise(moments))


class CompiledStep:
    """A step that is compiled once for all lengths: it writes to and reads all slots of a cache.

    The model must not change afterwards, neither its windows nor its way to attend.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        on_cpu = model.model.embed_tokens.weight.device.type == "cpu"
        options = {"cpp_wrapper": True, "size_asserts": False} if on_cpu else {}
        self._compute = torch.compile(next_logits, dynamic=True, options=options)
        self._is_compiled = False

    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Return the logits (B, V) after one causal token (B, 1) per row."""
        cache.reserve(cache.used + 1)
        parts = [part.held() for part in cache.parts]
        # Later calls differ in the number of rows and slots only, and it is compiled for any of them.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=self._is_compiled):
            logits = self._compute(self._model, tokens, parts)
        self._is_compiled = True
        return logits


def next_logits(model: LanguageModel, tokens: Tensor, parts: list[Held]) -> Tensor:
    """Map one token per row (B, 1) to the logits (B, V) after it, and bring up to date what a cache holds."""
    slots, present = [], []
    for _, (lengths, positions, block_ids), ring in parts:
        layout = causal_step(next_positions(positions))
        slots.append(slots_of(lengths.clone()[:, None], ring))  # (B, 1)
        write_layout(layout, slots[-1], positions, block_ids)
        lengths += 1
        present.append(slot_layout(positions, block_ids))
    each = torch.arange(len(tokens), device=tokens.device)
    kinds = [part_of(pattern, len(parts)) for pattern in model.config.layer_patterns]

    def update_cache(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        part = kinds[layer]
        stores = parts[part][0][kinds[:layer].count(part)]
        for store, fresh in zip(stores, (k, v), strict=True):
            store[each, :, slots[part][:, 0]] = fresh[:, :, 0]
        shape = (len(tokens), k.shape[1], -1, k.shape[3])  # sizes that are the model's, and thus known
        return stores[0].view(shape), stores[1].view(shape)

    visibilities = model.model.each_layer(
        lambda pattern: model.model.seen_in(layout, present[part_of(pattern, len(parts))], pattern)
    )
    hidden = model.model.compute(tokens, layout.position_ids, visibilities, update_cache)
    return model.logits(hidden[:, 0])
