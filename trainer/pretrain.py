"""Pretraining: `accelerate launch -m trainer.pretrain --data data/pre --out out/pre …`."""

import sys

if not __package__:
    print("error: run python -m trainer.pretrain from the repository root", file=sys.stderr)
    sys.exit(2)

from dataset.command_line import parse, run
from trainer.settings import PretrainSettings


def main() -> None:
    """Train a language model on text."""
    settings = parse(
        PretrainSettings, "Train a language model on text, from fresh weights or from those of --init."
    )
    from trainer.loop import train
    from trainer.setup import prepare

    train(prepare(settings, "pretrain"))


if __name__ == "__main__":
    run(main, stdout_is_log=True)
