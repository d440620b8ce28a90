"""One model against question files and token stores: what was found, kept, and not computed twice."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from dataset.sources import check_sources, describe_source
from dataset.token_store import TokenStore, read_manifest
from dataset.whole_folder import check_place, whole_folder
from eval.answers import Cell, Prediction, answer_questions, load_questions, tabulate
from eval.chat import TextSampling
from eval.likelihood import store_likelihood
from eval.served_model import ServedModel
from eval.settings import EvaluationSettings
from model.errors import UserError
from model.json_file import read_object
from trainer.validation import Likelihood

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    fingerprint: str
    """of model, data and settings; with an equal one nothing needs to be computed again"""
    prompt_mask: str
    cells: tuple[Cell, ...]
    losses: dict[str, Likelihood]
    """by token store"""


def evaluate(
    served: ServedModel,
    settings: EvaluationSettings,
    report: Callable[[str, int], None] = lambda what, count: None,
) -> tuple[Evaluation, list[Prediction]]:
    """Answer the questions and measure the stores; `report` gets what was done, and how many of it.

    Raises `UserError` for unusable questions or stores before anything is computed.
    """
    stores = {path: TokenStore(path, served.tokenizer) for path in settings.loss_data}
    questions = [q for path in settings.data for q in load_questions(path, settings.question_position)]
    sampling = TextSampling(settings.max_new_tokens, stop_strings=settings.stop_strings)
    answered = partial(report, f"of {len(questions)} questions answered")
    predictions = answer_questions(served, questions, sampling, settings.batch_size, answered)
    length = min(settings.max_seq_len, served.model.config.max_position_embeddings)
    losses = {
        path: store_likelihood(
            served, store, length, settings.batch_size, partial(report, f"targets of {path}")
        )
        for path, store in stores.items()
    }
    cells = tuple(tabulate(predictions))
    return Evaluation(fingerprint(served, settings), served.prompt_mask, cells, losses), predictions


def fingerprint(served: ServedModel, settings: EvaluationSettings) -> str:
    """Return a hash of everything that decides the result: weights, tokenizer, mask, data and settings."""
    check_sources(settings.data)
    facts = {
        "model": [describe_source(str(file))["sha256"] for file in _model_files(served.path)],
        "data": [describe_source(path)["sha256"] for path in settings.data],
        "loss_data": [read_manifest(path)["files"] for path in settings.loss_data],
        "settings": asdict(replace(settings, model="", out=None, prompt_mask=served.prompt_mask)),
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _model_files(folder: Path) -> list[Path]:
    names = ("config.json", "generation_config.json", "tokenizer.json")
    present = (folder / name for name in names if (folder / name).is_file())
    return [*sorted(folder.glob("model*.safetensors")), *present]


def check_out(folder: str | Path) -> None:
    """Raise `UserError` when a folder holds anything but an evaluation, which would be replaced."""
    folder = Path(folder)
    check_place(folder)
    others = {file.name for file in folder.iterdir()} - {RESULTS, PREDICTIONS} if folder.exists() else set()
    if others:
        raise UserError(f"--out {folder} holds something else ({min(others)}); choose a new folder")


def save(folder: str | Path, evaluation: Evaluation, predictions: Sequence[Prediction]) -> None:
    """Write `results.json` and `predictions.jsonl` into a folder, both or neither."""
    check_out(folder)
    with whole_folder(folder, overwrite=True) as written:
        lines = (json.dumps(prediction.record(), ensure_ascii=False) + "\n" for prediction in predictions)
        (written / PREDICTIONS).write_text("".join(lines), encoding="utf-8")
        text = json.dumps(asdict(evaluation), indent=2, ensure_ascii=False) + "\n"
        (written / RESULTS).write_text(text, encoding="utf-8")


def find(served: ServedModel, settings: EvaluationSettings) -> Evaluation | None:
    """Return the evaluation in `out` if it is the requested one; raise `UserError` for a folder in use."""
    if settings.out is None:
        return None
    check_out(settings.out)
    if not (Path(settings.out) / RESULTS).is_file():
        return None
    found = load(settings.out)
    return found if found.fingerprint == fingerprint(served, settings) else None


def load(folder: str | Path) -> Evaluation:
    """Read what `save` wrote; `UserError` where there is nothing of the kind."""
    file = Path(folder) / RESULTS
    if not file.is_file():
        raise UserError(f"no evaluation in {folder}; python -m scripts.evaluate --out {folder} … makes one")
    values = read_object(file, "delete it and evaluate again")
    try:
        values["cells"] = tuple(Cell(**cell) for cell in values["cells"])
        values["losses"] = {store: Likelihood(**loss) for store, loss in values["losses"].items()}
        return Evaluation(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it and evaluate again") from None


def load_predictions(folder: str | Path) -> list[Prediction]:
    """Read the predictions that `save` wrote, in the order of the question files."""
    file = Path(folder) / PREDICTIONS
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 too
        return [Prediction.from_record(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); delete {folder} and evaluate again") from None
