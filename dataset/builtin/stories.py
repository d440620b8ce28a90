"""Stories: who went where and who holds what, and every question that a story answers or leaves open.

A story is a tuple of events. Events are drawn so that nothing must be guessed: nobody returns to a place, a
thing is taken where it lies, and given only to someone in the same place (or where both are unknown).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from dataset.builtin.facts import Fact
from dataset.builtin.wordings import join, word
from dataset.builtin.wordings_stories import PEOPLE, PLACES, REFUSAL, THINGS

WEIGHTS = {
    "where_person": 16,
    "person_in": 1,
    "who_has": 4,
    "what_has": 2,
    "first_place": 1,
    "given_to": 1,
    "where_thing": 3,
    "place_before": 1,
    "refusal": 3,
}
"""How often each question is asked where several are possible. Refusals count as one group."""

_SENTENCES = (2, 2, 2, 3, 3)
# Drops and gifts are seldom possible, so they are tried more often than they are wanted.
_ATTEMPTS = {"go": 10, "take": 8, "drop": 5, "give": 25}


@dataclass(frozen=True)
class Event:
    """`person` does `action`: go (target a place), take, drop, or give (target a thing) to `receiver`."""

    action: str
    person: str
    target: str
    receiver: str = ""

    def sentence(self, language: str, rng: Random) -> str:
        """Tell the event in one of its wordings."""
        told = Fact(self.action, language, (self.person,), (self.target,), second=self.receiver)
        return word(told, "say", rng)


Story = tuple[Event, ...]


@dataclass
class Situation:
    """What is known after the events so far."""

    visits: dict[str, list[str]] = field(default_factory=dict)
    """Places of each person who went anywhere, in order; the last is where they are."""
    holder: dict[str, str | None] = field(default_factory=dict)
    """Who holds each thing of the story; None once it was put down."""
    lies_in: dict[str, str | None] = field(default_factory=dict)
    """Where each thing that was put down lies; None if the place is not known."""

    def place_of(self, person: str) -> str | None:
        """Return where a person is, None if the story never told."""
        return self.visits.get(person, [None])[-1]

    def place_of_thing(self, thing: str) -> str | None:
        """Return where a thing is: with its holder, or where it was put down."""
        holder = self.holder.get(thing)
        return self.place_of(holder) if holder else self.lies_in.get(thing)

    def happen(self, event: Event) -> None:
        """Take one event into account."""
        if event.action == "go":
            self.visits.setdefault(event.person, []).append(event.target)
        elif event.action == "take":
            self.holder[event.target] = event.person
        elif event.action == "give":
            self.holder[event.target] = event.receiver
        else:
            self.holder[event.target] = None
            self.lies_in[event.target] = self.place_of(event.person)

    def allows(self, event: Event) -> bool:
        """Tell whether an event may come next without a contradiction or a guess."""
        here = self.place_of(event.person)
        if event.action == "go":
            return event.target not in self.visits.get(event.person, [])
        if event.action == "take" and event.target in self.holder:
            lying = self.holder[event.target] is None
            return lying and here is not None and here == self.lies_in[event.target]
        if event.action == "take":
            return True
        holds = self.holder.get(event.target) == event.person
        together = event.person != event.receiver and here == self.place_of(event.receiver)
        return holds and (event.action == "drop" or together)


def situation_after(story: Story) -> Situation:
    """Return what is known at the end of a story."""
    situation = Situation()
    for event in story:
        situation.happen(event)
    return situation


def words_of(table: dict[str, str], language: str) -> list[str]:
    """Return people, places or things as they stand in a sentence ("the kitchen", "小明")."""
    article = "the " if language == "en" and table is not PEOPLE else ""
    return [article + name for name in table[language].split()]


def draw_story(language: str, rng: Random) -> Story:
    """Draw a walk of two to four people, or as often a story of two or three events with a small cast."""
    if rng.random() < 0.5:
        return draw_walk(language, rng.randint(2, 4), rng)
    length = rng.choice(_SENTENCES)
    people = rng.sample(words_of(PEOPLE, language), rng.randint(2, 3))
    places = rng.sample(words_of(PLACES, language), rng.randint(3, 5))
    things = rng.sample(words_of(THINGS, language), rng.choice((0, 1, 1, 2)))
    situation, events = Situation(), []
    while len(events) < length:
        event = _draw_event(people, places, things, rng)
        if situation.allows(event):
            situation.happen(event)
            events.append(event)
    return tuple(events)


def draw_walk(language: str, size: int, rng: Random) -> Story:
    """Draw a story in which `size` people go somewhere, each to a place of their own."""
    people = rng.sample(words_of(PEOPLE, language), size)
    places = rng.sample(words_of(PLACES, language), size)
    return tuple(Event("go", person, place) for person, place in zip(people, places, strict=True))


def _draw_event(people: list[str], places: list[str], things: list[str], rng: Random) -> Event:
    action = rng.choices(list(_ATTEMPTS), list(_ATTEMPTS.values()))[0] if things else "go"
    receiver = rng.choice(people) if action == "give" else ""
    return Event(action, rng.choice(people), rng.choice(places if action == "go" else things), receiver)


def tell(story: Story, language: str, rng: Random) -> str:
    """Tell a story in drawn wordings."""
    return join([event.sentence(language, rng) for event in story], language)


def answered(story: Story, language: str) -> list[Fact]:
    """Return every question that the story answers with one thing."""
    now = situation_after(story)
    return [*_about_people(now, language), *_about_things(now, language), *_about_gifts(story, language)]


def _about_people(now: Situation, language: str) -> Iterator[Fact]:
    for person, visits in now.visits.items():
        yield story_fact("where_person", language, person, visits[-1])
        if [now.place_of(other) for other in now.visits].count(visits[-1]) == 1:
            yield story_fact("person_in", language, visits[-1], person)
        if len(visits) > 1:
            yield story_fact("first_place", language, person, visits[0])
            yield story_fact("place_before", language, person, visits[-2], visits[-1], "multi_step")


def _about_things(now: Situation, language: str) -> Iterator[Fact]:
    holders = list(now.holder.values())
    for thing, holder in now.holder.items():
        if holder:
            yield story_fact("who_has", language, thing, holder)
        if holder and holders.count(holder) == 1:
            yield story_fact("what_has", language, holder, thing)
        if place := now.place_of_thing(thing):
            yield story_fact("where_thing", language, thing, place, kind="multi_step")


def _about_gifts(story: Story, language: str) -> Iterator[Fact]:
    gifts = [event for event in story if event.action == "give"]
    for event in gifts:
        if [(other.person, other.target) for other in gifts].count((event.person, event.target)) == 1:
            yield story_fact("given_to", language, event.person, event.receiver, event.target)


def unanswered(story: Story, language: str, rng: Random) -> list[Fact]:
    """Return questions that the story leaves open: about its own people and things, and about strangers."""
    now = situation_after(story)
    text = {name for event in story for name in (event.person, event.target, event.receiver)}
    person, place, thing = (
        rng.choice([name for name in words_of(table, language) if name not in text])
        for table in (PEOPLE, PLACES, THINGS)
    )
    mentioned = {event.person for event in story} | {event.receiver for event in story} - {""}
    homeless = [p for p in sorted(mentioned) if now.place_of(p) is None]
    lost = [t for t in now.holder if now.place_of_thing(t) is None]
    asked = [("where_person", name) for name in (person, *homeless)]
    asked += [("where_thing", name) for name in (thing, *lost)]
    asked += [("who_has", thing), ("person_in", place)]
    return [story_fact(relation, language, x, REFUSAL[language], kind="refusal") for relation, x in asked]


def story_fact(
    relation: str, language: str, x: str, answer: str, second: str = "", kind: str = "single_fact"
) -> Fact:
    """Return a question of a story; an English answer is accepted without its article too."""
    accepted = (answer, *([answer.removeprefix("the ")] if answer.startswith("the ") else []))
    return Fact(relation, language, (x,), accepted, second=second, kind=kind)


def draw_questions(story: Story, language: str, count: int, rng: Random) -> list[Fact]:
    """Draw up to `count` different questions of a story: first the relation by `WEIGHTS`, then one of it.

    A question is often followed by another of its relation; at most one is refused.
    """
    groups = {"refusal": [rng.choice(unanswered(story, language, rng))]}
    for fact in answered(story, language):
        groups.setdefault(fact.relation, []).append(fact)
    drawn: list[Fact] = []
    while groups and len(drawn) < count:
        last = drawn[-1].relation if drawn else None
        weights = [WEIGHTS[name] * (3 if name == last else 1) for name in groups]
        relation = rng.choices(list(groups), weights)[0]
        drawn.append(groups[relation].pop(rng.randrange(len(groups[relation]))))
        groups = {name: facts for name, facts in groups.items() if facts}
    return drawn
