"""Tasks of lm-evaluation-harness on a model of ours: found, run, told and kept.

results = run_tasks(open_model("out/sft"), EvaluationSettings(model="out/sft", tasks=("arc_easy",)), …)
"""

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from dataset.printing import NOTE
from eval.evaluation import check_out
from eval.harness import Report, SightlineLM
from eval.served_model import ServedModel, Tell
from eval.serving_settings import EvaluationSettings
from eval.tables import Table
from model.errors import UserError
from model.files import as_json, check_free, whole_folder, write_json, write_text

RESULTS, SAMPLES = "tasks.json", "samples_{}.jsonl"
LONGEST_NAME = 200  # bytes of a task's, of which a file is named
KEPT = ("results", "n-shot", "n-samples", "versions", "higher_is_better")
REFUSED = {"UNSAFE_CODE": "runs code that the model writes", "MULTIMODAL": "asks about pictures or sounds"}
"""marks of tasks that are not for this class"""


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of files, formats, templates, Python in them, or the network
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def find_tasks(settings: EvaluationSettings, tell: Tell) -> tuple[TaskManager, list[str]]:
    """Return the tasks of the harness and the names of those that are asked for, patterns resolved.

    Raises `UserError` for names that it does not know.
    """
    asked = [name for words in settings.tasks for name in words.split(",") if name]
    if not asked:
        raise UserError("--tasks: expected names of tasks, got none")
    if (folder := settings.include_path) is not None and not Path(folder).is_dir():
        raise UserError(f"--include_path: expected a folder of task files, got {folder}")
    with _explaining("--include_path holds a task file that cannot be read"):
        own = folder and TaskManager(include_path=folder, include_defaults=False)
        if own and {*asked} <= {*own.all_subtasks}:  # a group may hold tasks that are elsewhere
            return own, asked
        tell("reading the list of tasks, which takes a while")
        known = TaskManager(include_path=folder)
    found = {name: [name] if Path(name).is_file() else known.match_tasks([name]) for name in asked}
    for name, matches in found.items():
        if not matches:
            near = get_close_matches(name, known.all_tasks, 3)
            raise UserError(
                f"--tasks: lm-evaluation-harness has no task {name}{'; near it: ' * bool(near)}"
                f"{', '.join(near)}; --include_path names a folder of your own"
            )
    return known, [*dict.fromkeys(name for matches in found.values() for name in matches)]


def load_tasks(settings: EvaluationSettings, tell: Tell) -> dict[str, Any]:
    """Return tasks with their data, as the harness takes them, with its seeds.

    Raises `UserError` for what cannot be loaded, or is not done here.
    """
    known, names = find_tasks(settings, tell)
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    with _explaining("--tasks cannot be prepared (data of the hub need a network, or a copy here)"):
        loaded = known.load(names)
    for name, task in loaded["tasks"].items():
        for mark, what in REFUSED.items():
            if getattr(task, mark, False):
                raise UserError(f"--tasks: {name} {what}, which is not done here; leave it out")
        if settings.out and ("/" in name or len(name.encode()) > LONGEST_NAME):
            raise UserError(f"--tasks: no file in --out can be named after {name}; rename it in its file")
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        examples = task.get_config("num_fewshot")
        if examples == 0 and settings.num_fewshot:
            tell(f"{NOTE}{name} stays without examples, as its file says")
        elif examples is None or settings.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
    return loaded


def run_tasks(
    served: ServedModel, settings: EvaluationSettings, report: Report, tell: Tell
) -> dict[str, Any]:
    """Return what the harness finds: `results` by task and metric, and `samples` where `out` is named."""
    if settings.out:
        check_out(settings.out, RESULTS, SAMPLES.format("*"))
        check_free(settings.out, settings.overwrite)
    loaded = load_tasks(settings, tell)
    model = SightlineLM(served, settings.batch_size, report)
    failed = _explaining("--tasks cannot be asked as their files and --num_fewshot say")
    with failed, redirect_stdout(sys.stderr):  # which gets what the harness says
        found = lm_eval.evaluate(
            lm=model,
            task_dict=loaded,
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template,
            log_samples=bool(settings.out),
        )
    if model.cut:
        what = f"requests longer than {model.max_length} tokens, which lost their beginning"
        tell(f"{NOTE}{what}: {model.cut:,}")
    return found


def save_tasks(served: ServedModel, settings: EvaluationSettings, found: dict[str, Any]) -> None:
    """Write `tasks.json`, and what was asked and answered of each task: all or none."""
    told = {name: getattr(settings, name) for name in ("num_fewshot", "limit", "apply_chat_template")}
    values = {"model": str(served.path), "prompt_mask": served.prompt_mask, "settings": told}
    values |= {name: found[name] for name in KEPT}
    with whole_folder(settings.out, settings.overwrite) as folder:
        write_json(folder / RESULTS, values | {"lm_eval": lm_eval.__version__})
        for task, samples in found["samples"].items():
            plain = json.loads(json.dumps(samples, default=handle_non_serializable))
            write_text(folder / SAMPLES.format(task), "".join(as_json(sample) + "\n" for sample in plain))


def task_table(found: dict[str, Any]) -> Table:
    """Return the metrics of all tasks and groups, each with its standard error."""
    rows = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr"):
                name = f"{values['alias']} {metric}" + ("" if kind == "none" else f" ({kind})")
                count = found["n-samples"].get(task, {}).get("effective", "")
                rows.append(
                    (name, str(count), _figure(value), _figure(values.get(f"{metric}_stderr,{kind}")))
                )
    return Table(("task and metric", "n", "value", "standard error"), tuple(rows))


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
