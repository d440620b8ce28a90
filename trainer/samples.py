"""What the model says while it trains: texts continued, or questions answered under its own prompt mask.

Random numbers of the training are not touched, and generation runs uncompiled, so a training with samples
takes the same steps as one without, bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from rich.cells import cell_len, set_cell_size

from dataset.conversation import Message, Rendered, Renderer
from dataset.prompts import prompt_of, raw_prompt
from dataset.token_store import TokenStore
from dataset.tokenizer import Tokenizer
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.sampling import Sampling
from model.transformer import LanguageModel
from trainer.settings import TrainSettings

MOST_CHARACTERS = 32
"""of the beginning of a text that is continued"""
LINE_COLUMNS = 89
"""of a sample that is printed, after a word"""


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
    return list(islice((each for each in drawn if len(each.prompt.ids) <= room), settings.samples))


def draw_samples(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[SamplePrompt], max_new_tokens: int
) -> list[dict[str, Any]]:
    """Return for each prompt what the model says next, the most probable tokens, and why it ended there."""
    was_training = model.training
    requests = [Request(each.prompt, Sampling(max_new_tokens)) for each in prompts]
    with torch.compiler.set_stance("force_eager"):  # lengths that grow by one would be compiled one by one
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
    last = before.ids[int(before.starts.nonzero()[0][-1]) :]
    content = last[: int((last == tokenizer.im_end_id).argmax())]
    return tokenizer.decode(content, skip_special_tokens=True).partition("\n")[2]
