"""An encoder before the decoder: what sees a later token is the source, everything else the target.

By the leak rule no state of the source predicts anything, so it need not pass the decoder: an encoder of its
own reads it once, and every layer of the decoder reads what came of it. The last token of a block sees no
later one: it begins the target, as the start token of Vaswani et al. 2017 (arXiv 1706.03762) does. All masks
are parts of the one rule of `model/masks.py`:

    blocks  0 0 0 0 . . .       encoder        decoder: the source     and itself
    sides   s s s t t t t       1 1 1          1 1 1                   1 . . .
                                1 1 1          1 1 1                   1 1 . .
                                1 1 1          1 1 1                   1 1 1 .
                                               1 1 1                   1 1 1 1

Owns sides, both bodies, their cache and the count of their work. Windows they have none.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention, CacheUpdate, Visibility
from model.backends import attend
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.layers import Angles, layer_angles, layers_of, norm_of
from model.masks import Layout, cached_mask, causal_layout, dense_mask, is_readable
from model.pattern import ALL, Pattern
from model.transformer import Decoder, DecoderLayer
from model.work import weights_of_products, work

Update = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def is_source(layout: Layout) -> Tensor:
    """Return True (B, T) for tokens that see a later one: those before a label that could be read."""
    documents = layout.document_ids  # a slot of a cache that is empty may still have a block
    same_document = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return F.pad(is_readable(layout.block_ids)[:, 1:] & same_document, (0, 1))


class Side(NamedTuple):
    """The tokens of rows that are on one side, in order; rows with fewer end with tokens that are not."""

    places: Tensor
    """where they stand in the rows, (B, n)"""
    real: Tensor
    """whether they are on this side, (B, n)"""

    def of(self, field: Tensor) -> Tensor:
        """Return what a field (B, T) has for them, (B, n)."""
        return field.gather(1, self.places)

    def layout(self, layout: Layout) -> Layout:
        """Return their layout, of the others as padding."""
        there = Layout(*(None if field is None else self.of(field) for field in layout))
        return there._replace(document_ids=there.document_ids.where(self.real, -1))

    def spread(self, states: Tensor, length: int) -> Tensor:
        """Return states (B, n, C) at their places in rows (B, length, C), with zeros elsewhere."""
        states = states.masked_fill(~self.real[..., None], 0)
        rows = states.new_zeros(len(states), length, states.shape[2])
        return rows.scatter(1, self.places[..., None].expand_as(states), states)


def sides(layout: Layout) -> tuple[Side, Side]:
    """Return the source and the target of rows; padding is on neither side."""
    of_source = is_source(layout)
    return _side(of_source), _side((layout.document_ids >= 0) & ~of_source)


def _side(chosen: Tensor) -> Side:
    count = max(1, int(chosen.sum(1).max()))  # at least one, so that all weights have a part in every step
    places = (~chosen).long().argsort(dim=1, stable=True)[:, :count]
    return Side(places, chosen.gather(1, places))


def between(mask: Tensor, q: Side, k: Side) -> Tensor:
    """Return which tokens of one side see which of another (B, Tq, Tk), by a mask of whole rows (B, T, T)."""
    rows = mask.gather(1, q.places[..., None].expand(-1, -1, mask.shape[2]))
    return rows.gather(2, k.places[:, None].expand(-1, rows.shape[1], -1)) & k.real[:, None]


def _visibility(seen: Tensor, real: Tensor) -> Visibility:
    """Return a mask (B, Tq, Tk) as attention takes it; queries that are not `real` see all, not none."""
    return Visibility((seen | ~real[..., None])[:, None])


class Encoder(nn.Module):
    """Layers that read the source, and their norm; the embedding is that of the decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = layers_of(replace(config, num_hidden_layers=config.num_encoder_layers), DecoderLayer)
        self.norm = norm_of(config)


