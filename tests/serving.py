"""Small random models with a tokenizer, opened as chat and evaluation open them, and questions for them."""

import json
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


def served_model(prompt_mask: str, context: int = 256, stops: bool = False, **shape) -> ServedModel:
    """A random model whose answers go on until a limit, or with `stops` until it draws a stop id."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = from_preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=context,
        prompt_mask=prompt_mask,
        initializer_range=0.2,
        **shape,
    )
    stop_ids = tokenizer.stop_ids if stops else ()
    return ServedModel(LanguageModel(config).eval(), tokenizer, stop_ids, Path("random"))


def saying_model(
    text: str, prompt_mask: str, context: int = 512, loops: bool = False, has_marks: bool = False
) -> ServedModel:
    """A model that answers everything with `text`, then ends or with `loops` says it again and again.

    Each token decides the next, so no two tokens of the text may be the same. With `has_marks` the text of a
    mark is the mark.
    """
    tokenizer = small_tokenizer()
    ids = tokenizer.encode_form(text) if has_marks else tokenizer.encode(text)
    chain = [*tokenizer.encode("\n"), *ids, ids[0] if loops else tokenizer.im_end_id]
    assert len(set(chain[:-1])) == len(chain) - 1, "a token of the text stands twice"
    torch.manual_seed(0)
    config = from_preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        prompt_mask=prompt_mask,
        initializer_range=1.0,
    )
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[chain[1:]] = model.model.embed_tokens.weight[chain[:-1]]
        if loops:  # the first token follows the header as well as the last one
            model.lm_head.weight[ids[0]] += model.model.embed_tokens.weight[chain[0]]
    return ServedModel(model, tokenizer, tokenizer.stop_ids, Path("saying"))


def save_served(served: ServedModel, folder: Path) -> Path:
    """Write a served model as a model directory."""
    served.tokenizer.save(folder)
    save_checkpoint(folder, served.model, served.stop_ids)
    return folder


def save_model(folder: Path, prompt_mask: str, context: int = 256, vocab_size: int | None = None) -> Path:
    """Write a model directory with a tokenizer; `vocab_size` is that of the model where it is to differ."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = from_preset(
        "tiny",
        vocab_size=vocab_size or tokenizer.vocab_size,
        max_position_embeddings=context,
        prompt_mask=prompt_mask,
    )
    tokenizer.save(folder)
    save_checkpoint(folder, LanguageModel(config), tokenizer.stop_ids)
    return folder


def write_lines(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def chat_question(text: str, *answers: str, **fields: str) -> dict:
    return {"conversations": [{"role": "user", "content": text}], "answers": list(answers), **fields}
