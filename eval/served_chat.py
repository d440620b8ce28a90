"""A model as the server has it: what requests become prompts, and how earlier answers come back."""

import secrets
import time
from collections.abc import Callable
from typing import Any

from dataset.chat_form import Message
from dataset.conversation import render
from dataset.prompts import prompt_of, prompt_of_ids, raw_prompt
from eval.answer_text import AnswerText
from eval.answering import Job, Lane
from eval.look import view
from eval.openai_answers import Choice
from eval.openai_requests import Asked, ChatAsked, LookAsked, RefusedError
from eval.remembered import Remembered
from eval.served_model import ServedModel
from eval.server_settings import ServerSettings
from eval.serving_settings import TextSampling
from model.config import WITH_ENCODER, ModelConfig
from model.generator import Prompt, Request
from model.pattern import ALL
from model.strategies import STRATEGIES, strategy_named

MIB = 2**20
MOST_DRAWN_TOKENS = 512


def _masks_of(config: ModelConfig) -> list[str]:
    """Return the masks that requests may name: a window or an encoder holds no passages."""
    is_plain = {*config.layer_patterns} == {ALL} and config.architecture not in WITH_ENCODER
    has_passages = is_plain or strategy_named(config.prompt_mask).passages != "open"
    return [name for name, each in STRATEGIES.items() if has_passages or each.passages == "open"]


class ServedChat:
    """A model under its name, with its answers in the making and the tokens of those that it gave."""

    def __init__(self, name: str, served: ServedModel, settings: ServerSettings) -> None:
        self.name, self.served = name, served
        self.lane = Lane(served, settings.batch_size, settings.prefix_cache_mib * MIB)
        takes = served.model.config.max_position_embeddings
        self.max_prompt_tokens = min(takes, settings.max_prompt_tokens or takes)
        self._default = TextSampling(settings.max_new_tokens, settings.temperature)
        self.masks = _masks_of(served.model.config)
        self._remembered, self._created = Remembered(), int(time.time())
        form = served.tokenizer.form
        self._opening = form.opening if form.closing else ""  # of a thought, which stands in the prompt

    def described(self) -> dict[str, Any]:
        """Return the model as `/v1/models` lists it."""
        said = {"id": self.name, "object": "model", "created": self._created, "owned_by": "sightline"}
        masks = {"prompt_mask": self.served.prompt_mask, "prompt_masks": self.masks}
        return said | masks | {"max_model_len": self.max_prompt_tokens}

    def mask_of(self, asked: Asked | LookAsked) -> str:
        """Return the prompt mask that a request is answered under: by default the one of the training."""
        mask = asked.prompt_mask or self.served.prompt_mask
        if mask not in self.masks:
            fault = f"{self.name} cannot keep passages apart as {mask} does; expected one of"
            raise RefusedError(f"prompt_mask: {fault} {', '.join(self.masks)}", param="prompt_mask")
        return mask

    def choices(self, asked: Asked, on_change: Callable[[], None]) -> list[Choice]:
        """Return the answers that a request asks for, not begun; raises `UserError` for what is too long.

        Encodes texts, which may take a while.
        """
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        choices: list[Choice] = []
        for prompt in self._prompts(asked):
            if len(prompt.ids) > self.max_prompt_tokens:
                raise RefusedError(
                    f"the prompt has {len(prompt.ids)} tokens but {self.name} takes "
                    f"{self.max_prompt_tokens}; shorten it",
                    code="context_length_exceeded",
                )
            for _ in range(asked.n or 1):
                sampling = asked.sampling(self._default, seed + len(choices))
                text = AnswerText(self.served.tokenizer, sampling.stop_strings)
                answer = self.lane.generator.begin(Request(prompt, sampling, text.is_stop))
                opening = self._opening if isinstance(asked, ChatAsked) else ""
                choices.append(Choice(len(choices), Job(answer, text, asked.top, on_change), opening))
        return choices

    def look(self, asked: LookAsked) -> dict[str, Any]:
        """Return a conversation as the page draws it; only the thread of the engine may call it."""
        rendered = render(self._remembered.recall(asked.conversation()), self.served.tokenizer)
        most = min(MOST_DRAWN_TOKENS, self.served.model.config.max_position_embeddings)
        if not 0 < len(rendered) <= most:
            raise RefusedError(f"the conversation has {len(rendered)} tokens; masks of 1 to {most} are drawn")
        return view(self.served, rendered, self.mask_of(asked))

    def remember(self, asked: ChatAsked, choice: Choice) -> None:
        """Keep the tokens of an answer, for when it comes back as text."""
        said = choice.said
        ids = tuple(choice.job.answer.ids)
        answer = Message("assistant", said.content, said.thought, said.tool_calls, ids=ids)
        self._remembered.add(asked.conversation(), answer)

    def _prompts(self, asked: Asked) -> list[Prompt]:
        mask, tokenizer = self.mask_of(asked), self.served.tokenizer
        if isinstance(asked, ChatAsked):
            messages = self._remembered.recall(asked.conversation())
            return [prompt_of(render(messages, tokenizer, True), mask)]
        return [
            raw_prompt(text, tokenizer, mask) if isinstance(text, str) else prompt_of_ids(text, mask)
            for text in asked.prompts()
        ]
