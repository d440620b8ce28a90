"""What is trained on what: the streams of a training, and the checks that its parts fit together."""

import json
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from dataset.batch_settings import BatchSettings, RowSettings
from dataset.batches import BatchStream
from dataset.documents import documents_of
from dataset.token_store import TokenStore
from dataset.tokenizer import Tokenizer
from model.adapter import tokenizer_folder
from model.architectures import model_of
from model.checkpoint import TRAINED_ON, load_checkpoint
from model.config import WITH_ENCODER
from model.errors import UserError
from model.transformer import LanguageModel
from trainer.adapters import AdaptedModel
from trainer.settings import FRESH, PretrainSettings, SftSettings


@dataclass(frozen=True)
class Start:
    """What a training starts from."""

    model: LanguageModel
    origin: str
    """where the weights come from, in words"""
    fingerprint: str
    """changes when the weights do, which a path does not show"""
    adapter: AdaptedModel | None = None
    """what of the model trains; None where all of it does"""

    @property
    def prompt_mask(self) -> str:
        """The strategy whose blocks the model is trained under."""
        return self.model.config.prompt_mask


@dataclass(frozen=True)
class Inputs:
    """What goes into a training: a model, rows to learn from and to be measured on, and how."""

    settings: PretrainSettings | SftSettings
    start: Start
    stream: BatchStream
    validation: dict[str, BatchStream]
    data_fingerprint: str

    def facts(self) -> dict[str, Any]:
        """Return what a resumed run must agree with, dotted key to value."""
        settings = self.settings.fixed()
        if self.settings.init != FRESH:  # the weights have a shape of their own, but windows may change
            config = self.start.model.config
            windows = [pattern.reach for pattern in config.layer_patterns]
            settings = {key: value for key, value in settings.items() if not key.startswith("model.")}
            settings |= {"model.layer_windows": windows} if any(windows) else {}
            for name in ("window_both_sides", "attention_sinks", "attention_chunk_size"):
                settings |= {f"model.{name}": value} if (value := getattr(config, name)) else {}
            settings |= {"model.rope_scaling": asdict(config.rope_scaling)} if config.rope_scaling else {}
        own = {
            "data": self.data_fingerprint,
            "init": self.start.fingerprint,
            "prompt_mask": self.start.prompt_mask,
            "supervise": self.stream.settings.supervise,
        }
        return settings | own


def make_inputs(
    settings: PretrainSettings | SftSettings, kind: str, stores: list[TokenStore], start: Start
) -> Inputs:
    """Build the streams; raises `UserError` where data, model and settings do not fit."""
    longest = start.model.config.max_position_embeddings
    if settings.max_seq_len > longest:
        fault = f"--max_seq_len is {settings.max_seq_len} but the model takes {longest} tokens"
        raise UserError(f"{fault}; lower it, or train a model with a larger --model.max_position_embeddings")
    if (family := start.model.config.architecture) in WITH_ENCODER and start.prompt_mask == "causal":
        fault = f"--prompt_mask: architecture {family} reads the blocks of a prompt by its encoder"
        raise UserError(f"{fault}; expected a mask that has blocks, as prefix, got causal")
    others = [TokenStore(path, stores[0].tokenizer) for path in settings.validation]
    names = [store.path.name for store in others]
    if len({*names, "training"}) <= len(names):
        raise UserError(f"--validation: expected different folder names, none of them training, got {names}")
    for store in stores + others:
        if store.highest_id >= (room := start.model.config.vocab_size):
            raise UserError(f"{store.path} holds token {store.highest_id} but the model knows {room}")
        if store.kind != kind:
            fault = f"{store.path} holds {store.kind} data"
            raise UserError(f"{fault}; expected what prepare_data --kind {kind} writes")
    rows = {field.name: getattr(settings, field.name) for field in fields(RowSettings)}
    together = BatchSettings(**rows, prompt_mask=start.prompt_mask, supervise=settings.supervise)
    alone = replace(together, isolate_documents=True)
    files = json.dumps([store.manifest["files"] for store in stores], sort_keys=True)
    return Inputs(
        settings,
        start,
        BatchStream(documents_of(stores, together)),
        {store.path.name: BatchStream(documents_of([store], alone)) for store in others},
        sha256(files.encode()).hexdigest()[:12],
    )


