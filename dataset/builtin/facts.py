"""Facts: one true thing in one language, read from the tables. Owns no wording and no randomness."""

from collections.abc import Iterator
from dataclasses import dataclass

from dataset.builtin.facts_geography import COUNTRIES
from dataset.builtin.facts_science import ELEMENTS, MONTHS, PLANETS, UNITS, WEEKDAYS

LANGUAGES = ("zh", "en")
REVERSIBLE = ("capital", "symbol", "atomic_number")
"""Relations whose answer belongs to one subject only, so that they may be asked backwards."""


@dataclass(frozen=True)
class Fact:
    """That `relation` of `subjects[0]` (and `second`) is `answers[0]`, in one language.

    Further subjects and answers are other names that a marker accepts; texts use the first.
    """

    relation: str
    language: str
    subjects: tuple[str, ...]
    answers: tuple[str, ...]
    second: str = ""
    row: int = -1
    """Row of the table, the same in both languages (-1 for a fact of a story)."""
    kind: str = "fact"
    """How it is asked in evaluation: "fact", "single_fact", "multi_step" or "refusal"."""

    def fill(self, template: str) -> str:
        """Return the template with {x} = subject, {u} = second, {y} = answer, its first letter a capital."""
        text = template.format(x=self.subjects[0], u=self.second, y=self.answers[0])
        return text[:1].upper() + text[1:]


def names(cell: str, language: str) -> tuple[str, ...]:
    """Return the accepted names of a `Chinese/English` cell in one language; none for `-`."""
    if cell == "-":
        return ()
    chinese, _, english = cell.partition("/")
    accepted = (chinese if language == "zh" else english or chinese).split("|")
    return (*accepted, *(name.removeprefix("the ") for name in accepted if name.startswith("the ")))


def all_facts(language: str, countries: int, elements: int, digits: int) -> list[Fact]:
    """Return every fact of a world with so many countries and elements and sums of numbers up to `digits`."""
    return [
        *country_facts(language, countries),
        *element_facts(language, elements),
        *planet_facts(language),
        *calendar_facts(language),
        *unit_facts(language),
        *arithmetic_facts(language, digits),
    ]


def country_facts(language: str, count: int) -> Iterator[Fact]:
    """Yield continent, capital, currency and language of the first `count` countries, where certain."""
    continent, row = "-", 0
    for line in COUNTRIES.strip().splitlines():
        if line.startswith("# "):
            continent = line.removeprefix("# ")
            continue
        country, *cells = line.split("; ")
        for relation, cell in zip(
            ("continent", "capital", "currency", "language"), (continent, *cells), strict=True
        ):
            if row < count and cell != "-":
                yield Fact(relation, language, names(country, language), names(cell, language), row=row)
        row += 1


def element_facts(language: str, count: int) -> Iterator[Fact]:
    """Yield symbol and atomic number of the first `count` elements."""
    for row, line in enumerate(ELEMENTS.strip().splitlines()[:count]):
        number, symbol, name = line.split()
        yield Fact("symbol", language, names(name, language), (symbol,), row=row)
        yield Fact("atomic_number", language, names(name, language), (number,), row=row)


def planet_facts(language: str) -> Iterator[Fact]:
    """Yield each planet's place counted from the sun."""
    for row, line in enumerate(PLANETS.strip().splitlines()):
        planet, place = (names(cell, language) for cell in line.split())
        yield Fact("planet_order", language, planet, place, row=row)


def calendar_facts(language: str) -> Iterator[Fact]:
    """Yield the days of each month but February, and what follows each month and weekday."""
    months = [line.split() for line in MONTHS.strip().splitlines()]
    for row, (month, days) in enumerate(months):
        if days != "-":
            yield Fact("month_days", language, names(month, language), (days,), row=row)
        following = months[(row + 1) % len(months)][0]
        yield Fact("next_month", language, names(month, language), names(following, language), row=row)
    weekdays = WEEKDAYS.split()
    for row, day in enumerate(weekdays):
        following = weekdays[(row + 1) % len(weekdays)]
        yield Fact("next_weekday", language, names(day, language), names(following, language), row=row)


def unit_facts(language: str) -> Iterator[Fact]:
    """Yield how many of a small unit a large one holds."""
    for row, line in enumerate(UNITS.strip().splitlines()):
        large, small, count = line.split("; ")
        second = names(small, language)[0]
        yield Fact("unit", language, names(large, language), (count,), second=second, row=row)


def arithmetic_facts(language: str, digits: int) -> Iterator[Fact]:
    """Yield sums of 1..digits and products of 2..digits."""
    for x in range(1, digits + 1):
        for u in range(1, digits + 1):
            row = x * digits + u
            yield Fact("addition", language, (str(x),), (str(x + u),), second=str(u), row=row)
            if x > 1 and u > 1:
                yield Fact("multiplication", language, (str(x),), (str(x * u),), second=str(u), row=row)
