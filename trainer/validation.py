"""What is measured of a model while it trains: its loss on text that is not trained on, and what it says.

It continues texts or answers questions under its own prompt mask. Random numbers of the training are not
touched and layers run uncompiled, so that a training with samples takes the same steps to the bit.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import numpy as np
import torch
from rich.cells import cell_len, set_cell_size

from dataset.batches import Batch
from dataset.chat_form import THOUGHT
from dataset.conversation import Message, Rendered, Renderer
from dataset.prompts import prompt_of, raw_prompt
from dataset.token_store import TokenStore
from dataset.tokenizer import Tokenizer
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.sampling import Sampling
from model.transformer import LanguageModel
from trainer.device import Device
from trainer.inputs import Inputs
from trainer.objective import NATS, Objective
from trainer.placement import whole_model
from trainer.settings import TrainSettings
from trainer.training_state import added

MOST_CHARACTERS = 32
"""of the beginning of a text that is continued"""
LINE_COLUMNS = 89
"""of a sample that is printed, after a word"""
MARK = b"\xff"  # around added tokens; no text in UTF-8 has it


@dataclass(frozen=True)
class Likelihood:
    """What a model assigns to the targets of some text."""

    nats: float
    targets: int
    text_bytes: int
    """bytes of text that the targets stand for, as `TextBytes` counts them"""
    others: tuple[float, ...] = ()
    """of pairs of answers, which take the place of targets: what else is summed over them"""

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


def left_out(figures: dict[str, Any]) -> str:
    """Say what of a store no row holds or trains, as it is too long; "" where the figures have nothing."""
    names = ("documents left out", "documents shortened", "answers too long", "tokens after cuts")
    words = {name.replace(" ", "_"): name for name in names}
    words |= {"answers_cut_out": "answers cut out of their context"}
    words |= {"answers_of_oldest_rounds": "answers of oldest rounds"}
    return ", ".join(f"{name} {figures[key]:,}" for key, name in words.items() if figures[key])


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
    text_bytes: TextBytes | None,
    summed: Callable[..., list[float]] = lambda *numbers: list(numbers),
    objective: Objective = NATS,
) -> Likelihood:
    """Return the likelihood of all targets of `batches`; `summed` adds up numbers over processes."""
    sums, targets, num_bytes = [0.0], 0, 0
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    for batch in batches:
        targets += objective.count(batch)
        num_bytes += text_bytes.count(batch) if text_bytes else 0
        sums = added(sums, objective(model, batch.to(device)).tolist())
    model.train(was_training)
    targets, num_bytes, nats, *others = summed(targets, num_bytes, *sums)
    return Likelihood(nats, int(targets), int(num_bytes), tuple(others))


class Validation:
    """What is measured of a model at intervals: its loss on every validation store, and what it says."""

    def __init__(self, inputs: Inputs, device: Device, objective: Objective = NATS) -> None:
        """Prepare the counting of bytes, and what is asked; raises what `sample_prompts` does."""
        self._inputs, self._device, start = inputs, device, inputs.start
        self._objective, is_counted = objective, objective.is_of_text and inputs.validation
        self._text_bytes = TextBytes(inputs.stream.documents.tokenizer) if is_counted else None
        streams = [*inputs.validation.values()] or [inputs.stream]
        stores = [store for stream in streams for store in stream.documents.stores]
        longest = start.model.config.max_position_embeddings
        self._prompts = sample_prompts(inputs.settings, stores, start.prompt_mask, longest)

    def measure_all(self) -> tuple[dict[str, Likelihood], list[dict[str, Any]]]:
        """Return the likelihood of each store, and on the main process the samples."""
        inputs, accelerator = self._inputs, self._device.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        results, summed = {}, self._device.summed
        for name, stream in inputs.validation.items():
            batches = stream.batches(0, 0, inputs.settings.batch_size * world, rank, world)
            results[name] = measure(inputs.start.model, batches, self._text_bytes, summed, self._objective)
        model = whole_model(inputs.start.model)
        if not accelerator.is_main_process:
            return results, []
        longest = inputs.settings.sample_tokens
        return results, draw_samples(model, inputs.stream.documents.tokenizer, self._prompts, longest)


@dataclass(frozen=True)
class SamplePrompt:
    """What the model is asked at intervals."""

    text: str
    """as it is shown: the beginning of a text, or a question"""
    prompt: Prompt


def sample_prompts(
    settings: TrainSettings, stores: Sequence[TokenStore], prompt_mask: str, longest: int
) -> list[SamplePrompt]:
    """Return the prompts of the settings, or where there are none `settings.samples` from the stores.

    Raises `UserError` for a prompt without room for an answer in the `longest` tokens that the model takes.
    """
    tokenizer, kind = stores[0].tokenizer, stores[0].kind
    room = longest - settings.sample_tokens
    if settings.sample_prompts:
        prompts = [_given(text, kind, tokenizer, prompt_mask) for text in settings.sample_prompts]
        for each in prompts:
            if len(each.prompt.ids) > room:
                raise UserError(
                    f"--sample_prompts: expected at most {room} tokens, which leave the model room for "
                    f"--sample_tokens {settings.sample_tokens}, got {len(each.prompt.ids)}"
                )
        return prompts
    drawn = (_drawn(document, kind, tokenizer, prompt_mask) for document in _spread(stores, settings.samples))
    return list(islice((each for each in drawn if 0 < len(each.prompt.ids) <= room), settings.samples))


def draw_samples(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[SamplePrompt], max_new_tokens: int
) -> list[dict[str, Any]]:
    """Return for each prompt what the model says next, the most probable tokens, and why it ended there."""
    was_training = model.training
    requests = [Request(each.prompt, Sampling(max_new_tokens)) for each in prompts]
    completions = Generator(model, tokenizer.stop_ids).generate(requests)
    model.train(was_training)
    return [
        {"prompt": each.text, "text": tokenizer.decode(done.ids, True), "finish_reason": done.finish_reason}
        for each, done in zip(prompts, completions, strict=True)
    ]


def in_one_line(sample: dict[str, Any]) -> str:
    """Return a sample as it is printed, in `LINE_COLUMNS`, of which a Han character takes two."""
    text = f"{sample['prompt']} → {sample['text']}".replace("\n", "⏎")
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if cell_len(line) <= LINE_COLUMNS else f"{set_cell_size(line, LINE_COLUMNS - 1)}…"


def _given(text: str, kind: str, tokenizer: Tokenizer, prompt_mask: str) -> SamplePrompt:
    if kind == "pretrain":
        return SamplePrompt(text, raw_prompt(text, tokenizer, prompt_mask))
    rendered = Renderer(tokenizer).render([Message("user", text)], generation_prompt=True)
    return SamplePrompt(text, prompt_of(rendered, prompt_mask))


def _spread(stores: Sequence[TokenStore], count: int) -> Iterator[Rendered]:
    """Yield documents of all stores in turn, first `count` from all over each, then those after them."""
    for offset in range(16):
        for number in range(count):
            store = stores[number % len(stores)]
            yield store[(number * len(store) // count + offset) % len(store)]


def _drawn(document: Rendered, kind: str, tokenizer: Tokenizer, prompt_mask: str) -> SamplePrompt:
    """Return the beginning of a text, or a conversation up to its first answer."""
    if kind == "pretrain":
        text = tokenizer.decode(document.ids[: 2 * MOST_CHARACTERS], skip_special_tokens=True)
        beginning = text[: min(MOST_CHARACTERS, 1 + len(text) // 3)]
        return _given(beginning.rpartition(" ")[0] or beginning, kind, tokenizer, prompt_mask)
    asked = int(document.targets.argmax())
    before = Rendered(document.ids[:asked], document.codes[:asked])
    return SamplePrompt(_question(before, tokenizer), prompt_of(before, prompt_mask))


def _question(before: Rendered, tokenizer: Tokenizer) -> str:
    """Return the content of the last message before an answer, whose header ends with a newline."""
    begin = max(before.starts.nonzero()[0], default=0)  # none where a form puts nothing before a message
    last = before.ids[int(begin) :]
    content = takewhile(lambda token: token != tokenizer.im_end_id, last.tolist())
    return tokenizer.decode(list(content), skip_special_tokens=True).partition("\n")[2]
