"""Small random models with a tokenizer, opened as chat and evaluation open them."""

from functools import cache
from pathlib import Path

import torch

from dataset.tokenizer import Tokenizer, train_tokenizer
from eval.served_model import ServedModel
from model.checkpoint import save_checkpoint
from model.config import from_preset
from model.transformer import LanguageModel

TEXTS = (
    "What is the capital of Peru? Lima. And its currency? The sol.",
    "法国的首都是哪里？巴黎。它的货币呢？欧元。😀",
)


@cache
def small_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=320)


def served_model(prompt_mask: str, context: int = 256, stops: bool = False) -> ServedModel:
    """A random model whose answers go on until a limit, or with `stops` until it draws a stop id."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = from_preset(
        "tiny", vocab_size=tokenizer.vocab_size, max_position_embeddings=context, initializer_range=0.2
    )
    stop_ids = tokenizer.stop_ids if stops else ()
    return ServedModel(LanguageModel(config).eval(), tokenizer, prompt_mask, stop_ids, Path("random"))


def save_model(folder: Path, prompt_mask: str, context: int = 256, vocab_size: int | None = None) -> Path:
    """Write a model directory with a tokenizer; `vocab_size` is that of the model where it is to differ."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = from_preset(
        "tiny", vocab_size=vocab_size or tokenizer.vocab_size, max_position_embeddings=context
    )
    tokenizer.save(folder)
    save_checkpoint(folder, LanguageModel(config), prompt_mask, tokenizer.stop_ids)
    return folder
