"""Copy a causal model to a directory that `transformers` opens as a model of its own."""

import sys

if not __package__:
    print("error: run python -m scripts.export_hf from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass
from typing import Literal

from dataset.command_line import parse, run
from dataset.printing import printable
from model.errors import UserError


@dataclass(frozen=True)
class ExportSettings:
    """Flags of the export."""

    model: str
    """directory of a model with prompt_mask causal; causal engines would not apply another"""
    out: str
    """directory to write, new or empty"""
    for_engine: Literal["any", "transformers"] = "any"
    """what will open it; a Qwen3 with sliding windows is right in transformers alone"""
    drop_router_bias: bool = False
    """whether a mixture of experts is exported without the bias that helped to choose them in training, for
    which transformers has no place: some tokens pass other experts then"""


def main() -> None:
    """Export and say what can be done with the result."""
    settings = parse(ExportSettings, "Export a causal model for transformers.")
    from eval.served_model import open_model
    from model.checkpoint import export_checkpoint
    from model.files import whole_folder

    served = open_model(settings.model)  # raises where model and tokenizer do not fit
    if served.model.config.router_bias and not settings.drop_router_bias:
        raise UserError(
            f"{settings.model} chooses experts by a bias, too, for which transformers has no place; add "
            "--drop_router_bias true to leave it out, and measure what that changes by scripts.evaluate"
        )
    is_qwen3 = served.model.config.architecture.startswith("qwen3")
    if is_qwen3 and served.model.config.sliding_window and settings.for_engine == "any":
        raise UserError(
            f"{settings.model} has sliding windows, which vLLM, SGLang and llama.cpp ignore: they would give "
            "other answers without a word; add --for_engine transformers if nothing else will open it"
        )
    with whole_folder(settings.out) as folder:
        kind = export_checkpoint(settings.model, folder, settings.drop_router_bias)
        served.tokenizer.save(folder)
    print(f"{printable(settings.out)} is written: {kind.class_name} of transformers opens it")


if __name__ == "__main__":
    run(main)
