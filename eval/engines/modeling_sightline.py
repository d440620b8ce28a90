"""A model of transformers under the prompt mask that it was trained with; this file travels with its weights.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Blocks of tokens that see each other both ways are found by the marks of the chat template, unless `forward`
or `generate` is given `block_ids`; a text without marks is causal. Attention without masks is refused.
"""

from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config as KindConfig
from transformers import Qwen3ForCausalLM as KindModel
from transformers import conversion_mapping as conversion
from transformers import masking_utils as masking

from model.strategies import CAUSAL
from model.strategies import prefix as block


def blocks_of(ids: list[int], marks: dict[str, Any]) -> list[int]:
    """Return the block of each token of one conversation, -1 = causal.

        tokens   <|im_start|> user \\n Hello <|im_end|> \\n <|im_start|> assistant \\n Hi <|im_end|> \\n
        message  0            0    0  0     0          0  0            0         0  1  1          2

    The header of an answer belongs to the message before it, what stands between its end and the next header
    to the message after it.
    """

    def length_of_one(headers: list[list[int]]) -> int:
        return next((len(header) for header in headers if ids[at : at + len(header)] == header), 0)

    roles, begins, at, has_header = "U", [0], 0, False
    while at < len(ids):
        if length := length_of_one(marks["answer_headers"]):
            begin = at + length
            at = ids.index(marks["end"], begin) + 1 if marks["end"] in ids[begin:] else len(ids)
            roles, begins, has_header = roles + "AU", [*begins, begin, at], False
        elif length := length_of_one(marks["headers"]):
            if has_header:
                roles, begins = roles + "U", [*begins, at]
            at, has_header = at + length, True
        else:
            at += 1
    spans = zip(begins, [*begins[1:], len(ids)], strict=True)
    return [number for i, (a, b) in enumerate(spans) for number in [block(roles, i)] * (b - a)]


class SightlineConfig(KindConfig):
    """The configuration of the kind; its `sightline` holds the prompt mask and the marks of the template."""

    model_type = f"sightline_{KindConfig.model_type}"


if moved := conversion.get_checkpoint_conversion_mapping(KindConfig.model_type):  # how weights are laid out
    conversion.register_checkpoint_conversion_mapping(SightlineConfig.model_type, moved, overwrite=True)


class SightlineForCausalLM(KindModel):
    """The model of the kind, whose prompts see themselves as they did in training."""

    config_class = SightlineConfig
    _supports_flash_attn = _supports_attention_backend = False

    @wraps(KindModel.forward)  # whose signature tools look at
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, *, block_ids: Any = None, **kwargs: Any
    ) -> Any:
        """Compute as the kind does; `block_ids` (B, T) are those of all tokens so far, cached ones too.

        Labels that the token before them sees are left out. Raises `ValueError` for blocks that cannot be
        known here, and for one of which only a part is cached.
        """
        cache, embeds = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        inputs = input_ids if embeds is None else embeds
        cached = int(cache.get_seq_length()) if cache is not None else 0
        is_made = isinstance(attention_mask, dict) or getattr(attention_mask, "ndim", 2) == 4
        if not is_made and (inputs.shape[1] > 1 or not cached):  # else one more token, which is causal
            positions, documents = kwargs.get("position_ids"), None
            if positions is not None and attention_mask is None and not cached:
                documents = masking.find_packed_sequence_indices(positions.expand(len(inputs), -1))
            if block_ids is None:
                if cached or input_ids is None:
                    raise ValueError("expected block_ids with cached tokens or inputs_embeds, got none")
                block_ids = self.find_blocks(input_ids, attention_mask, documents)
            goes_on = F.pad((block_ids[:, 1:] == block_ids[:, :-1]) & (block_ids[:, 1:] >= 0), (1, 0))
            if cached and goes_on[:, cached].any():
                raise ValueError(f"a block is cut after {cached} cached tokens; compute it in one call")
            if kwargs.get("labels") is not None:
                kwargs["labels"] = kwargs["labels"].masked_fill(goes_on[:, cached:], -100)
            attention_mask = self._masks(inputs, attention_mask, cache, block_ids, documents)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Any = None, block_ids: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add the blocks of all tokens so far; those after the given `block_ids` are causal."""
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        cached = 0 if (cache := kwargs.get("past_key_values")) is None else int(cache.get_seq_length())
        new, given = inputs.get("input_ids"), input_ids.shape[1]
        if kwargs.get("inputs_embeds") is None and cached + new.shape[1] != given:
            raise ValueError(
                f"expected all ids in one call, those of {cached} cached tokens too, got {given}: a block "
                "cannot be cut; leave prefill_chunk_size out"
            )
        inputs["attention_mask"] = attention_mask  # of which `forward` makes masks, whatever the cache
        if block_ids is not None:
            inputs["block_ids"] = F.pad(block_ids, (0, given - block_ids.shape[1]), value=CAUSAL)
        elif inputs.get("inputs_embeds") is None and new.shape[1] > 1:
            inputs["block_ids"] = self.find_blocks(input_ids, attention_mask)
        return inputs

    def find_blocks(self, ids: Tensor, mask: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Return the blocks (B, T) of conversations; padding, which is 0 in `mask`, has none."""
        blocks = torch.full_like(ids, CAUSAL)
        documents = torch.zeros_like(ids) if documents is None else documents
        documents = documents if mask is None else documents.masked_fill(mask == 0, -1)
        for row, document in enumerate(documents):
            for number in document[document >= 0].unique():
                found = blocks_of(ids[row, document == number].tolist(), self.config.sightline)
                blocks[row, document == number] = torch.tensor(found, device=ids.device)
        return blocks

    def _masks(self, inputs: Tensor, mask: Any, cache: Any, blocks: Tensor, documents: Any) -> Any:
        """Return the mask of each type of layer: causal or in one block, in one document, in the window."""
        config, kinds, masks = self.config, getattr(self.config, "layer_types", None), {}
        window, both_sides = getattr(config, "sliding_window", None), config.sightline["window_both_sides"]
        sides = [masking.sliding_window_overlay(window), lambda b, h, q, k: k - q < window][: 1 + both_sides]
        like = torch.empty(*inputs.shape[:2], 0, dtype=self.dtype, device=inputs.device)
        for kind in set(kinds or ["full_attention"]):
            layer = kinds.index(kind) if kinds else 0
            sizes = (blocks.shape[1], 0) if cache is None else cache.get_mask_sizes(like.shape[1], layer)
            seen = masking.blockwise_overlay(masking.maybe_pad_block_sequence_ids(blocks, mask, *sizes))
            bounds = [] if documents is None else [masking.packed_sequence_mask_function(documents)]
            bounds += sides if kind == "sliding_attention" else []
            near = masking.and_masks(*bounds) if bounds else None
            masks[kind] = masking.create_causal_mask(config, like, mask, cache, None, seen, near, None, layer)
        return masks if len(masks) > 1 else masks[kind]
