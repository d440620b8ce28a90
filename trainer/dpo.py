"""Preference tuning: `accelerate launch -m trainer.dpo --init out/sft --data data/pairs …`."""

import sys

if not __package__:
    print("error: run python -m trainer.dpo from the repository root", file=sys.stderr)
    sys.exit(2)

from dataset.command_line import parse, run
from trainer.settings import DpoSettings


def main() -> None:
    """Teach the model of --init to prefer good answers to bad ones."""
    settings = parse(DpoSettings, "Tune a model on pairs of a chosen and a rejected answer (DPO).")
    from trainer.loop import train
    from trainer.setup import prepare

    train(prepare(settings, "preference"))


if __name__ == "__main__":
    run(main, stdout_is_log=True)
