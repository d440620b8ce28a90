"""Measure a model: exact match on questions, the loss on prepared text, tasks of lm-evaluation-harness."""

import sys

if not __package__:
    print("error: run python -m scripts.evaluate from the repository root", file=sys.stderr)
    sys.exit(2)

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from dataset.command_line import parse, run
from dataset.printing import NOTE, printable, tell
from eval.serving_settings import EvaluationSettings
from model.errors import UserError

if TYPE_CHECKING:
    from eval.answers import Tally
    from eval.evaluation import Evaluation
    from eval.served_model import ServedModel


def main() -> None:
    """Measure what is not measured yet, and print the tables."""
    settings = parse(EvaluationSettings, "Measure exact match and loss of a model.")
    from eval.evaluation import evaluate, find, save
    from eval.served_model import open_model

    served = open_model(settings.model, settings.prompt_mask, settings.allow_mask_mismatch, settings.device)
    if settings.tasks:
        return measure_tasks(served, settings)
    if evaluation := find(served, settings):
        print(printable(f"{settings.out} holds this evaluation already"))
        for note in evaluation.notes:
            tell(f"{NOTE}{note}")
    else:
        has_one_row = settings.batch_size == 1 or settings.prompt_lookup > 0
        served = served.in_form(settings.dtype, settings.compile, has_one_row, tell)
        found = evaluate(served, settings, counting(), tell)
        evaluation = found.evaluation
        if settings.out:
            save(settings.out, found, settings.overwrite)
        tell(served.speed)
    show(evaluation)


def measure_tasks(served: "ServedModel", settings: EvaluationSettings) -> None:
    """Run tasks of lm-evaluation-harness, and print their metrics."""
    if not find_spec("lm_eval"):
        raise UserError("--tasks needs lm-evaluation-harness: pip install -r requirements-optional.txt")
    from eval.harness_tasks import run_tasks, save_tasks, task_table
    from eval.tables import as_text

    served = served.in_form(settings.dtype, settings.compile, settings.batch_size == 1, tell)
    if served.trained_on == "chats" and not settings.apply_chat_template:
        tell(f"{served.path} was fine-tuned on chats; --apply_chat_template true asks it in their form")
    for note in served.notes("--apply_chat_template false") if settings.apply_chat_template else ():
        tell(f"{NOTE}{note}")
    found = run_tasks(served, settings, counting(), tell)
    if settings.out:
        save_tasks(served, settings, found)
    tell(served.speed)
    print(as_text(task_table(found), get_terminal_size().columns))


def counting() -> Callable[[str, int], None]:
    """Return what says on stderr how far a long measurement has come: that so many more are done."""
    counts, due = Counter(), time.monotonic() + 2

    def count(what: str, more: int) -> None:
        nonlocal due
        counts[what] += more
        if time.monotonic() >= due:
            due = time.monotonic() + 5
            tell(f"{counts[what]:,} {what}")

    return count


def show(found: "Evaluation") -> None:
    """Print exact match by split, kind and language, and the losses."""
    from eval.tables import as_text, mean_table, score_table

    totals = [cell for cell in found.cells if not (cell.language or cell.kind)]
    if totals:
        languages = dict.fromkeys(cell.language for cell in found.cells)
        by_language = {name or "all": [c for c in found.cells if c.language == name] for name in languages}
        print(as_text(score_table(by_language), get_terminal_size().columns))
    if found.means:
        print("\n" * bool(totals) + as_text(mean_table(found.means), get_terminal_size().columns))
    for line in remarks(found, totals):
        print(printable(line))


def remarks(found: "Evaluation", totals: Sequence["Tally"]) -> Iterator[str]:
    """Yield what a table does not say: how answers ended, what was left out, and the losses."""
    names = ("questions", "stopped", "too_long", "chosen", "unfinished")
    questions, stopped, too_long, chosen, unfinished = (sum(getattr(c, n) for c in totals) for n in names)
    rule = found.facts.settings.get("choice_by")
    if free := questions - chosen:
        yield f"answers that ended by themselves: {stopped / free:.1%} of {free:,}"
    counts = {
        f"answered by the most probable of their choices (--choice_by {rule})": chosen,
        "wrong, as they end inside their thought (--max_new_tokens allows more)": unfinished,
        "wrong, as they do not fit the model's context": too_long,
        "without a log-likelihood, as their right answer does not fit there with them": found.unscored,
    }
    yield from (f"{NOTE}questions {what}: {count:,}" for what, count in counts.items() if count)
    for store, loss in found.losses.items():
        in_bytes = f", {loss.bits_per_byte:.4f} bits/byte" if loss.bits_per_byte else ""
        yield f"{store}: {loss.nats_per_token:.4f} nats/token{in_bytes} ({loss.targets:,} targets)"


if __name__ == "__main__":
    run(main)
