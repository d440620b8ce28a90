"""Conversations and pretraining documents: the forms that facts and stories take, not how many of each."""

from itertools import pairwise
from random import Random

from dataset.builtin.facts import Fact
from dataset.builtin.stories import Story, answered, draw_questions, story_fact, tell
from dataset.builtin.wordings import join, phrase, word, wordings

Messages = list[dict[str, str]]

DESCRIBED = ("continent", "capital", "language", "currency")
"""What an answer to "tell me about France" says, in this order."""


def user(content: str) -> dict[str, str]:
    """Return a message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Return a message of the assistant."""
    return {"role": "assistant", "content": content}


def exchange(question: str, fact: Fact) -> Messages:
    """Return a question and its bare short answer."""
    return [user(question), assistant(fact.answers[0])]


def reverse_exchange(fact: Fact, rng: Random) -> Messages:
    """Ask for the subject of a fact, naming its answer."""
    return [user(word(fact, "reverse", rng)), assistant(fact.subjects[0])]


def plain_question(fact: Fact) -> str:
    """Ask a fact in its plainest wording, with the ASCII question mark in both languages."""
    return fact.fill(wordings(fact.relation, fact.language, "ask")[0])


def follow_up(facts: list[Fact], rng: Random) -> Messages:
    """Ask facts in turns: another relation ("its capital?") or another subject ("and Spain?")."""
    messages = exchange(word(facts[0], "ask", rng), facts[0])
    for before, fact in pairwise(facts):
        question = another(fact, rng) if fact.relation == before.relation else word(fact, "follow", rng)
        messages += exchange(question, fact)
    return messages


def another(fact: Fact, rng: Random) -> str:
    """Ask what was just asked about another subject."""
    templates = {"zh": ("那{x}呢?", "{x}呢?"), "en": ("What about {x}?", "And {x}?")}
    return phrase(fact, rng.choice(templates[fact.language]), rng)


def description(facts: list[Fact], rng: Random) -> Messages:
    """Ask for an introduction of a country and give its facts in whole sentences."""
    by_relation = {fact.relation: fact for fact in facts}
    told = [by_relation[relation] for relation in DESCRIBED if relation in by_relation]
    first, language = told[0], told[0].language
    question = first.fill(rng.choice(wordings("country", language, "ask")))
    sentences = [first.fill(wordings(first.relation, language, "say")[0])]
    sentences += [fact.fill(wordings(fact.relation, language, "its")[0]) for fact in told[1:]]
    return [user(question), assistant(join(sentences, language))]


def story_message(text: str, question: str, question_first: bool, rng: Random) -> str:
    """Put a question before or after a story: on a line of its own, or on the same line."""
    first, last = (question, text) if question_first else (text, question)
    space = "" if first.endswith(("？", "。")) else " "
    return first + rng.choice(("\n", space)) + last


def story_conversation(story: Story, language: str, question_first: bool, rng: Random) -> Messages:
    """Tell a story and ask one to four questions about it, each in a turn of its own.

    Of people who only go somewhere as many questions as they go; else fewer of a long story.
    """
    only_goes = all(event.action == "go" for event in story)
    most = len(story) if only_goes else 6 - len(story)
    facts = draw_questions(story, language, rng.randint(1, most), rng)
    first = word(facts[0], "ask", rng)
    messages = exchange(story_message(tell(story, language, rng), first, question_first, rng), facts[0])
    for before, fact in pairwise(facts):
        same = fact.relation == before.relation == "where_person"
        messages += exchange(word(fact, "follow" if same else "ask", rng), fact)
    return messages


def roll_call(walk: Story, language: str, question_first: bool, rng: Random) -> Messages:
    """Tell who went where and ask for a list of it: each place stands right behind its person."""
    order = rng.sample(walk, len(walk))
    comma, stop, question = {"zh": ("、", "。", "谁在哪里?"), "en": (", ", ".", "Who is where? ")}[language]
    space = " " if language == "en" else ""
    asked = question + comma.join(event.person for event in order) + stop
    told = comma.join(event.person + space + event.target.removeprefix("the ") for event in order)
    return [user(story_message(tell(walk, language, rng), asked, question_first, rng)), assistant(told)]


def whereabouts(walk: Story, language: str, rng: Random) -> Messages:
    """Ask where somebody is, and only then tell who went where."""
    event = rng.choice(walk)
    fact = story_fact("where_person", language, event.person, event.target)
    text = tell(walk, language, rng)
    return exchange(story_message(text, word(fact, "ask", rng), question_first=True, rng=rng), fact)


def statements(facts: list[Fact], backwards: frozenset[Fact], rng: Random) -> str:
    """State facts one after the other; only those in `backwards` may put the answer before the subject."""
    kinds = {fact: "say gives" if fact in backwards else "say" for fact in facts}
    return join([word(fact, kinds[fact], rng) for fact in facts], facts[0].language)


def portrait(facts: list[Fact], rng: Random) -> str:
    """State facts of one subject, named once and then spoken of as "it"."""
    sentences = [word(facts[0], "say", rng), *(word(fact, "its", rng) for fact in facts[1:])]
    return join(sentences, facts[0].language)


def interview(facts: list[Fact], backwards: frozenset[Fact], rng: Random) -> str:
    """Ask and answer facts line by line; those in `backwards` now and then the other way round."""
    lines = []
    for fact in facts:
        if fact in backwards and rng.random() < 0.3:
            lines += [word(fact, "reverse", rng), fact.subjects[0]]
        else:
            lines += [word(fact, "ask", rng), fact.answers[0]]
    return "\n".join(lines)


def story_document(story: Story, language: str, rng: Random) -> str:
    """Tell a story, with what follows from it at its end, or with questions and answers around it."""
    text = tell(story, language, rng)
    form = rng.choice(("restated", "asked", "asked", "asked_first"))
    if form == "restated":
        facts = answered(story, language)
        rng.shuffle(facts)
        return join([text, *(word(fact, "say", rng) for fact in facts[:4])], language)
    facts = draw_questions(story, language, 4, rng)
    lines = [line for fact in facts for line in (word(fact, "ask", rng), fact.answers[0])]
    return "\n".join([lines[0], text, *lines[1:]] if form == "asked_first" else [text, *lines])
