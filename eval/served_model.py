"""A checkpoint opened for use: weights, tokenizer, and the attention pattern that it was trained with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dataset.conversation import renderer_of
from dataset.messages import shown
from dataset.tokenizer import Tokenizer
from model.adapter import tokenizer_folder
from model.checkpoint import load_checkpoint
from model.config import DeviceName, Weights
from model.decoding import Steps
from model.errors import UserError
from model.files import read_object
from model.generator import Generator
from model.passage_states import PassageGenerator
from model.serving import choose_device, describe_device, store_weights
from model.strategies import strategy_named
from model.systems import compiler_fault
from model.transformer import LanguageModel

OF_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
Tell = Callable[[str], None]
"""takes a line about what is going on"""


@dataclass(frozen=True)
class ServedModel:
    """What chat, evaluation and pictures need of a checkpoint."""

    model: LanguageModel
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    path: Path
    steps: Steps | None = None
    form: str = "float32 weights, decoding not compiled"
    """how it computes, in words"""
    trained_on: str | None = None
    """texts or chats, whichever came last; None where nothing says so"""

    @property
    def prompt_mask(self) -> str:
        """The strategy that the model is served under."""
        return self.model.config.prompt_mask

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.model.embed_tokens.weight.device

    @property
    def speed(self) -> str:
        """Everything that decides how fast it computes, in words."""
        return f"{self.form}, {describe_device(self.device)}"

    @property
    def forgets(self) -> str:
        """What of a conversation its template leaves out, as a note; nothing where it writes all."""
        forgotten = renderer_of(self.tokenizer).form.forgets
        return f"{self.path}: the chat template leaves out {forgotten}" if forgotten else ""

    def notes(self, texts: str) -> Iterator[str]:
        """Yield what whoever chats with the model is to know; `texts` names what continues texts with it."""
        if self.trained_on == "texts":
            yield f"{self.path} was never fine-tuned on chats; {texts} continues text"
        if self.forgets:
            yield self.forgets
        file = self.path / "generation_config.json"
        drawing = read_object(file, "copy the model again") if file.is_file() else {}
        if unread := [key for key in drawing if key not in OF_TOKENS and not key.startswith("_")]:
            yield f"{file}: not read are {shown(unread)}; flags and requests say how answers are drawn"

    def generator(self) -> Generator:
        """Return a generator that ends at any stop id of the checkpoint."""
        is_isolating = strategy_named(self.prompt_mask).passages == "isolated"
        kind = PassageGenerator if is_isolating else Generator
        return kind(self.model, self.stop_ids, step=self.steps)

    def in_form(
        self, weights: Weights, compiles: bool, for_one_row: bool, tell: Tell = lambda line: None
    ) -> "ServedModel":
        """Return the model with its weights stored in a form and, where that is faster, compiled decoding.

        `for_one_row` says whether answers are wanted one at a time; `tell` gets a line before a long wait.
        The weights are replaced in place. Raises `UserError` where nothing can be compiled.
        """
        steps, form, decoding = Steps(self.model), store_weights(self.model, weights), "not compiled"
        if compiles:
            if fault := compiler_fault(self.device):
                raise UserError(f"--compile: nothing can be compiled here ({fault}); install g++ or drop it")
            tell("compiling the decoding: a minute or two for a new shape, seconds for one that was compiled")
            decoding = steps.compile(for_one_row)
        return replace(self, steps=steps, form=f"{form}, decoding {decoding}")


def open_model(
    path: str | Path,
    prompt_mask: str | None = None,
    allow_mask_mismatch: bool = False,
    device: DeviceName = "auto",
) -> ServedModel:
    """Open a checkpoint directory on a device, by default with the mask that stands in its configuration.

    Raises `UserError` for a directory that is missing, broken or holds a tokenizer larger than the model, for
    a device that is not there, and for a `prompt_mask` other than the trained one without
    `allow_mask_mismatch`.
    """
    place = choose_device(device)
    checkpoint = load_checkpoint(path)
    tokenizer = Tokenizer.load(tokenizer_folder(path), checkpoint.model.config.vocab_size)
    model, config = checkpoint.model.eval().to(place), checkpoint.model.config
    mask = choose_mask(config.prompt_mask, prompt_mask, allow_mask_mismatch)
    model.set_masks(replace(config, prompt_mask=mask))
    stop_ids = checkpoint.stop_ids or tokenizer.stop_ids
    return ServedModel(model, tokenizer, stop_ids, Path(path), trained_on=checkpoint.trained_on)


def choose_mask(trained: str, wanted: str | None, allow_mismatch: bool) -> str:
    """Return the mask to serve a model with; another than `trained` must be allowed (`UserError`)."""
    if wanted is not None:
        strategy_named(wanted)
    if allow_mismatch and wanted in (None, trained):
        fault = "--allow_mask_mismatch changes nothing here: the model is served with its own mask"
        raise UserError(f"{fault}, {trained}; leave it out, or name another mask with --prompt_mask")
    if wanted not in (None, trained) and not allow_mismatch:
        raise UserError(
            f"the model was trained with prompt_mask {trained} but is asked to run with {wanted}; "
            "leave --prompt_mask out, or add --allow_mask_mismatch to do it all the same"
        )
    return wanted or trained


def tell_apart(masks: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return a name for each of several models: its mask if those differ, else its folder's name or path."""
    names = (list(masks), [folder.name for folder in folders])
    return next((each for each in names if len(set(each)) == len(each)), [str(folder) for folder in folders])
