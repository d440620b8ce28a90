"""What an evaluation, and all that answers with a model, can be told; imports no torch."""

from dataclasses import dataclass, fields
from typing import Literal

from dataset.batch_settings import Supervise
from dataset.formats import QuestionPosition, read_columns
from model.config import DeviceName, Weights
from model.errors import UserError
from model.sampling_settings import Sampling
from model.strategies import PromptMask

ChoiceBy = Literal["sum", "character", "token"]
Answers = Literal["generate", "none"]
MOST_GUESSES = 32
"""tokens that are guessed at a time: caches that roll can take back twice as many"""
QUESTION_KEYS = ("choices", "id", "split", "language", "kind", "cluster")
"""our names for keys of questions, beside those of chats"""
OF_TASKS = ("include_path", "num_fewshot", "limit", "apply_chat_template")
"""settings that mean something to --tasks alone, and below to all else alone"""
OF_QUESTIONS = (
    *("data", "loss_data", "supervise", "question_position", "columns", "max_reject_fraction"),
    *("max_questions", "answers", "choice_by", "max_new_tokens", "stop_strings", "max_seq_len"),
)


@dataclass(frozen=True, kw_only=True)
class ComputingSettings:
    """How answers are computed."""

    device: DeviceName = "auto"
    """where it is computed; auto: on the accelerator where there is one, else on the CPU"""
    dtype: Weights = "float32"
    """form of the weights while answering: narrow ones are read faster and change answers a little"""
    compile: bool = False
    """compile the decoding first, a minute or two for a new shape, and keep that if it is measured faster"""


@dataclass(frozen=True, kw_only=True)
class ServingSettings(ComputingSettings):
    """Which model answers, and how it is computed."""

    model: str
    """model directory"""
    prompt_mask: PromptMask | None = None
    """attention pattern over the prompt; by default the one that the model was trained with"""
    allow_mask_mismatch: bool = False
    """run the model with a --prompt_mask that it was not trained with"""


@dataclass(frozen=True)
class TextSampling(Sampling):
    """How the tokens of an answer are chosen, and which texts end it."""

    stop_strings: tuple[str, ...] = ()
    """texts that end an answer and are not shown"""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        if not all(self.stop_strings):
            raise UserError("a stop string is empty; expected at least one character")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ServingSettings):
    """Which model is measured on what, and how."""

    data: tuple[str, ...] = ()
    """.jsonl files of questions: chats with accepted answers, reading comprehension, multiple choice"""
    loss_data: tuple[str, ...] = ()
    """token stores whose validation loss is measured"""
    tasks: tuple[str, ...] = ()
    """tasks and groups of lm-evaluation-harness, by name or pattern, or files of them (programs: take those
    of people you trust); without questions or stores of ours beside them"""
    include_path: str | None = None
    """folder of task files of your own, which are programs as well"""
    num_fewshot: int | None = None
    """examples before each question of --tasks; by default what the task says"""
    limit: int | None = None
    """most questions of each task, its first ones; by default all"""
    apply_chat_template: bool = False
    """ask --tasks in the form of the model's chats, examples as turns; by default as plain text"""
    supervise: Supervise | None = None
    """targets of --loss_data; name them where masks are compared that by default have different ones"""
    out: str | None = None
    """folder for results.json, predictions.jsonl and items.json, or for tasks.json and samples; an evaluation
    that lies there already is not repeated, but for one of --tasks"""
    overwrite: bool = False
    """replace an evaluation in --out that was made of other data, or with other settings"""
    question_position: QuestionPosition = "last"
    """where the question stands in records of context, question and answers"""
    columns: tuple[str, ...] = ()
    """keys of the records by our names: question=prompt answer=reply choices=options"""
    max_reject_fraction: float = 0.01
    """share of a question file's records that may be broken; above 0, one of under 100 records may be"""
    max_questions: int | None = None
    """most questions of each file, spread over its splits, kinds and languages; by default all"""
    answers: Answers = "generate"
    """none: no text is generated, and only the log-probability of right answers found, which is faster"""
    choice_by: ChoiceBy = "sum"
    """multiple choice takes the highest log-probability (acc of lm-evaluation-harness), or the highest mean
    per character (its acc_norm) or per token"""
    max_new_tokens: int = 64
    """most tokens of an answer"""
    stop_strings: tuple[str, ...] = ()
    """texts that end an answer and do not belong to it"""
    max_seq_len: int = 512
    """tokens of a row when the loss is measured; no more than the model takes"""
    batch_size: int = 64
    """questions, or rows, computed at a time"""
    prompt_lookup: int = 0
    """answer questions one by one, and check so many tokens a call that are guessed from the prompt"""

    def __post_init__(self) -> None:
        """Refuse what makes no evaluation."""
        if not (self.data or self.loss_data or self.tasks):
            raise UserError("nothing to measure: give --data (questions), --loss_data (stores) or --tasks")
        idle, why = (OF_QUESTIONS, "with --tasks") if self.tasks else (OF_TASKS, "without --tasks")
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if changed := [f"--{name}" for name in idle if name in given]:
            raise UserError(f"{', '.join(changed)}: nothing is changed by it {why}; leave it out")
        if self.supervise and not self.loss_data:
            raise UserError("--supervise changes nothing without --loss_data; leave it out")
        if self.overwrite and self.out is None:
            raise UserError("--overwrite changes nothing without --out; leave it out")
        if self.compile and not self.tasks and (not self.data or self.answers == "none"):
            raise UserError("--compile changes nothing where no answer is generated; leave it out")
        if not self.data and (self.max_questions is not None or self.answers == "none" or self.columns):
            raise UserError("--max_questions, --answers and --columns change nothing without --data")
        read_columns(self.columns, QUESTION_KEYS)
        if not 0 <= self.max_reject_fraction <= 1:
            wanted = "--max_reject_fraction: expected a share between 0 and 1"
            raise UserError(f"{wanted}, got {self.max_reject_fraction}")
        if not 0 <= self.prompt_lookup <= MOST_GUESSES:
            raise UserError(f"--prompt_lookup: expected 0 to {MOST_GUESSES}, got {self.prompt_lookup}")
        if self.prompt_lookup and (not self.data or self.answers == "none"):
            raise UserError("--prompt_lookup changes nothing where no answer is generated; leave it out")
        least = {"max_new_tokens": 1, "batch_size": 1, "max_questions": 1, "limit": 1, "num_fewshot": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"--{name}: expected at least {lowest}, got {value}")
