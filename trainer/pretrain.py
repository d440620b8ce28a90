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
    from dataset.token_store import open_stores
    from trainer.loop import train
    from trainer.task import make_start, make_task

    stores = open_stores(settings.data)
    train(make_task(settings, "pretrain", stores, make_start(settings, stores)))


if __name__ == "__main__":
    run(main, stdout_is_log=True)
