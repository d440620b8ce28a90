"""Supervised fine-tuning: `accelerate launch -m trainer.sft --init out/pre --data data/sft …`."""

import sys

if not __package__:
    print("error: run python -m trainer.sft from the repository root", file=sys.stderr)
    sys.exit(2)

from dataset.command_line import parse, run
from trainer.settings import SftSettings


def main() -> None:
    """Train the model of --init, or a fresh one, on conversations."""
    settings = parse(SftSettings, "Fine-tune a model on conversations, under a choice of prompt mask.")
    from trainer.loop import train
    from trainer.setup import prepare

    train(prepare(settings, "sft"))


if __name__ == "__main__":
    run(main, stdout_is_log=True)
