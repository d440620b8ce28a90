"""Pretraining: `accelerate launch -m trainer.pretrain --data data/pre --out out/pre …`."""

from typing import TYPE_CHECKING

from trainer.command_line import parse, run
from trainer.settings import PretrainSettings

if TYPE_CHECKING:
    from dataset.tokenizer import Tokenizer
    from trainer.task import Start


def main() -> None:
    """Train a language model on text."""
    settings = parse(
        PretrainSettings, "Train a language model on text, from fresh weights or from those of --init."
    )
    from dataset.token_store import open_stores
    from trainer.loop import train
    from trainer.task import make_task, start_from

    stores = open_stores(settings.data)
    tokenizer = stores[0].tokenizer
    if settings.init:
        start = start_from(settings.init, settings.prompt_mask, tokenizer)
    else:
        start = fresh_start(settings, tokenizer)
    train(make_task(settings, "pretrain", stores, start))


def fresh_start(settings: PretrainSettings, tokenizer: "Tokenizer") -> "Start":
    """Draw a new model from the seed."""
    import torch

    from model.transformer import LanguageModel
    from trainer.task import Start

    torch.manual_seed(settings.seed)
    model = LanguageModel(settings.model.config(tokenizer.vocab_size))
    return Start(model, settings.prompt_mask or "causal", f"fresh, preset {settings.model.preset}", "fresh")


if __name__ == "__main__":
    run(main)
