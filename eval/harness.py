"""The class through which lm-evaluation-harness asks a model of ours, under its own prompt mask.

A plain context is a text that the model goes on with, as `scripts.chat --raw` has it: one message under the
mask. With the chat template it is a conversation, under the blocks that training gave it. Continuations are
causal. Texts have the tokens that transformers gives them, so that a causal model has the scores that the
harness's own class finds of what `scripts.export_hf` wrote.
"""

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from dataset.chat_form import Message
from dataset.conversation import render
from dataset.prompts import prompt_of, prompt_of_ids
from eval.answer_text import AnswerText
from eval.scoring import PREFIX_BYTES, score_pairs
from eval.served_model import ServedModel
from eval.serving_settings import TextSampling
from model.errors import UserError
from model.generator import Prompt, Request
from model.prefix_cache import PrefixCache, SharingBatch

SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""settings of a task's generation by names that are ours, too"""
UNTOLD = (("do_sample", True), ("do_sample", False), ("num_beams", 1))
"""what needs no setting of ours: whether an answer is drawn is told by the temperature"""
Report = Callable[[str, int], None]
Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""a context and its continuation as texts, where there are, and as ids"""


class SightlineLM(TemplateLM):
    """A model of ours as the harness asks it.

    simple_evaluate(model=SightlineLM(open_model("out/sft")), tasks=["arc_easy"])
    """

    max_gen_toks = 256
    """most tokens of an answer where a task names no number, as many as for models of transformers"""

    def __init__(
        self, served: ServedModel, batch_size: int = 16, report: Report = lambda what, count: None
    ) -> None:
        """Answer with a model, `batch_size` requests at a time; `report` gets what was done, how many."""
        super().__init__()
        self._served, self._batch_size, self._report = served, batch_size, report
        self._generator = served.generator()
        self._chats: dict[str, Prompt] = {}
        self.max_length, self.cut = self._generator.max_tokens, 0
        """tokens that the model takes; requests that were longer, and lost their beginning"""

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends texts."""
        return self._served.tokenizer.endoftext_id

    @property
    def prefix_token_id(self) -> int:
        """Return the id before texts, which their first token is predicted from."""
        return self._served.tokenizer.text_begin[0]

    @property
    def tokenizer_name(self) -> str:
        """Return what tells the tokenizer and its template from others."""
        return self._served.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; what the tokenizer puts before it is left out where it stands there."""
        tokenizer = self._served.tokenizer
        is_begun = string.startswith(tokenizer.token_text(self.prefix_token_id))
        return tokenizer.encode_as_transformers(string, add_special_tokens is not False and not is_begun)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation before its answer, or before the end of an answer that is begun.

        What the model will see of it is kept: its marks, and not what contents spell of them.
        """
        messages, tokenizer = [Message(**each) for each in chat_history], self._served.tokenizer
        begun = [] if add_generation_prompt else tokenizer.encode(messages.pop().content)
        prompt = prompt_of(render(messages, tokenizer, True), self._served.prompt_mask).append(begun)
        self._chats[text := tokenizer.decode(prompt.ids)] = prompt
        return text

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of what follows; a header of a chat is all context."""
        if prompt := self._chats.get(context):
            return list(prompt.ids), self._served.tokenizer.encode(continuation)
        return super()._encode_pair(context, continuation)

    def _loglikelihood_tokens(self, requests: list[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the greedy one."""
        pairs = []
        for texts, context, continuation in requests:
            room = self.max_length - len(continuation) + 1
            if room < 1:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens but the model takes {self.max_length}"
                )
            pairs.append((self._fitted(self._prompt(texts and texts[0], context), room), continuation))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for n, scored in score_pairs(self._generator, pairs, self._batch_size):
            found[n] = scored.total, scored.is_greedy
            self._report(f"of {len(pairs)} continuations scored", 1)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of texts, long ones in windows that begin with one token of the last."""
        windows = [
            (number, make_disjoint_window(window))
            for number, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
        ]
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        for (number, _), (total, _) in zip(windows, scores, strict=True):
            totals[number] += total
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return answers, each up to the first of its task's stop strings, which is left out."""
        asked, texts = [], []
        for number, request in enumerate(requests):
            context, kwargs = request.args
            sampling = self._sampling(kwargs, number)
            prompt = self._fitted(self._prompt(context, None), self.max_length - sampling.max_new_tokens)
            texts.append(AnswerText(self._served.tokenizer, sampling.stop_strings))
            asked.append(Request(prompt, sampling, texts[-1].is_stop))
        batch = SharingBatch(self._generator, PrefixCache(PREFIX_BYTES))
        for _ in self._generator.stream(asked, self._batch_size, batch):
            self._report(f"of {len(asked)} answers generated", 1)
        return [text.finish() for text in texts]

    def _prompt(self, context: str | None, ids: list[int] | None) -> Prompt:
        """Return a context as the model sees it: a chat, a text by its ids, or a text."""
        if context in self._chats:
            return self._chats[context]
        ids = self.tok_encode(context) if ids is None else ids
        return prompt_of_ids(ids or [self.prefix_token_id], self._served.prompt_mask)

    def _fitted(self, prompt: Prompt, room: int) -> Prompt:
        """Return the last `room` tokens of a prompt."""
        self.cut += len(prompt.ids) > room
        return prompt.part(max(0, len(prompt.ids) - room))

    def _sampling(self, given: dict[str, Any], seed: int) -> TextSampling:
        """Return how an answer is drawn; raises `UserError` for what a task asks and nothing here does."""
        asked = normalize_gen_kwargs(given, self.max_gen_toks)
        stops, most = tuple(filter(None, asked.pop("until"))), asked.pop("max_gen_toks")
        known = {name: asked.pop(name) for name in SAMPLED if name in asked}
        others = [f"{name} {value}" for name, value in asked.items() if (name, value) not in UNTOLD]
        if others:
            raise UserError(f"the task asks to generate with {', '.join(others)}, which is not done here")
        if most >= self.max_length:
            raise UserError(
                f"the task asks for answers of {most} tokens but the model takes {self.max_length} in all; "
                "name a smaller max_gen_toks in a task file of your own (--include_path)"
            )
        return TextSampling(max_new_tokens=most, seed=seed, stop_strings=stops, **known)