def make_start(settings: PretrainSettings | SftSettings, stores: list[TokenStore]) -> Start:
    """Draw a new model from the seed, or open --init."""
    tokenizer = stores[0].tokenizer
    if settings.init != FRESH:
        highest_id = max(store.highest_id for store in stores)
        trains_all = settings.lora.rank is None
        start = start_from(settings.init, settings.prompt_mask, tokenizer, highest_id, grows=trains_all)
        start.model.set_masks(settings.model.placed(start.model.config))
        if trains_all:
            return start
        base, seed = (settings.init, start.fingerprint), settings.seed
        return replace(start, adapter=AdaptedModel(start.model, settings.lora, *base, seed))
    torch.manual_seed(settings.seed)
    config = settings.model.config(tokenizer.vocab_size)
    model = model_of(replace(config, prompt_mask=settings.prompt_mask or config.prompt_mask))
    return Start(model, f"fresh {settings.model.architecture}, preset {settings.model.preset}", FRESH)


def start_from(
    path: str, prompt_mask: str | None, tokenizer: Tokenizer, highest_id: int, grows: bool = True
) -> Start:
    """Open --init under its own prompt mask, or another one that was asked for.

    Its vocabulary `grows` where the data, up to `highest_id`, holds tags that it lacks. Raises `UserError` if
    it may not, or if the model was trained with another tokenizer; one with other `prompt_copies` is another
    to chats only.
    """
    checkpoint = load_checkpoint(path)
    room = checkpoint.model.config.vocab_size
    own = Tokenizer.load(tokenizer_folder(path), room)
    is_same = own.fingerprint == tokenizer.fingerprint
    if not is_same and checkpoint.trained_on == TRAINED_ON["pretrain"]:  # no text holds a prompt
        is_same = own.text_fingerprint == tokenizer.text_fingerprint
    if not is_same:
        fault = f"--data was prepared with another tokenizer than {path} has"
        raise UserError(f"{fault}; prepare it with that of the model")
    origin, fingerprint = f"weights of {path}", checkpoint.fingerprint
    if highest_id >= room:
        added = " ".join(map(tokenizer.token_text, range(room, tokenizer.vocab_size)))
        if not grows:
            fault = f"--lora.rank: the data holds some of {added}, for which {path} has no rows"
            raise UserError(f"{fault}, and frozen ones would learn nothing; train all weights first")
        resize_token_embeddings(checkpoint.model, tokenizer.vocab_size)
        origin += f", grown from {room} to {tokenizer.vocab_size} tokens as the data holds some of {added}"
    if own.fingerprint != tokenizer.fingerprint:
        origin += f", prompts with {tokenizer.prompt_copies} copies of a question from now on"
    config = checkpoint.model.config
    if prompt_mask not in (None, config.prompt_mask):
        origin += f", trained with prompt mask {config.prompt_mask} until now"
        checkpoint.model.set_masks(replace(config, prompt_mask=prompt_mask))
    return Start(checkpoint.model, origin, fingerprint)


@torch.no_grad()
def resize_token_embeddings(model: LanguageModel, vocab_size: int) -> None:
    """Give the vocabulary more rows; each is the mean of those that are there."""
    model.config = model.model.config = replace(model.config, vocab_size=vocab_size)
    embedding, head = model.model.embed_tokens, model.lm_head
    for module in (embedding, head):
        rows = module.weight.mean(dim=0).expand(vocab_size - len(module.weight), -1)
        module.weight = nn.Parameter(torch.cat((module.weight, rows)))
    embedding.num_embeddings = head.out_features = vocab_size
    if model.config.tie_word_embeddings:
        head.weight = embedding.weight
