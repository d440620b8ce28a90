"""Steps of one token per row: through the model as it is written, or through compiled layers.

Both give the same logits; which is faster depends on the machine and is measured.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import Visibility
from model.kv_cache import GROWTH_TOKENS, KVCache, new_cache
from model.layers import rotary_angles
from model.masks import Layout
from model.transformer import LanguageModel

TRIALS = 12
TRIAL_ROWS = 23
"""rows of the first batch that is compiled; a size of the model that equals it would be taken for it"""
MOST_COMPILED_SLOTS = 4096
"""slots of a cache beyond which torch's compiler sums in another way, for which a step is not compiled"""
Step = Callable[[Tensor, Layout, KVCache], Tensor]
"""Maps tokens (B, 1) that continue the rows of a cache, with their layout, to logits (B, V)."""


class Steps:
    """Takes every step of a model in the way that is chosen for its number of rows."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._compiled: dict[bool, Step] = {}  # for one row, for more

    def __call__(self, tokens: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Return the logits (B, V) after one causal token (B, 1) per row."""
        step = self._compiled.get(len(tokens) == 1, self._as_written)
        if cache.keys[0].shape[2] + GROWTH_TOKENS > MOST_COMPILED_SLOTS:
            step = self._as_written
        return step(tokens, layout, cache)

    def compile(self, for_one_row: bool) -> str:
        """Compile the steps of one row, or of any larger number of rows; keep that if it is faster here.

        Returns what was measured, in words. Takes a minute or two, less where it was done before.
        """
        compiled, rows = CompiledStep(self._model), 1 if for_one_row else TRIAL_ROWS
        with_it, without = (1000 * self._seconds(step, rows) for step in (compiled, self._as_written))
        measured = f"{with_it:.1f} ms a step compiled, {without:.1f} not, {rows} at a time"
        if with_it >= without:
            return f"not compiled ({measured})"
        self._compiled[for_one_row] = compiled
        return f"compiled ({measured})"

    def _as_written(self, tokens: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        return self._model.lm_head(self._model.model(tokens, layout, cache)[:, 0])

    @torch.no_grad()
    def _seconds(self, step: Step, rows: int) -> float:
        """Return the least time of a few steps, on zeros; the first one may compile."""
        weight = self._model.model.embed_tokens.weight
        cache = new_cache(self._model.config, rows, weight.dtype, weight.device)
        tokens = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)
        moments = [perf_counter()]
        for _ in range(min(TRIALS, cache.max_tokens)):
            step(tokens, causal_step(cache), cache).sum().item()
            moments.append(perf_counter())
        return min(after - before for before, after in pairwise(moments))


def causal_step(cache: KVCache) -> Layout:
    """Return the layout (B, 1) of one causal token at the end of every row of a cache."""
    positions = cache.lengths[:, None]
    return Layout(torch.zeros_like(positions), positions, torch.full_like(positions, -1))


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

    def __call__(self, tokens: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Return the logits (B, V) after one causal token (B, 1) per row."""
        visibilities = self._model.model.cached_visibilities(layout, cache.append(layout), cache)
        shared = {id(seen): seen for seen in visibilities}  # one for each window
        masks = {key: _over_all_slots(seen, cache) for key, seen in shared.items()}
        stores = list(zip((masks[id(seen)] for seen in visibilities), cache.keys, cache.values, strict=True))
        # Later calls differ in the number of rows and slots only, and it is compiled for any of them.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=self._is_compiled):
            logits = self._compute(self._model, tokens, layout.position_ids, stores, cache.slots[:, 0])
        self._is_compiled = True
        return logits


def next_logits(
    model: LanguageModel,
    tokens: Tensor,
    position_ids: Tensor,
    stores: list[tuple[Tensor, Tensor, Tensor]],
    slots: Tensor,
) -> Tensor:
    """Map one token per row (B, 1) to the logits (B, V) after it.

    `stores` are for each layer the mask (B, 1, 1, S), True where a token may attend, and keys and values
    (B, Hkv, S, D), into whose `slots` (B,) those of the tokens are written.
    """
    x = model.model.embed_tokens(tokens)  # (B, 1, C)
    rows = torch.arange(len(x), device=x.device)
    angles = rotary_angles(position_ids, model.config.head_dim, model.config.rope_theta, x.dtype)

    def remember(keys: Tensor, values: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys[rows, :, slots] = k[:, :, 0]
        values[rows, :, slots] = v[:, :, 0]
        shape = (len(x), k.shape[1], -1, k.shape[3])  # sizes that are the model's, and thus known
        return keys.view(shape), values.view(shape)

    for layer, (mask, keys, values) in zip(model.model.layers, stores, strict=True):
        x = layer.compute(x, angles, Visibility(mask), partial(remember, keys, values))
    return model.lm_head(model.model.norm(x)[:, 0])


def _over_all_slots(seen: Visibility, cache: KVCache) -> Tensor:
    """Return the mask (B, 1, 1, S) over every slot; those that the cache would not show stay unseen."""
    mask = seen.mask
    if mask is None:
        mask = torch.ones(len(cache.lengths), 1, 1, cache.used, dtype=torch.bool, device=cache.lengths.device)
    return F.pad(mask, (0, cache.keys[0].shape[2] - mask.shape[-1]))
