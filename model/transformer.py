"""The decoder. Masks are made in `masks`, attention in `attention`, norms and feed-forward in `layers`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attend, Attention, CacheUpdate, Visibility
from model.backends import attend, cut_rows, named
from model.config import PATTERN_PARTS, ModelConfig
from model.errors import UserError
from model.kv_cache import KVCache
from model.layers import (
    Angles,
    embedding_of,
    feed_forward_of,
    layer_angles,
    layers_of,
    norm_of,
    positions_of,
    soft_cap,
)
from model.loss import summed_cross_entropy
from model.masks import (
    Layout,
    cached_mask,
    causal_layout,
    causal_mask,
    causal_step,
    dense_mask,
    is_plain_causal,
)
from model.pattern import ALL, Pattern
from model.rolling_cache import new_cache

MAX_REGISTERED_SIDE = 4096
"""Side of the triangle that is registered at first; longer rows make it grow."""


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config, attend)
        self.mlp = feed_forward_of(config)
        self.input_layernorm = norm_of(config)
        self.post_attention_layernorm = norm_of(config)
        output_norm = partial(norm_of, config) if config.post_norms else nn.Identity
        self.attention_output_layernorm, self.mlp_output_layernorm = output_norm(), output_norm()

    def forward(
        self, x: Tensor, angles: Angles, seen: Visibility, update_cache: CacheUpdate | None
    ) -> Tensor:
        """Map (B, T, hidden_size) to the same shape."""
        y = self.self_attn(self.input_layernorm(x), angles, seen, update_cache)
        return self.feed(x + self.attention_output_layernorm(y))

    def feed(self, x: Tensor) -> Tensor:
        """Add what the feed-forward layer makes of the stream (B, T, hidden_size)."""
        y = self.mlp(self.post_attention_layernorm(x))
        return x + self.mlp_output_layernorm(y)

    def additions(self) -> tuple[list[nn.Module], ...]:
        """Return what has the last weights of each thing that is added to the stream: norms, or projections.

        Experts are one addition, whatever their number.
        """
        if isinstance(self.mlp_output_layernorm, nn.Identity):
            down = [part for name, part in self.mlp.named_modules() if name.endswith("down_proj")]
            return [self.self_attn.o_proj], down
        return [self.attention_output_layernorm], [self.mlp_output_layernorm]


class Decoder(nn.Module):
    """Ids and their layout in, final hidden states out."""

    layer_form = DecoderLayer

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding_of(config)
        self.embed_positions = positions_of(config)
        self.layers = layers_of(config, self.layer_form)
        self.norm = norm_of(config)
        self.recomputes_layers = False
        self.cut_rows = cut_rows
        self.register_triangle()

    @property
    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """All its layers: a list for each residual stream."""
        return (self.layers,)

    def register_triangle(self) -> None:
        """Register the causal mask that every dense mask is sliced from; no checkpoint holds it.

        On the meta device it is None at first: making it would import the compiler, which takes two seconds.
        """
        side = min(self.config.max_position_embeddings, MAX_REGISTERED_SIDE)
        is_meta = torch.get_default_device().type == "meta"
        self.register_buffer("causal_mask", None if is_meta else causal_mask(side), persistent=False)

    def forward(self, ids: Tensor, layout: Layout | None = None, cache: KVCache | None = None) -> Tensor:
        """Return hidden states (B, T, hidden_size) of `ids` (B, T); no layout means causal rows.

        With a cache, `layout` continues the cached rows (right-padded) and attention reaches back to them.
        Where `embed_tokens` is a linear layer, `ids` are floats (B, T, F).
        """
        if cache is None:
            visibilities, update_cache = self.visibilities(ids, layout), None
        else:
            cache.extend(layout)
            visibilities, update_cache = self._cached_visibilities(layout, cache), cache.update
        layout = layout or causal_layout(*ids.shape[:2], device=ids.device)
        # Padding may be counted past the last position that there is.
        positions = layout.position_ids.where(layout.document_ids >= 0, 0)
        return self.compute(ids, positions, visibilities, update_cache)

    def compute(
        self,
        ids: Tensor,
        position_ids: Tensor,
        visibilities: Sequence[Visibility],
        update_cache: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, hidden_size); training, prefill and all decoding steps go through here.

        `visibilities` are one for each layer; `update_cache` takes the number of the layer first.
        """
        x = self.embed_positions(self.embed_tokens(ids), position_ids)  # (B, T, C)
        angles = layer_angles(self.config, position_ids, x.dtype)
        return self.norm(self.run(self.layers, x, angles, visibilities, update_cache))

    def run(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        angles: Sequence[Angles],
        visibilities: Sequence[Visibility],
        update_cache: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Return what layers, one behind the other, make of a residual stream (B, T, C)."""
        for n, (layer, turn, seen) in enumerate(zip(layers, angles, visibilities, strict=True)):
            inputs = (x, turn, seen, None if update_cache is None else partial(update_cache, n))
            if self.recomputes_layers and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(*inputs)
        return x

    def each_layer(
        self, form: Callable[[Pattern], Visibility], length: int | None = None
    ) -> list[Visibility]:
        """Return the mask of each layer, made by `form` from its pattern; layers of one pattern share it.

        In rows of `length` tokens, bounds fall away that none of them meets.
        """
        patterns = [each if length is None else each.within(length) for each in self.config.layer_patterns]
        forms = {pattern: form(pattern) for pattern in set(patterns)}
        return [forms[pattern] for pattern in patterns]

    def visibilities(self, ids: Tensor, layout: Layout | None) -> list[Visibility]:
        """Return the mask of each layer for whole rows, in the cheapest exact form."""
        rows = layout or causal_layout(*ids.shape[:2], device=ids.device)

        def form(pattern: Pattern) -> Visibility:
            if pattern == ALL and (layout is None or is_plain_causal(layout)):
                return Visibility(is_causal=True)
            return self.cut_rows(rows, pattern) or Visibility(
                dense_mask(self._triangle(ids.shape[1]), rows, pattern)[:, None]
            )

        return self.each_layer(form, ids.shape[1])

    def _cached_visibilities(self, layout: Layout, cache: KVCache) -> list[Visibility]:
        """Return the mask of each layer for the tokens that a cache was just extended by, over its keys."""
        is_one = layout.position_ids.shape[1] == 1 and layout.part_ids is None
        is_step = is_one and bool((cache.lengths == cache.used).all())

        def form(pattern: Pattern) -> Visibility:
            if is_step and pattern == ALL:  # one token after every key: it sees them all
                return Visibility()
            # New tokens end their row; a padding query gets the index of the last key, so that it sees one.
            real = layout.document_ids >= 0
            first, last = (cache.lengths - real.sum(1))[:, None], cache.lengths[:, None] - 1
            index = torch.where(real, first + torch.arange(real.shape[1], device=real.device), last)
            return self.seen_in(layout, cache.keys_in(pattern), pattern, (index, cache.index_in(pattern)))

        return self.each_layer(form)

    def seen_in(
        self, queries: Layout, keys: Layout, pattern: Pattern, index: tuple[Tensor, Tensor] | None = None
    ) -> Visibility:
        """Return which keys of a cache new tokens see in layers of a pattern; `index` as in `cached_mask`."""
        return Visibility(cached_mask(queries, keys, pattern, index)[:, None])

    def new_cache(self, batch: int) -> KVCache:
        """Return an empty cache for `batch` rows."""
        return new_cache(self.config, batch, self.embed_tokens.weight.dtype, self.embed_tokens.weight.device)

    def _triangle(self, length: int) -> Tensor:
        """Return the registered buffer, first doubled until it covers `length` tokens."""
        if length > len(self.causal_mask):
            self.causal_mask = causal_mask(1 << (length - 1).bit_length(), self.causal_mask.device)
        return self.causal_mask


class LanguageModel(nn.Module):
    """The decoder with its output layer; `model/kinds.py` knows which models of `transformers` it can be.

    model = LanguageModel(from_preset("tiny", vocab_size=512))
    logits = model(ids)                    # (B, T, V), causal
    nats = model(ids, layout, labels)      # summed over the targets
    """

    def __init__(self, config: ModelConfig, body: Callable[[ModelConfig], Decoder] = Decoder) -> None:
        super().__init__()
        self.config = config
        self.model = body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialise)
        self._scale_residuals()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def _scale_residuals(self) -> None:
        """Divide the first weights of additions to a residual stream by their number, two per layer or three.

        GPT-2 divides by its square root (Radford et al. 2019); closer to zero, lookups form earlier.
        """
        for layers in self.model.stacks:
            additions = [lasts for layer in layers for lasts in layer.additions()]
            for last in chain(*additions):
                if not last.weight.is_meta:  # where dividing would import the compiler
                    last.weight.div_(len(additions))

    def forward(self, ids: Tensor, layout: Layout | None = None, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V) of `ids` (B, T), or with `labels` (B, T) the summed nats of the targets.

        Labels are unshifted: `labels[t]` is `ids[t]` or -100, and the state at t - 1 predicts it.
        """
        hidden = self.model(ids, layout)
        if labels is None:
            return self.logits(hidden)
        return summed_cross_entropy(hidden, self.lm_head.weight, labels, self.config.final_logit_softcapping)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., C) to logits (..., V)."""
        return soft_cap(self.lm_head(hidden), self.config.final_logit_softcapping)

    def new_cache(self, batch: int) -> KVCache:
        """Return an empty cache for `batch` rows, in the dtype and on the device of the model."""
        return self.model.new_cache(batch)

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Feed one causal token per row (B, 1) to a cache; return the logits (B, V) of what comes next."""
        return self.logits(self.model(tokens, causal_step(cache.ends), cache)[:, 0])

    def num_parameters(self) -> int:
        """Count parameters, tied ones once, even if `lm_head` is a copy in another dtype (served models)."""
        parts = (self.model,) if self.config.tie_word_embeddings else (self,)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    def set_masks(self, config: ModelConfig) -> None:
        """Take over prompt mask, patterns and scaled positions of a configuration.

        No weight depends on them. Raises `UserError` where a layer would get another rotary base.
        """
        wanted, own = ([p != ALL for p in each.layer_patterns] for each in (config, self.config))
        if self.config.rope_local_theta and wanted != own:  # which layers slide
            raise UserError("sliding layers have a rotary base of their own here, so no others can be chosen")
        names = ("prompt_mask", *PATTERN_PARTS, "rope_scaling", "max_position_embeddings")
        taken = {name: getattr(config, name) for name in names}
        self.config = self.model.config = replace(self.config, **taken)

    def set_attention(self, attend: str | Attend) -> None:
        """Choose how all layers attend: `auto`, the name of one of `BACKENDS`, or a function."""
        attend = named(attend) if isinstance(attend, str) else attend
        self.model.cut_rows = getattr(attend, "cut_rows", cut_rows)
        for part in self.model.modules():
            if isinstance(part, Attention):
                part.attend = attend

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the layers' inputs for the backward pass, which computes the rest again.

        Gradients stay the same to the bit: nothing in a layer is random (Chen et al. 2016, arXiv 1604.06174).
        """
        self.model.recomputes_layers = True
