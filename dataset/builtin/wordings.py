"""Wordings: how facts are asked and said. Reads the tables; owns no fact.

A table holds sections `# relation language` of lines `kind text`, where {x} is the subject, {u} a second one
and {y} the answer. A question ends in `?`; the first `ask` of a section is the plainest. The kinds:

    ask      a question that training may hold       say      a statement, subject before answer
    held     a question kept for evaluation          its      the same of a subject named just before
    follow   a question about the last subject       gives    a statement, answer before subject
    reverse  a question that gives the answer and asks for the subject
"""

from random import Random

from dataset.builtin.facts import Fact
from dataset.builtin.wordings_geography import GEOGRAPHY
from dataset.builtin.wordings_measures import MEASURES
from dataset.builtin.wordings_science import SCIENCE
from dataset.builtin.wordings_stories import STORIES


def _read(tables: str) -> dict[tuple[str, str, str], list[str]]:
    texts: dict[tuple[str, str, str], list[str]] = {}
    for line in filter(None, tables.splitlines()):
        head, _, rest = line.partition(" ")
        if head == "#":
            relation, language = rest.split()
        else:
            texts.setdefault((relation, language, head), []).append(rest)
    return texts


_TEXTS = _read(GEOGRAPHY + SCIENCE + MEASURES + STORIES)


def wordings(relation: str, language: str, kind: str) -> list[str]:
    """Return the templates of one kind, plainest first; none if the relation has no such kind."""
    return _TEXTS.get((relation, language, kind), [])


def word(fact: Fact, kinds: str, rng: Random) -> str:
    """Say or ask a fact in one of its wordings, drawn over all the named kinds ("say gives")."""
    templates = [text for kind in kinds.split() for text in wordings(fact.relation, fact.language, kind)]
    return phrase(fact, rng.choice(templates), rng)


def phrase(fact: Fact, template: str, rng: Random) -> str:
    """Fill a template; Chinese questions end in `？` or `?` with equal chance, because people type both."""
    text = fact.fill(template)
    if fact.language == "zh" and text.endswith("?") and rng.random() < 0.5:
        return text[:-1] + "？"
    return text


def join(sentences: list[str], language: str) -> str:
    """Put sentences one after the other: with a space in English, without one in Chinese."""
    return ("" if language == "zh" else " ").join(sentences)
