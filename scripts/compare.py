"""Put trained and evaluated models beside each other: scores in pairs of answers, losses, masks, answers."""

import sys

if not __package__:
    print("error: run python -m scripts.compare from the repository root", file=sys.stderr)
    sys.exit(2)

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from dataset.command_line import parse, run
from dataset.printing import printable
from model.config import DeviceName
from model.errors import UserError
from model.files import whole_folder

if TYPE_CHECKING:
    from eval.comparison import Evaluated


FILES = ("comparison.json", "comparison.md", "losses.png", "masks.png", "attention.png")


@dataclass(frozen=True)
class CompareSettings:
    """Flags of the comparison."""

    runs: tuple[str, ...]
    """run directories with the folder evaluation/ that scripts.evaluate wrote, or such folders themselves"""
    out: str
    """folder for the tables (comparison.md, .json) and pictures (losses.png, masks.png, attention.png)"""
    device: DeviceName = "auto"
    """where attention.png is computed; auto: on the accelerator where there is one, else on the CPU"""
    num_answers: int = 0
    """questions whose answers are shown side by side, first those on which the runs differ"""
    show_masks: bool = False
    """print the masks over the shortest question, too"""
    overwrite: bool = False
    """replace a comparison that lies at out already"""

    def __post_init__(self) -> None:
        """Refuse what compares nothing."""
        if len(self.runs) < 2:
            raise UserError(f"--runs: expected two or more, got {len(self.runs)}")
        if self.num_answers < 0:
            raise UserError(f"--num_answers: expected 0 or more, got {self.num_answers}")


def main() -> None:
    """Print the comparison, write it down, and draw its pictures."""
    settings = parse(CompareSettings, "Compare runs: scores over the same questions, losses, masks, answers.")
    from eval.comparison import compare
    from eval.comparison_report import paired_tables, save_report, scores
    from eval.evaluation import check_out
    from eval.tables import as_text

    check_out(settings.out, *FILES)
    with whole_folder(settings.out, settings.overwrite) as out:
        found, width = compare(settings.runs), get_terminal_size().columns
        if settings.num_answers:
            print_answers(found.runs, settings.num_answers)
        draw_losses(found.runs, out)
        draw_masks(found.runs, settings, out, width)
        save_report(out, found)
    print(printable(f"comparison.md, comparison.json: what follows, and more; all in {settings.out}"))
    print("\nTalk with a model:")
    for each in found.runs:
        print(printable(f"  python -m scripts.chat --model {shlex.quote(str(each.model))}"))
    for note in found.notes:
        print("\n" + printable(note))
    for table in (*paired_tables(found), scores(found)):
        print("\n" + as_text(table, width))


def print_answers(runs: Sequence["Evaluated"], count: int) -> None:
    """Print what the models say to some questions, first those on which they differ."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from eval.comparison import telling_questions

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("question", "expected", *(each.label for each in runs)):
        table.add_column(printable(name), overflow="fold")
    for n in telling_questions(runs, count):
        question = runs[0].predictions[n].question
        answers = (each.predictions[n] for each in runs)
        said = (f"{'-+'[each.is_correct]} {printable(' '.join(each.text.split()))}" for each in answers)
        asked = "\n".join(message.content for message in question.messages)
        row = printable(asked, keep="\n"), printable(" / ".join(question.answers)), *said
        table.add_row(*row, end_section=True)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print("Some answers, first those on which the models differ\n", table)


def draw_losses(runs: Sequence["Evaluated"], out: Path) -> None:
    """Draw the losses of all trainings into one picture, and say which have none."""
    from eval.loss_curves import by_step, save_losses
    from trainer.run_dir import METRICS, RunDirectory

    metrics = {run.label: RunDirectory(run.model).read_records(METRICS) for run in runs}
    curves = by_step(metrics)
    for each in runs:
        if not any(each.label in of for of in curves.values()):
            print(printable(f"losses.png is without {each.label}: no losses in {each.model / METRICS}"))
    if curves:
        save_losses(out / "losses.png", metrics)
        print("losses.png: how the losses fell")


def draw_masks(runs: Sequence["Evaluated"], settings: CompareSettings, out: Path, width: int) -> None:
    """Draw the masks over the shortest question, and what the models make of them; or say why not."""
    from dataset.tokenizer import Tokenizer
    from eval.comparison import shortest_question
    from eval.looks import look_at
    from eval.plots import draw_masks, save_attention, save_masks
    from model.adapter import tokenizer_folder

    try:
        question = shortest_question(runs[0].predictions)
        if len({Tokenizer.load(tokenizer_folder(each.model)).fingerprint for each in runs}) > 1:
            raise UserError("the models have different tokenizers")
        looks = {each.label: look_at(each, question, settings.device) for each in runs}
    except UserError as error:
        print(printable(f"Masks are not drawn: {error}"))
        return
    tokens = looks[runs[0].label].tokens
    panels = [panel for look in looks.values() for panel in look.panels]
    if settings.show_masks:
        drawing = draw_masks({panel.title: panel.mask for panel in panels}, tokens, width)
        print(f"Who sees whom: a line per token, 1 = may attend\n\n{printable(drawing, keep=chr(10))}\n")
    save_masks(out / "masks.png", panels, tokens)
    save_attention(out / "attention.png", {label: look.maps for label, look in looks.items()}, tokens)
    print("masks.png, attention.png: who sees whom, and where the models look")


if __name__ == "__main__":
    run(main)
