"""Turn another project's `.pth` weights in our layout (minimind's, say) into a model directory."""

import sys

if not __package__:
    print("error: run python -m scripts.import_pth from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass

from dataset.command_line import parse, run
from dataset.printing import printable
from trainer.model_settings import ModelSettings


@dataclass(frozen=True)
class ImportSettings:
    """Flags of the import."""

    weights: str
    """.pth file of a model's state; nothing but tensors is read from it"""
    tokenizer: str
    """tokenizer directory of that model"""
    out: str
    """model directory to write, new or empty"""
    model: ModelSettings = ModelSettings(preset="minimind3")


def main() -> None:
    """Import the weights and say what can be done with them."""
    settings = parse(ImportSettings, "Turn .pth weights into a model directory.")
    from dataset.tokenizer import Tokenizer
    from model.checkpoint import build_from_pth, save_checkpoint
    from model.files import check_free, whole_folder

    check_free(settings.out)
    tokenizer = Tokenizer.load(settings.tokenizer)
    model = build_from_pth(settings.weights, settings.model.config(tokenizer.own_vocab_size))
    with whole_folder(settings.out) as folder:
        save_checkpoint(folder, model, tokenizer.stop_ids)
        tokenizer.save(folder)
    size = f"{model.num_parameters():,} parameters"
    print(f"{printable(settings.out)} is written: {size}; chat, --init and evaluate take it")


if __name__ == "__main__":
    run(main)
