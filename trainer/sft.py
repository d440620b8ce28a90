"""Supervised fine-tuning: `accelerate launch -m trainer.sft --init out/pre --data data/sft …`."""

from trainer.command_line import parse, run
from trainer.settings import SftSettings


def main() -> None:
    """Fine-tune the model of --init on conversations."""
    settings = parse(SftSettings, "Fine-tune a model on conversations, under a choice of prompt mask.")
    from dataset.token_store import open_stores
    from trainer.loop import train
    from trainer.task import make_task, start_from

    stores = open_stores(settings.data)
    start = start_from(settings.init, settings.prompt_mask, stores[0].tokenizer)
    train(make_task(settings, "sft", stores, start))


if __name__ == "__main__":
    run(main)
