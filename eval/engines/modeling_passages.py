"""A model of transformers whose prompts hold passages that do not see each other; travels with its weights.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

The chat template puts two marks around each part {"type": "passage", "text": …} of a content. No token sees
them and they take no position, so all others compute as if they were not there. Attention without masks is
refused.
"""

from functools import wraps
from itertools import groupby  # noqa: F401 - for what an export puts in place of imports of ours
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config as KindConfig
from transformers import Qwen3ForCausalLM as KindModel
from transformers import conversion_mapping as conversion
from transformers import masking_utils as masking

from model.layouts import FIRST_ISOLATED, positions_of
from model.strategies import NO_PART


class Places(NamedTuple):
    """What decides who sees whom, of each token (B, T)."""

    parts: Tensor  # its passage: 0 and up, -2 and down if that sees itself alone; -1 = in none
    positions: Tensor
    documents: Tensor  # its conversation; -1 = a mark or padding, which no other token sees


def places_of(ids: np.ndarray, marks: list[int], alone: bool) -> tuple[np.ndarray, ...]:
    """Return part and position of each token of one conversation (n,), and whether it is a mark.

    tokens     Pick [ a rose ] [ gold ] !      where passages see themselves `alone`, parts are
    part       -    - 0 0    - - 1    - -      -2 and -3, and begin at position 0
    position   0    - 1 2    - - 1    - 3
    """
    opens, closes = (ids == mark for mark in marks)
    index, is_mark = np.arange(len(ids)), opens | closes
    opened, closed = (np.maximum.accumulate(np.where(each, index, -1)) for each in (opens, closes))
    parts = np.where((opened > closed) & ~is_mark, np.cumsum(opens) - 1, NO_PART)
    parts = np.where(parts >= 0, FIRST_ISOLATED - parts, NO_PART) if alone else parts
    positions = np.zeros_like(index)
    positions[~is_mark] = positions_of(parts[~is_mark], int((~is_mark).sum()))
    return parts, positions, is_mark


class SightlineConfig(KindConfig):
    """The configuration of the kind; its `sightline` holds the prompt mask and the marks of passages."""

    model_type = f"sightline_{KindConfig.model_type}"


if moved := conversion.get_checkpoint_conversion_mapping(KindConfig.model_type):  # how weights are laid out
    conversion.register_checkpoint_conversion_mapping(SightlineConfig.model_type, moved, overwrite=True)


class SightlineForCausalLM(KindModel):
    """The model of the kind, whose passages see what they saw in training."""

    config_class = SightlineConfig
    _supports_flash_attn = _supports_attention_backend = False

    @wraps(KindModel.forward)  # whose signature tools look at
    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Compute as the kind does; masks and positions are made here unless a mask of all pairs is given.

        Labels of marks, and of what follows them, are left out. Raises `ValueError` where passages cannot be
        known.
        """
        if attention_mask is None or getattr(attention_mask, "ndim", 4) == 2:
            cache, positions, documents = kwargs.get("past_key_values"), kwargs.get("position_ids"), None
            if input_ids is None or (cache is not None and cache.get_seq_length()):
                raise ValueError("expected ids of whole conversations; generate goes on after cached tokens")
            if positions is not None and attention_mask is None:
                documents = masking.find_packed_sequence_indices(positions.expand(len(input_ids), -1))
            places = self.find_places(input_ids, attention_mask, documents)
            if kwargs.get("labels") is not None:
                is_mark = places.documents < 0
                after = F.pad(is_mark[:, :-1], (1, 0))
                kwargs["labels"] = kwargs["labels"].masked_fill(is_mark | after, -100)
            kwargs["position_ids"], attention_mask = places.positions, self._mask(input_ids, cache, places)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add mask and positions, which follow from all tokens so far."""
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        new, cache, total = inputs["input_ids"], inputs.get("past_key_values"), input_ids.shape[1]
        cached = 0 if cache is None else int(cache.get_seq_length())
        if new is None or cached + new.shape[1] != total:
            raise ValueError(
                f"expected all ids, those of {cached} cached tokens too, got {total}: passages are found in "
                "whole conversations; leave prefill_chunk_size and inputs_embeds out"
            )
        places = self.find_places(input_ids, attention_mask)
        inputs["attention_mask"] = self._mask(new, cache, places)
        return inputs | {"position_ids": places.positions[:, -new.shape[1] :]}

    def find_places(self, ids: Tensor, mask: Any = None, documents: Tensor | None = None) -> Places:
        """Return the places of conversations; padding is 0 in `mask`."""
        documents = torch.zeros_like(ids) if documents is None else documents.to(ids)
        documents = documents if mask is None else documents.masked_fill(mask == 0, -1)
        places = Places(torch.full_like(ids, NO_PART), torch.zeros_like(ids), documents.clone())
        for row, document in enumerate(documents):
            for number in document[document >= 0].unique():
                is_in = document == number
                found = places_of(ids[row, is_in].cpu().numpy(), **self.config.sightline["passages"])
                parts, positions, is_mark = (torch.from_numpy(each).to(ids.device) for each in found)
                places.parts[row, is_in], places.positions[row, is_in] = parts, positions
                places.documents[row, is_in] = number.masked_fill(is_mark, -1)
        return places

    def _mask(self, new: Tensor, cache: Any, places: Places) -> Any:
        """Return the mask of new tokens over all so far; a token that is hidden sees itself."""
        sizes = (new.shape[1], 0) if cache is None else cache.get_mask_sizes(new.shape[1], 0)
        pad = masking.maybe_pad_block_sequence_ids
        parts, documents = (pad(each, None, *sizes) for each in (places.parts, places.documents))

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            part, other = parts[b, q], parts[b, k]
            is_open = (part == NO_PART) | (part == other) | (part > NO_PART) & (other == NO_PART)
            return is_open & (documents[b, q] == documents[b, k]) & (documents[b, k] >= 0) | (q == k)

        embeds = torch.empty(*new.shape, 0, dtype=self.dtype, device=new.device)
        return masking.create_causal_mask(self.config, embeds, None, cache, None, None, sees)
