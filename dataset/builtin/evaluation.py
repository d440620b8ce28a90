"""Evaluation splits of one language, and what training must avoid because of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, combinations, zip_longest
from random import Random

from dataset.builtin.conversations import Messages, another, exchange, story_message, user
from dataset.builtin.facts import Fact
from dataset.builtin.stories import (
    WEIGHTS,
    Event,
    Story,
    answered,
    draw_questions,
    draw_story,
    draw_walk,
    tell,
)
from dataset.builtin.wordings import phrase, word, wordings
from dataset.builtin.world import Half


@dataclass
class Reserved:
    """What evaluation uses and training must not: stories whatever their wording, and pairs of turns."""

    stories: set[Story] = field(default_factory=set)
    """Every story drawn so far, for evaluation and for training."""
    unseen: set[frozenset[Event]] = field(default_factory=set)
    """The events of evaluation's stories: no story of training holds all of one's, in any order."""
    pairs: set[tuple[Fact, Fact]] = field(default_factory=set)

    def new_story(self, language: str, rng: Random) -> Story:
        """Draw a story that was never drawn before, and reserve it."""
        return self._new(lambda: draw_story(language, rng))

    def new_walk(self, language: str, rng: Random, most: int = 5) -> Story:
        """Draw such a story in which two to `most` people go somewhere, and nothing else happens."""
        return self._new(lambda: draw_walk(language, rng.randint(2, most), rng))

    def _new(self, draw: Callable[[], Story]) -> Story:
        while (story := draw()) in self.stories or self._tells_unseen(story):
            pass
        self.stories.add(story)
        return story

    def _tells_unseen(self, story: Story) -> bool:
        parts = chain.from_iterable(combinations(story, size) for size in range(1, len(story) + 1))
        return any(frozenset(part) in self.unseen for part in parts)


def evaluation_splits(half: Half, reserved: Reserved) -> dict[str, list[dict]]:
    """Return the items of each split, and add what they use to `reserved`."""
    context_first, question_first = story_items(half, reserved)
    splits = {
        "facts_unseen_wording": unseen_wordings(half),
        "stories_context_first": context_first,
        "stories_question_first": question_first,
        "reverse": reverse_items(half),
        "followup": [*follow_up_items(half, reserved), *story_follow_ups(half, reserved)],
    }
    reserved.unseen.update(map(frozenset, reserved.stories))
    return {
        split: [
            {"id": f"{split}-{half.language}-{number:03d}", "split": split} | item
            for number, item in enumerate(items)
        ]
        for split, items in splits.items()
    }


def new_item(
    messages: Messages, fact: Fact, kind: str, answers: tuple[str, ...] = (), story: str = ""
) -> dict:
    """Return an evaluation item that still lacks its id and split.

    Its cluster names what other items ask about too: the story, or else the fact.
    """
    asked = " ".join((fact.relation, *fact.subjects[:1], fact.second)).rstrip()
    return {
        "language": fact.language,
        "kind": kind,
        "relation": fact.relation,
        "conversations": messages,
        "answers": list(answers or fact.answers),
        "cluster": f"{fact.language} {story or asked}",
    }


def in_turn(columns: list[list], count: int) -> list:
    """Take the first of each column, then the second of each, until there are `count`."""
    return [entry for row in zip_longest(*columns) for entry in row if entry][:count]


def unseen_wordings(half: Half) -> list[dict]:
    """Ask facts in held-out wordings; every relation has its share."""
    rng = half.random("unseen wordings")
    columns = []
    for relation, facts in half.by_relation().items():
        templates = wordings(relation, half.language, "held")
        columns.append([(fact, template) for fact in facts for template in templates])
        rng.shuffle(columns[-1])
    chosen = in_turn(columns, half.size.evaluation)
    return [new_item([user(phrase(fact, template, rng))], fact, "fact") for fact, template in chosen]


def reverse_items(half: Half) -> list[dict]:
    """Ask for the subjects of facts that training never turns round, in wordings that it uses for others."""
    rng = half.random("reverse")
    columns = []
    for fact in rng.sample(half.held_backwards, len(half.held_backwards)):
        templates = wordings(fact.relation, half.language, "reverse")
        columns.append([(fact, template) for template in rng.sample(templates, len(templates))])
    return [
        new_item([user(phrase(fact, template, rng))], fact, "reverse", fact.subjects)
        for fact, template in in_turn(columns, half.size.evaluation)
    ]


# Asked in turn, so that every kind is measured.
_KINDS = (*("single_fact",) * 8, "multi_step", "refusal")


def draw_question(reserved: Reserved, language: str, kind: str, rng: Random) -> tuple[Story, Fact]:
    """Draw unseen stories until one lets a question of this kind be asked."""
    while True:
        story = reserved.new_story(language, rng)
        for fact in draw_questions(story, language, len(WEIGHTS), rng):
            if fact.kind == kind:
                return story, fact


def story_items(half: Half, reserved: Reserved) -> tuple[list[dict], list[dict]]:
    """Ask the same questions about the same unseen stories twice: after the story, and before it."""
    rng = half.random("story items")
    after, before = [], []
    for number in range(half.size.evaluation):
        story, fact = draw_question(reserved, half.language, _KINDS[number % len(_KINDS)], rng)
        text, question = tell(story, half.language, rng), word(fact, "ask", rng)
        for items, question_first in ((after, False), (before, True)):
            message = story_message(text, question, question_first, rng)
            items.append(new_item([user(message)], fact, fact.kind, story=f"story {number}"))
    return after, before


def follow_up_items(half: Half, reserved: Reserved) -> list[dict]:
    """Ask a second fact in its own turn: of another relation ("its currency?") or subject ("and Spain?")."""
    rng = half.random("follow-ups")
    by_subject, alike = half.by_subject(), half.alike()
    items = []
    while len(items) < half.size.evaluation * 2 // 3:
        same_subject = len(items) % 2 == 0
        pair = tuple(rng.sample(rng.choice(by_subject if same_subject else alike), 2))
        if pair in reserved.pairs:
            continue
        reserved.pairs.add(pair)
        question = word(pair[1], "follow", rng) if same_subject else another(pair[1], rng)
        messages = [*exchange(word(pair[0], "ask", rng), pair[0]), user(question)]
        items.append(new_item(messages, pair[1], "same_subject" if same_subject else "same_relation"))
    return items


def story_follow_ups(half: Half, reserved: Reserved) -> list[dict]:
    """Ask where a second person of an unseen story is, in a turn of its own."""
    rng = half.random("story follow-ups")
    items = []
    while len(items) < half.size.evaluation // 3:
        story = reserved.new_story(half.language, rng)
        where = [fact for fact in answered(story, half.language) if fact.relation == "where_person"]
        if len(where) < 2:
            continue
        first, second = rng.sample(where, 2)
        message = story_message(tell(story, half.language, rng), word(first, "ask", rng), False, rng)
        messages = [*exchange(message, first), user(word(second, "follow", rng))]
        items.append(new_item(messages, second, "same_story", story=f"story before follow-up {len(items)}"))
    return items
