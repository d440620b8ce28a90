"""Pages of text, tables and pictures as one HTML file and as Markdown, which show every text as it is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dataset.printing import printable
from eval.tables import Table, as_markdown, figure_columns, literal

WIDTH = 150  # characters of a table in Markdown, which are read in a terminal


class Banner(NamedTuple):
    """A warning that nobody overlooks."""

    text: str


class Listing(NamedTuple):
    """Text as it is: commands, settings, what a model was asked."""

    text: str


class Gallery(NamedTuple):
    """Pictures side by side where there is room, with their captions."""

    pictures: Sequence[tuple[Markup, str]]


class Fold(NamedTuple):
    """Parts under a title, which a reader opens where they stand within a section."""

    title: str
    parts: "Sequence[Part]"


Part = str | Table | Banner | Listing | Gallery | Fold


class Page(NamedTuple):
    """A page under a heading."""

    name: str
    heading: str
    sections: Sequence[Fold]


def page_as_html(page: Page) -> str:
    """Return the page as one HTML file without scripts, which loads nothing."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.globals["figure_columns"] = figure_columns
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)


def _shown(value: object) -> object:
    return value if isinstance(value, Markup) else printable(str(value), keep="\n\t")


def page_as_markdown(page: Page) -> str:
    """Return the page without its pictures as Markdown."""
    body = [f"# {literal(page.heading)}", literal(page.name)]
    for section in page.sections:
        body += [f"## {literal(section.title)}", *map(_markdown, section.parts)]
    return "\n\n".join(filter(None, body)) + "\n"


def _markdown(part: Part) -> str:
    match part:
        case Table():
            return as_markdown(part, WIDTH)
        case Banner():
            return f"> [!WARNING]\n> {literal(part.text)}"
        case Listing():
            text = printable(part.text, keep="\n\t")
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Fold():
            return "\n\n".join(filter(None, [f"**{literal(part.title)}**", *map(_markdown, part.parts)]))
        case Gallery():
            captions = (f"* {literal(caption)}" for _, caption in part.pictures)
            return "\n".join(["Pictures in the page as HTML:", "", *captions]) if part.pictures else ""
    return literal(part)
