"""Put trained and evaluated models beside each other: scores, masks, answers."""

import sys

if not __package__:
    print("error: run python -m scripts.compare from the repository root", file=sys.stderr)
    sys.exit(2)

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import DeviceName
from trainer.command_line import parse, run

if TYPE_CHECKING:
    from rich.console import Console

    from eval.answers import Prediction
    from eval.comparison import Run


@dataclass(frozen=True)
class CompareSettings:
    """Flags of the comparison."""

    runs: tuple[str, ...]
    """run directories, each with the folder evaluation/ that scripts.evaluate wrote into it"""
    out: str
    """folder for masks.png and attention.png"""
    device: DeviceName = "auto"
    """where attention.png is computed; auto: on the accelerator where there is one, else on the CPU"""
    num_answers: int = 6
    """questions whose answers are shown side by side"""


def main() -> None:
    """Print the comparison and draw its pictures."""
    settings = parse(CompareSettings, "Compare runs: scores, masks, answers.")
    from rich.console import Console

    from eval.comparison import open_runs

    runs = open_runs(settings.runs)
    console = Console(highlight=False, markup=False, emoji=False)
    print_scores(console, runs)
    print_answers(console, runs, settings.num_answers)
    show_masks(console, runs, settings)
    console.print("\nTalk with a model:")
    for each in runs:
        console.print(f"  python -m scripts.chat --model {each.path}", soft_wrap=True)


def print_scores(console: "Console", runs: Sequence["Run"]) -> None:
    """Print exact match by split and kind, losses and training time, a column per run."""
    from eval.tables import score_table

    table = score_table({each.label: each.cells() for each in runs})
    table.add_section()
    for row in rows_of_losses(runs):
        table.add_row(*row)
    table.add_row("training time", "", *(training_time(each) for each in runs))
    console.print(table)


def rows_of_losses(runs: Sequence["Run"]) -> list[tuple[str, ...]]:
    """Return a line per token store and unit that every run was measured on, over as many targets."""
    stores = [
        store
        for store, loss in runs[0].evaluation.losses.items()
        if all(
            store in run.evaluation.losses and run.evaluation.losses[store].targets == loss.targets
            for run in runs
        )
    ]
    rows = []
    for store in stores:
        losses = [each.evaluation.losses[store] for each in runs]
        name = f"loss on {Path(store).name}"
        rows.append(
            (
                f"{name}, nats/token",
                str(losses[0].targets),
                *(f"{loss.nats_per_token:.4f}" for loss in losses),
            )
        )
        if all(loss.text_bytes for loss in losses):
            rows.append(
                (
                    f"{name}, bits/byte",
                    str(losses[0].text_bytes),
                    *(f"{loss.bits_per_byte:.4f}" for loss in losses),
                )
            )
    return rows


def training_time(each: "Run") -> str:
    """Return how long a run trained, as far as it says."""
    seconds = each.summary.get("seconds")
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def print_answers(console: "Console", runs: Sequence["Run"], count: int) -> None:
    """Print what the models say to some questions, first those on which they differ."""
    from rich import box
    from rich.table import Table

    from eval.comparison import telling_questions

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("question", "expected", *(each.label for each in runs)):
        table.add_column(name, overflow="fold")
    for n in telling_questions(runs, count):
        question = runs[0].predictions[n].question
        said = (prediction_text(each.predictions[n]) for each in runs)
        asked = "\n".join(message.content for message in question.messages)
        table.add_row(asked, " / ".join(question.answers), *said, end_section=True)
    console.print("Some answers, first those on which the models differ\n", table)


def prediction_text(prediction: "Prediction") -> str:
    """Return an answer on one line behind a mark for right or wrong."""
    text = "".join(character if character.isprintable() else " " for character in prediction.text)
    return f"{'+' if prediction.is_correct else '-'} {text}"


def show_masks(console: "Console", runs: Sequence["Run"], settings: CompareSettings) -> None:
    """Print the masks over the shortest question, and draw them and what the models make of them."""
    from dataset.tokenizer import Tokenizer
    from eval.comparison import answered, look_at, shortest_question
    from eval.drawings import draw_masks
    from eval.plots import save_attention, save_masks

    out, tokenizer = Path(settings.out), Tokenizer.load(runs[0].path)
    rendered = answered(shortest_question(runs[0].predictions), tokenizer)
    tokens = [tokenizer.token_text(token_id) for token_id in rendered.ids.tolist()]
    looks = {each.label: look_at(each, rendered, settings.device) for each in runs}
    panels = [panel for own, _ in looks.values() for panel in own]
    drawing = draw_masks({panel.title: panel.mask for panel in panels}, tokens, console.width)
    console.print(f"Who sees whom: a line per token, 1 = may attend\n\n{drawing}\n", soft_wrap=True)
    save_masks(out / "masks.png", panels, tokens)
    save_attention(out / "attention.png", {label: maps for label, (_, maps) in looks.items()}, tokens)
    console.print(f"{out / 'masks.png'}, {out / 'attention.png'}: the same as pictures", soft_wrap=True)


if __name__ == "__main__":
    run(main)
