"""Tasks beside the world: copying and looking up, where no gap between masks is expected, and reasoning.

A causal token that comes last sees all that a bidirectional one sees. What takes one look back (a copy, a
lookup whose key stands last) is therefore a control, and a gap in it a sign of something else. With the
question first, the same texts are no control: only a mask with blocks lets the text be read for the question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from random import Random
from string import ascii_lowercase
from typing import Any, Literal

from dataset.builtin.folder import Files
from dataset.formats import QuestionPosition
from model.errors import UserError

REASONING = ("family_relationships", "syllogism", "leg_counting", "letter_counting", "spell_backward")
"""data sets of reasoning-gym whose texts are short: at most about 300 characters"""
LETTERS = "ABCD"
"""of options"""
MOST_REPETITIONS = 1000
"""texts in a row that were there already, after which there are taken to be no more"""


@dataclass(frozen=True, kw_only=True)
class BuildTaskSettings:
    """What to build, and where to."""

    out: str
    """folder to write; files of this task that stand there already are replaced"""
    task: Literal["copy", "lookup", "reasoning"]
    """copy: say a row of letters again; lookup: the numbers of letters in a list, of several in training, of
    one in questions; reasoning: questions of the package reasoning-gym"""
    question_position: QuestionPosition = "last"
    """where the question stands; reasoning takes only last, as its texts end with their questions"""
    options: Literal["none", "first", "last"] = "none"
    """a lookup asks for one of four options, too, which stand before or after list and question"""
    passages: bool = False
    """whether entries of a lookup are passages, a line each, which some prompt masks keep from each other"""
    seed: int = 0
    """equal seeds give equal files, byte for byte"""
    train: int = 20_000
    """conversations to train on"""
    validation: int = 500
    """conversations to measure the loss on"""
    questions: int = 1000
    """questions to evaluate; two ask about the same list of a lookup, and are a cluster"""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("train", "validation", "questions"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: expected at least 1, got {getattr(self, name)}")
        if self.task == "reasoning" and self.question_position == "first":
            raise UserError(
                "--question_position first: expected copy or lookup, as reasoning has no such form"
            )
        for name, value in (("options", self.options), ("passages", self.passages)):
            if self.task != "lookup" and value not in ("none", False):
                raise UserError(f"--{name} {value}: expected lookup, as {self.task} has no such form")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are written."""
        return "train.jsonl", "validation.jsonl", f"eval/{self.task}.jsonl"


@dataclass(frozen=True)
class Asked:
    """A question with its answer, and the options that it may come with."""

    question: str
    answer: str
    options: str = ""


@dataclass(frozen=True)
class Text:
    """Something to read, and what is asked about it."""

    body: str
    asked: tuple[Asked, ...]
    kind: str
    taught: Asked | None = None
    """what a training asks in place of the first"""


def build_task(settings: BuildTaskSettings) -> Files:
    """Return the records of every file; no text stands in two of them, nor twice in one."""
    texts = _different(_DRAWN[settings.task](Random(f"{settings.task} {settings.seed}")), settings)
    texts = texts if settings.options == "none" else map(with_options, texts)
    items = list(islice(_items(texts, settings), settings.questions))
    talks = [
        [_talk(text, settings) for text in islice(texts, n)] for n in (settings.train, settings.validation)
    ]
    return dict(zip(settings.files, (*talks, items), strict=True))


def draw_copies(rng: Random) -> Iterator[Text]:
    """Draw rows of 6 to 12 letters."""
    while True:
        row = " ".join(rng.choices(ascii_lowercase, k=rng.randint(6, 12)))
        yield Text(row, (Asked("Copy the letters.", row),), "copy")


def draw_lists(rng: Random) -> Iterator[Text]:
    """Draw lists of 4 to 10 letters with a number each, and ask for two of them, one by one.

    A training asks for one to four at once: of one answer a conversation, small models learn no lookup.
    """
    while True:
        keys = rng.sample(ascii_lowercase, rng.randint(4, 10))
        numbers = rng.sample(range(10, 100), len(keys))
        entries = [f"{key} {number}" for key, number in zip(keys, numbers, strict=True)]
        asked = tuple(_for([entry]) for entry in rng.sample(entries, 2))
        several = _for(rng.sample(entries, rng.randint(1, 4)))
        yield Text(", ".join(entries), asked, "lookup", several)


