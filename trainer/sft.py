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
    from dataset.token_store import open_stores
    from trainer.loop import train
    from trainer.task import make_start, make_task

    stores = open_stores(settings.data)
    train(make_task(settings, "sft", stores, make_start(settings, stores)))


if __name__ == "__main__":
    run(main, stdout_is_log=True)