class Merged(Decoder):
    """A decoder whose attention takes source and target in one softmax, by the same projections.

    Zhang et al. 2025 (T5Gemma 2, arXiv 2512.14856): keys of the source are not turned, and one
    embedding serves encoder, decoder and output layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)

    @property
    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The layers of the decoder and those of the encoder."""
        return self.layers, self.encoder.layers

    def reader(self, layer: DecoderLayer) -> Attention:
        """Return what reads the source in a layer."""
        return layer.self_attn

    def forward(self, ids: Tensor, layout: Layout | None = None, cache: KVCache | None = None) -> Tensor:
        """Return hidden states (B, T, hidden_size) of `ids` (B, T), which are zero at tokens of the source.

        No layout means causal rows, which have no source. With a cache, `layout` continues the cached rows.
        """
        layout = layout or causal_layout(*ids.shape, device=ids.device)
        source, target = sides(layout)
        # Padding may be counted past the last position that there is.
        positions = layout.position_ids.where(layout.document_ids >= 0, 0)
        given = [(side.of(ids), side.of(positions)) for side in (source, target)]
        if cache is None:
            mask = dense_mask(self._triangle(ids.shape[1]), layout)
            memory = self._encode(*given[0], _visibility(between(mask, source, source), source.real))
            seen, update = self._seen_in_rows(mask, source, target), partial(self._joined, memory)
        else:
            seen, update = self._continue(cache, layout, source, target, given[0]), cache.update
        states = self.compute(*given[1], self.each_layer(lambda _: seen), update)
        return target.spread(states, ids.shape[1])

    def seen_in(self, queries: Layout, keys: Layout, pattern: Pattern = ALL) -> Visibility:
        """Return which keys of a cache new tokens of the target see."""
        return self.sight(cached_mask(queries, keys), is_source(keys), queries.document_ids >= 0)

    def sight(self, seen: Tensor, of_source: Tensor, real: Tensor, num_sources: int = 0) -> Visibility:
        """Return what the target sees in the form that its layers take.

        `seen` (B, Tq, Tk) is over keys of both sides, `of_source` (B, Tk) says which. Where they do not stand
        by position, the first `num_sources` are those of the source. Queries that are not `real` are filler.
        """
        return _visibility(seen, real)

    def new_cache(self, batch: int) -> KVCache:
        """Return an empty cache for `batch` rows."""
        weight = self.embed_tokens.weight
        return SidedCache(self.config, batch, weight.dtype, weight.device)

    def _encode(
        self, ids: Tensor, positions: Tensor, seen: Visibility, update: Update | None = None
    ) -> Tensor:
        x = self.embed_positions(self.embed_tokens(ids), positions)
        layers = self.encoder.layers
        angles = layer_angles(self.config, positions, x.dtype)[:1] * len(layers)  # without windows, all alike
        return self.encoder.norm(self.run(layers, x, angles, [seen] * len(layers), update))

    def _seen_in_rows(self, mask: Tensor, source: Side, target: Side) -> Visibility:
        seen = torch.cat([between(mask, target, side) for side in (source, target)], dim=2)
        count = source.places.shape[1]
        of_source = torch.arange(seen.shape[2], device=mask.device).expand(len(mask), -1) < count
        return self.sight(seen, of_source, target.real, count)

    def _joined(self, memory: Tensor, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values that a layer has of the source, then its own."""
        of_source = self.reader(self.layers[number]).keys_and_values(memory, None)
        return tuple(torch.cat(pair, dim=2) for pair in zip(of_source, (k, v), strict=True))

    def _continue(
        self, cache: "SidedCache", layout: Layout, source: Side, target: Side, given: tuple[Tensor, Tensor]
    ) -> Visibility:
        """Make room for new tokens, and keep what each layer reads of their source; return what they see."""
        cache.extend(layout)
        keys = cache.keys_in(ALL)
        if bool(source.real.any()):
            new = cache.aim(source.layout(layout))
            seen = cached_mask(new, keys) & is_source(keys)[:, None]
            memory = self._encode(*given, _visibility(seen, source.real), cache.update_encoder)
            for number, layer in enumerate(self.layers):
                cache.update(number, *self.reader(layer).keys_and_values(memory, None))
        return self.seen_in(cache.aim(target.layout(layout)), keys)


class Sight(NamedTuple):
    """What the target sees of itself and of the source, where each is attended to by itself."""

    own: Visibility
    """over the last of all keys, or over all"""
    source: Visibility
    """over the first of all keys, or over all"""
    has_source: Tensor
    """whether a token sees any source, (B, Tq, 1)"""


class CrossLayer(DecoderLayer):
    """A layer that reads the source between its attention to the target and its feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cross_attn = Attention(config, attend)
        self.cross_attention_layernorm = norm_of(config)
        self.cross_output_layernorm = norm_of(config) if config.post_norms else nn.Identity()

    def forward(self, x: Tensor, angles: Angles, seen: Sight, update_cache: CacheUpdate) -> Tensor:
        """Map (B, T, hidden_size) to the same shape; `update_cache` returns keys of source and target."""
        y = self.input_layernorm(x)
        k, v = update_cache(*self.self_attn.keys_and_values(y, angles))
        own, end = k.shape[2] - seen.own.mask.shape[-1], seen.source.mask.shape[-1]
        y = self.self_attn.read(y, angles, k[:, :, own:], v[:, :, own:], seen.own)
        x = x + self.attention_output_layernorm(y)
        y, k, v = self.cross_attention_layernorm(x), k[:, :, :end], v[:, :, :end]
        y = self.cross_output_layernorm(self.cross_attn.read(y, None, k, v, seen.source))
        return self.feed(x + y * seen.has_source)

    def additions(self) -> tuple[list[nn.Module], ...]:
        """Return what has the last weights of each thing that is added to the stream."""
        has_norm = not isinstance(self.cross_output_layernorm, nn.Identity)
        return *super().additions(), [self.cross_output_layernorm if has_norm else self.cross_attn.o_proj]


class EncoderDecoder(Merged):
    """A decoder that reads the source by an attention of its own in each layer (Vaswani et al. 2017)."""

    layer_form = CrossLayer

    def reader(self, layer: CrossLayer) -> Attention:
        """Return what reads the source in a layer."""
        return layer.cross_attn

    def sight(self, seen: Tensor, of_source: Tensor, real: Tensor, num_sources: int = 0) -> Sight:
        """Return what the target sees in the form that its layers take, as the merged form has it."""
        own = (seen & ~of_source[:, None])[..., num_sources:]
        source = (seen & of_source[:, None])[..., : num_sources or None]
        has_source = source.any(-1)
        return Sight(_visibility(own, real), _visibility(source, has_source), has_source[..., None])


class SidedCache(KVCache):
    """Keys and values of the decoder's layers, then of the encoder's, for tokens of both sides by position.

    A layer of the decoder keeps of a token of the source what it reads of it, of others what it has itself:

        sides       s s s t t t t
        decoder     K K K k k k k      K by the reader of the source, computed once
        encoder     k k k . . . .
    """

    def __init__(self, config: ModelConfig, *rest: int | torch.dtype | torch.device | str) -> None:
        self._num_decoder_layers = config.num_hidden_layers
        layers = config.num_hidden_layers + config.num_encoder_layers
        super().__init__(replace(config, num_hidden_layers=layers), *rest)

    def aim(self, layout: Layout) -> Layout:
        """Let what is stored from now on be that of these tokens of the last call, and return them."""
        self._choose_slots(layout.position_ids, layout.document_ids >= 0)
        return layout

    def update_encoder(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store and return keys and values as `update` does, of a layer of the encoder."""
        return self.update(self._num_decoder_layers + layer, k, v)


@work.register
def _(body: Merged, layout: Layout) -> tuple[int, int]:
    """Count each side in the layers that it passes, and the source in what all layers read of it, too."""
    real, of_source = layout.document_ids >= 0, is_source(layout)
    num_sources, num_targets = int(of_source.sum()), int((real & ~of_source).sum())
    readers = [body.reader(layer) for layer in body.layers]
    read = sum(each.weight.numel() for reader in readers for each in (reader.k_proj, reader.v_proj))
    is_apart = readers[0] is not body.layers[0].self_attn
    of_decoder = weights_of_products(body.layers) - (read if is_apart else 0)
    products = (weights_of_products(body.encoder) + read) * num_sources + of_decoder * num_targets

    # A token of the target sees all before it, one of the source those before it of the source.
    before = of_source.cumsum(1)  # in the row; less those before its document
    index = torch.arange(real.shape[1], device=real.device) - layout.position_ids
    begun = F.pad(before, (1, 0)).gather(1, index.where(real, 0))
    own = len(body.encoder.layers) * int((before - begun)[of_source].sum())
    return products, own + len(body.layers) * int((layout.position_ids + 1)[real & ~of_source].sum())
