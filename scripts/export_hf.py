"""Write a model to a directory that `transformers` opens, with the prompt mask that it was trained with."""

import sys

if not __package__:
    print("error: run python -m scripts.export_hf from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass
from typing import Literal

from dataset.command_line import parse, run
from dataset.printing import printable


@dataclass(frozen=True)
class ExportSettings:
    """Flags of the export."""

    model: str
    """model directory; with another prompt_mask than causal, what is written brings its own modelling file"""
    out: str
    """directory to write, new or empty"""
    for_engine: Literal["any", "transformers"] = "any"
    """what will open it; a causal Qwen3 with sliding windows is right in transformers alone"""
    drop_router_bias: bool = False
    """whether a mixture of experts is exported without the bias that helped to choose them in training, for
    which transformers has no place: some tokens pass other experts then"""


def main() -> None:
    """Export and say what can be done with the result."""
    settings = parse(ExportSettings, "Export a model for transformers.")
    from eval.engines.transformers_files import export

    result = export(settings.model, settings.out, settings.for_engine, settings.drop_router_bias)
    print(printable(settings.out), result)


if __name__ == "__main__":
    run(main)
