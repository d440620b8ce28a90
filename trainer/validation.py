"""The loss on text that is not trained on."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataset.batches import Batch, BatchStream
from dataset.chat_form import THOUGHT
from dataset.tokenizer import Tokenizer
from model.errors import UserError
from model.transformer import LanguageModel
from trainer.device import Device
from trainer.inputs import Inputs
from trainer.samples import draw_samples
from trainer.sharding import whole_model

MARK = b"\xff"  # around added tokens; no text in UTF-8 has it


@dataclass(frozen=True)
class Likelihood:
    """What a model assigns to the targets of some text."""

    nats: float
    targets: int
    text_bytes: int
    """bytes of text that the targets stand for, as `TextBytes` counts them"""

    @property
    def nats_per_token(self) -> float:
        """Mean loss of a target."""
        return self.nats / max(self.targets, 1)

    @property
    def bits_per_byte(self) -> float | None:
        """Loss that does not depend on the tokenizer; None where the targets hold no text."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None


class TextBytes:
    """Counts the bytes of messages and texts among targets: what a person wrote, in whatever form it stands.

    Headers, end marks, tags and the line breaks that go with a tag are no text, nor is any added token.

        <|im_start|> user \\n Hi <|im_end|> \\n … <think> \\n so </think> \\n\\n 7 <|im_end|>
        .            .    .  2  .          .    .       .  2  .        .    1 .
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find what each token stands for, and what the form of conversations writes."""
        marked = {token_id: MARK + text.encode() + MARK for text, token_id in tokenizer.added_ids.items()}
        ids = range(tokenizer.vocab_size)
        self._bytes = [marked.get(token_id) or tokenizer.token_bytes(token_id) for token_id in ids]
        self._sizes = np.array(list(map(len, self._bytes)))
        pieces = {
            b"".join(self._bytes[i] for i in tokenizer.encode_form(text)) for text in _written(tokenizer)
        }
        longest_first = sorted((piece for piece in pieces if MARK in piece), key=len, reverse=True)
        any_added = re.escape(MARK) + b"[^" + MARK + b"]*" + re.escape(MARK)
        self._form = re.compile(b"|".join([*map(re.escape, longest_first), any_added]))

    def count(self, batch: Batch) -> int:
        """Return the bytes of text that the targets of a batch stand for."""
        return sum(map(self._count_row, batch.ids.numpy(), (batch.labels >= 0).numpy()))

    def _count_row(self, ids: np.ndarray, is_target: np.ndarray) -> int:
        counted = np.repeat(is_target, self._sizes[ids])
        for written in self._form.finditer(b"".join(map(self._bytes.__getitem__, ids.tolist()))):
            counted[written.start() : written.end()] = False
        return int(counted.sum())


def left_out(stream: BatchStream) -> str:
    """Say what of a store no row holds, as it is too long; "" where that is nothing."""
    figures = stream.describe()
    names = {name: name.replace("_", " ") for name in ("documents_left_out", "documents_shortened")}
    names |= {"answers_too_long": "answers too long", "answers_cut_out": "answers cut out of their context"}
    return ", ".join(f"{words} {figures[name]:,}" for name, words in names.items() if figures[name])


def _written(tokenizer: Tokenizer) -> list[str]:
    """Return what the form of a tokenizer writes around texts; nothing for one that writes texts only."""
    try:
        form = tokenizer.form
    except UserError:  # its conversations cannot be taken over, so no store has any
        return []
    around_calls = ["\n<tool_call>\n", "<tool_call>\n", "\n</tool_call>"]
    around_messages = [*form.headers.values(), *form.footers.values(), form.end, form.begin, form.opening]
    return [*around_messages, *THOUGHT, *around_calls]


@torch.no_grad()
def measure(
    model: LanguageModel,
    batches: Iterable[Batch],
    text_bytes: TextBytes,
    summed: Callable[..., list[float]] = lambda *numbers: list(numbers),
) -> Likelihood:
    """Return the likelihood of all targets of `batches`; `summed` adds up numbers over processes."""
    nats, targets, num_bytes = 0.0, 0, 0
    device = next(model.parameters()).device
    for batch in batches:
        targets += batch.num_targets
        num_bytes += text_bytes.count(batch)
        batch = batch.to(device)
        nats += float(model(batch.ids, batch.layout, batch.labels))
    nats, targets, num_bytes = summed(nats, targets, num_bytes)
    return Likelihood(nats, int(targets), int(num_bytes))


class Validation:
    """What is measured of a model at intervals: its loss on every validation store, and what it says."""

    def __init__(self, inputs: Inputs, device: Device) -> None:
        """Prepare the counting of bytes."""
        self._inputs, self._device = inputs, device
        self._text_bytes = TextBytes(inputs.stream.tokenizer)

    def measure_all(self) -> tuple[dict[str, Likelihood], list[dict[str, Any]]]:
        """Return the likelihood of each store, and on the main process the samples."""
        inputs, accelerator = self._inputs, self._device.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        results = {}
        for name, stream in inputs.validation.items():
            batches = stream.batches(0, 0, inputs.settings.batch_size * world, rank, world)
            results[name] = measure(inputs.start.model, batches, self._text_bytes, self._device.summed)
        model = whole_model(inputs.start.model)
        if not accelerator.is_main_process:
            return results, []
        longest = inputs.settings.sample_tokens
        return results, draw_samples(model, inputs.stream.tokenizer, inputs.sample_prompts, longest)