def _for(entries: list[str]) -> Asked:
    """Ask for entries of a list by their letters."""
    return Asked(" ".join(entry[0] for entry in entries) + "?", ", ".join(entries))


def with_options(text: Text) -> Text:
    """Ask which of four options, "37 A, 12 B, 85 C, 40 D", is the number of a letter, and for both before it.

    An answer of one letter alone is learnt from no drill; said after its entry, it is one more lookup.
    """
    rng, numbers = Random(text.body), text.body.replace(",", "").split()[1::2]
    asked = []
    for each in text.asked:
        number = each.answer[2:]
        options = [number, *rng.sample([n for n in numbers if n != number], 3)]
        rng.shuffle(options)
        listed = ", ".join(map(" ".join, zip(options, LETTERS, strict=True)))
        asked.append(Asked(each.question, f"{each.answer} {LETTERS[options.index(number)]}", listed))
    return replace(text, asked=tuple(asked), taught=None)


def draw_reasoning(rng: Random) -> Iterator[Text]:
    """Draw questions of each data set in turn; raises `UserError` without the package."""
    sources = [_reasoning_source(name, rng.getrandbits(31)) for name in REASONING]
    for n in count():
        for name, source in zip(REASONING, sources, strict=True):
            entry = source[n]
            yield Text(entry["question"].strip(), (Asked("", entry["answer"]),), name)


def _reasoning_source(name: str, seed: int) -> Any:
    try:
        from reasoning_gym import create_dataset
    except ImportError:
        advice = "pip install -r requirements-optional.txt"
        raise UserError(f"--task reasoning needs the package reasoning-gym; {advice}") from None
    return create_dataset(name, seed=seed, size=2**31)


_DRAWN: dict[str, Callable[[Random], Iterator[Text]]] = {
    "copy": draw_copies,
    "lookup": draw_lists,
    "reasoning": draw_reasoning,
}


def _different(texts: Iterator[Text], settings: BuildTaskSettings) -> Iterator[Text]:
    """Yield the texts that did not come before; raises `UserError` where there are no more."""
    seen, repeated = set(), 0
    for text in texts:
        repeated = repeated + 1 if text.body in seen else 0
        if repeated > MOST_REPETITIONS:
            raise UserError(f"{settings.task} has about {len(seen):,} different texts; ask for fewer")
        if not repeated:
            seen.add(text.body)
            yield text


def _prompt(text: Text, asked: Asked, settings: BuildTaskSettings) -> dict:
    parts = (
        (text.body, asked.question) if settings.question_position == "last" else (asked.question, text.body)
    )
    parts = (asked.options, *parts) if settings.options == "first" else (*parts, asked.options)
    parts = [part for part in parts if part]
    content = "\n".join(parts)
    if settings.passages:
        content = [
            each for part in parts for each in _content_parts(part, part == text.body, part == parts[-1])
        ]
    return {"role": "user", "content": content}


def _content_parts(text: str, is_list: bool, is_last: bool) -> Iterator[dict]:
    """Yield what a message says in parts: each entry of a list is a passage, which ends with its line."""
    if not is_list:
        yield {"type": "text", "text": text if is_last else f"{text}\n"}
    for entry in text.split(", ") if is_list else ():
        yield {"type": "passage", "text": f"{entry}\n"}


def _talk(text: Text, settings: BuildTaskSettings) -> dict:
    asked = text.taught or text.asked[0]
    reply = {"role": "assistant", "content": asked.answer}
    return {"conversations": [_prompt(text, asked, settings), reply]}


def _items(texts: Iterator[Text], settings: BuildTaskSettings) -> Iterator[dict]:
    for number, text in enumerate(texts):
        for asked in text.asked:
            yield {
                "split": settings.task,
                "language": "en",
                "kind": text.kind,
                "conversations": [_prompt(text, asked, settings)],
                "answers": [asked.answer],
                "cluster": f"{settings.task} {number}",
            }
