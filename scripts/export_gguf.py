"""Write a model to one GGUF file for llama.cpp and what is built on it, and check what was written."""

import sys

if not __package__:
    print("error: run python -m scripts.export_gguf from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass
from typing import Literal

from dataset.command_line import parse, run
from dataset.printing import printable


@dataclass(frozen=True)
class GgufSettings:
    """Flags of the export."""

    model: str
    """model directory; with another prompt_mask than causal, scripts.chat alone opens what is written"""
    out: str
    """.gguf file to write"""
    quantize: Literal["f32", "f16", "q8_0", "q4_0"] = "f32"
    """form of the weights: 32, 16, 8 or 4 bits each"""
    data: tuple[str, ...] = ()
    """token stores whose texts are compared: do they get the same ids in llama.cpp?"""


def main() -> None:
    """Write, check, and say what opens the file."""
    settings = parse(GgufSettings, "Write a model as a GGUF file for llama.cpp.")
    from eval.engines.gguf_file import export

    for line in export(settings.model, settings.out, settings.quantize, settings.data):
        print(printable(line))


if __name__ == "__main__":
    run(main)
