"""Training texts of one language: pretraining documents and SFT conversations that avoid what is reserved."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random

from dataset.builtin.conversations import (
    DESCRIBED,
    Messages,
    description,
    exchange,
    follow_up,
    interview,
    plain_question,
    portrait,
    reverse_exchange,
    roll_call,
    statements,
    story_conversation,
    story_document,
    whereabouts,
)
from dataset.builtin.evaluation import Reserved
from dataset.builtin.facts import Fact
from dataset.builtin.stories import Story
from dataset.builtin.wordings import phrase, wordings
from dataset.builtin.world import Half


def pretraining_documents(half: Half, reserved: Reserved) -> list[str]:
    """Return the documents, shuffled and without repetitions."""
    rng = half.random("pretraining")
    documents = [text for _ in range(half.size.fact_rounds) for text in fact_documents(half, rng)]
    for _ in range(half.size.story_documents):
        documents.append(story_document(reserved.new_story(half.language, rng), half.language, rng))
    talks = list(roll_calls(half, reserved, half.size.list_documents, rng))
    for _ in range(half.size.question_documents):
        talks.append(whereabouts(reserved.new_walk(half.language, rng), half.language, rng))
    documents += ["\n".join(message["content"] for message in talk) for talk in talks]
    documents = list(dict.fromkeys(documents))
    rng.shuffle(documents)
    return documents


def fact_documents(half: Half, rng: Random) -> Iterator[str]:
    """Yield one round: every fact stated among others, portrayed with its subject, and asked."""
    for facts in chunks(rng.sample(half.facts, len(half.facts)), 4):
        yield statements(facts, half.backwards, rng)
    for facts in half.by_subject():
        yield portrait(rng.sample(facts, len(facts)), rng)
    for facts in chunks(rng.sample(half.facts, len(half.facts)), 3):
        yield interview(facts, half.backwards, rng)


def chunks(facts: list[Fact], size: int) -> list[list[Fact]]:
    """Cut a list into lists of `size`, the last one shorter."""
    return [facts[start : start + size] for start in range(0, len(facts), size)]


def sft_conversations(half: Half, reserved: Reserved) -> tuple[list[Messages], list[Messages]]:
    """Return conversations to train on, with every fact's plainest question, and to validate on."""
    rng = half.random("sft")
    plain = [exchange(plain_question(fact), fact) for fact in half.facts]
    others = [
        *single_questions(half, rng),
        *follow_ups(half, reserved, rng),
        *descriptions(half, rng),
        *story_conversations(half, reserved, rng),
        *roll_calls(half, reserved, half.size.lists, rng),
    ]
    unique = {str(messages): messages for messages in plain + others}
    others = list(unique.values())[len(plain) :]
    rng.shuffle(others)
    return plain + others[half.size.validation :], others[: half.size.validation]


def drill_lists(half: Half, reserved: Reserved) -> list[Messages]:
    """Return lists of who is where, few people each: they train one thing, to look a name up."""
    rng = half.random("drill lists")
    return [roll_call(walk, half.language, True, rng) for walk in few_people(half, reserved, rng)]


def drill_questions(half: Half, reserved: Reserved) -> list[Messages]:
    """Return questions where one of few people is, and to three of them a list, lest lists be forgotten."""
    rng = half.random("drill questions")
    return [
        whereabouts(walk, half.language, rng) if number % 4 else roll_call(walk, half.language, True, rng)
        for number, walk in enumerate(few_people(half, reserved, rng))
    ]


def few_people(half: Half, reserved: Reserved, rng: Random) -> Iterator[Story]:
    """Yield as many stories of two or three people as a drill has."""
    for _ in range(half.size.drill):
        yield reserved.new_walk(half.language, rng, most=3)


def single_questions(half: Half, rng: Random) -> Iterator[Messages]:
    """Yield each fact in some of its wordings, and in reverse where it may be."""
    for fact in half.facts:
        templates = wordings(fact.relation, half.language, "ask")
        for template in rng.sample(templates, min(half.size.asks, len(templates))):
            yield exchange(phrase(fact, template, rng), fact)
        if fact in half.backwards:
            for _ in range(half.size.reverse_asks):
                yield reverse_exchange(fact, rng)


def follow_ups(half: Half, reserved: Reserved, rng: Random) -> Iterator[Messages]:
    """Yield conversations of two or three facts: of one subject, or of one relation."""
    alike, by_subject = half.alike(), half.by_subject()
    for number in range(half.size.follow_ups):
        facts = rng.choice(alike if number % 3 == 0 else by_subject)
        drawn = rng.sample(facts, min(len(facts), rng.choice((2, 2, 3))))
        if len(drawn) > 1 and reserved.pairs.isdisjoint(pairwise(drawn)):
            yield follow_up(drawn, rng)


def descriptions(half: Half, rng: Random) -> Iterator[Messages]:
    """Yield introductions of countries."""
    countries = [facts for facts in half.by_subject() if facts[0].relation in DESCRIBED]
    for _ in range(half.size.descriptions):
        yield description(rng.choice(countries), rng)


def story_conversations(half: Half, reserved: Reserved, rng: Random) -> Iterator[Messages]:
    """Yield conversations about new stories, of every three two with the question first: they are harder."""
    for number in range(half.size.stories):
        story = reserved.new_story(half.language, rng)
        yield story_conversation(story, half.language, question_first=number % 3 > 0, rng=rng)


def roll_calls(half: Half, reserved: Reserved, count: int, rng: Random) -> Iterator[Messages]:
    """Yield lists of who is where in new stories, the question after and before the story in turn."""
    for number in range(count):
        yield roll_call(reserved.new_walk(half.language, rng), half.language, number % 2 == 1, rng)
