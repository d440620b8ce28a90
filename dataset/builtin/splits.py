"""The files of the world: training texts of both languages together, and the evaluation splits.

Evaluation is drawn first and training avoids what it reserved, so that the two are disjoint by construction.
A held-out wording stands in no training text, with any subject; the events of an unseen story stand together
in no training story, in whatever words and order; a reverse item asks a fact of which no training sentence
puts the answer before the subject.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

from dataset.builtin.evaluation import Reserved, evaluation_splits
from dataset.builtin.facts import LANGUAGES
from dataset.builtin.training import drill_lists, drill_questions, pretraining_documents, sft_conversations
from dataset.builtin.world import WorldSize, half_world

EVALUATION_SPLITS = (
    "facts_unseen_wording",
    "stories_context_first",
    "stories_question_first",
    "reverse",
    "followup",
)
FILES = (
    "pretrain.jsonl",
    "pretrain_val.jsonl",
    "sft.jsonl",
    "sft_val.jsonl",
    "drill_lists.jsonl",
    "drill_questions.jsonl",
    *(f"eval/{split}.jsonl" for split in EVALUATION_SPLITS),
)
"""Every file that a world consists of."""


@dataclass(frozen=True)
class BuildWorldSettings:
    """What to build, and where to."""

    out: str
    """Folder to write; a world that stands there already is replaced."""
    seed: int = 0
    """Equal seeds give equal files, byte for byte."""
    scale: Literal["full", "smoke"] = "full"
    """How large: `full` trains a small model in minutes, `smoke` tests the pipeline in seconds."""


def build_world(seed: int, size: WorldSize) -> dict[str, list[dict]]:
    """Return the records of every file of `FILES`; equal arguments give equal records on any machine."""
    files: dict[str, list[dict]] = {name: [] for name in FILES}
    for language in LANGUAGES:
        half, reserved = half_world(language, seed, size), Reserved()
        for split, items in evaluation_splits(half, reserved).items():
            files[f"eval/{split}.jsonl"] += items
        documents = [{"text": text} for text in pretraining_documents(half, reserved)]
        files["pretrain_val.jsonl"] += documents[: size.validation]
        files["pretrain.jsonl"] += documents[size.validation :]
        training, validation = sft_conversations(half, reserved)
        files["sft.jsonl"] += [{"conversations": messages} for messages in training]
        files["sft_val.jsonl"] += [{"conversations": messages} for messages in validation]
        for name, drill in (("lists", drill_lists), ("questions", drill_questions)):
            talks = drill(half, reserved)
            files[f"drill_{name}.jsonl"] += [{"conversations": messages} for messages in talks]
    for name in FILES[:6]:
        Random(f"{seed} {name}").shuffle(files[name])
    return files
