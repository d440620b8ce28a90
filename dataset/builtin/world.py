"""The size of the world, and the half of it that one language tells."""

from dataclasses import dataclass
from random import Random

from dataset.builtin.facts import REVERSIBLE, Fact, all_facts
from dataset.builtin.wordings import wordings


@dataclass(frozen=True)
class WorldSize:
    """How much of everything, per language."""

    countries: int = 64
    """Countries, of four facts or fewer."""
    elements: int = 40
    """Chemical elements, of two facts."""
    digits: int = 6
    """Largest number that is added or multiplied."""
    fact_rounds: int = 14
    """Times that pretraining states, portrays and asks every fact."""
    story_documents: int = 1500
    """Stories in pretraining."""
    list_documents: int = 1500
    """Lists of who is where in pretraining."""
    question_documents: int = 1000
    """Stories in pretraining that begin with the question where somebody is, and end with the answer."""
    asks: int = 6
    """Single-turn SFT questions for each fact, besides the plainest one."""
    reverse_asks: int = 3
    """Reverse SFT questions for each fact that may be asked backwards."""
    follow_ups: int = 900
    """SFT conversations of two or three fact questions."""
    descriptions: int = 100
    """SFT conversations that introduce a country."""
    stories: int = 4000
    """SFT conversations about a story, two in three with the question first."""
    lists: int = 1000
    """SFT conversations that ask for a list of who is where."""
    drill: int = 4500
    """Conversations of each of the two drills."""
    validation: int = 100
    """Documents held back from pretraining, and conversations held back from SFT, to watch their loss."""
    evaluation: int = 500
    """Most items of each evaluation split."""


SCALES = {
    "full": WorldSize(),
    "smoke": WorldSize(
        countries=12,
        elements=8,
        digits=3,
        fact_rounds=3,
        story_documents=150,
        list_documents=50,
        question_documents=50,
        asks=2,
        reverse_asks=2,
        follow_ups=50,
        descriptions=12,
        stories=150,
        lists=20,
        drill=100,
        validation=20,
        evaluation=12,
    ),
}

_HELD_BACKWARDS = 0.4  # share of the reversible facts that training never tells or asks backwards


@dataclass(frozen=True)
class Half:
    """Everything true in one language, and which of it may be turned round."""

    language: str
    seed: int
    size: WorldSize
    facts: tuple[Fact, ...]
    held_backwards: tuple[Fact, ...]
    """Reversible facts of which no training text puts the answer before the subject."""
    backwards: frozenset[Fact]
    """The other reversible facts, which training tells and asks both ways."""

    def random(self, part: str) -> Random:
        """Return the random stream of one part: a string seeds it, so it is the same on any machine."""
        return Random(f"{self.seed} {self.language} {part}")

    def by_relation(self) -> dict[str, list[Fact]]:
        """Return the facts of each relation."""
        groups: dict[str, list[Fact]] = {}
        for fact in self.facts:
            groups.setdefault(fact.relation, []).append(fact)
        return groups

    def alike(self) -> list[list[Fact]]:
        """Return the facts of each relation of countries and elements: what "and Spain?" may ask."""
        groups = self.by_relation().values()
        return [facts for facts in groups if wordings(facts[0].relation, self.language, "its")]

    def by_subject(self) -> list[list[Fact]]:
        """Return the facts of each country and element: what can be spoken of as "it"."""
        groups: dict[str, list[Fact]] = {}
        for fact in self.facts:
            if wordings(fact.relation, fact.language, "its"):
                groups.setdefault(fact.subjects[0], []).append(fact)
        return list(groups.values())


def half_world(language: str, seed: int, size: WorldSize) -> Half:
    """Return one language's half; both halves hold the same facts back from turning round."""
    facts = tuple(all_facts(language, size.countries, size.elements, size.digits))
    rng = Random(f"{seed} backwards")
    held = tuple(fact for fact in facts if fact.relation in REVERSIBLE and rng.random() < _HELD_BACKWARDS)
    backwards = frozenset(fact for fact in facts if fact.relation in REVERSIBLE and fact not in held)
    return Half(language, seed, size, facts, held, backwards)
