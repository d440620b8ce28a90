"""The page for a browser, as one HTML file: for talking with served models, or of a conversation alone."""

import base64
import hashlib
import json
from pathlib import Path
from string import Template
from typing import Any

from dataset.conversation import render
from dataset.formats import format_of, parse_messages
from dataset.messages import RecordError, shown
from dataset.printing import NOTE, tell
from dataset.records import read_records
from dataset.sources import check_sources
from dataset.unread_keys import unread_keys
from eval.look import mask_view, view
from eval.plots import EXAMPLE, strategy_panels
from eval.served_model import open_model
from model.errors import UserError
from model.files import write_text
from model.strategies import STRATEGIES

FOLDER = Path(__file__).with_name("page")
SCRIPTS = ("words.js", "look.js", "chat.js")


def page(views: list[dict[str, Any]] | None = None) -> str:
    """Return the page, which loads nothing; with `views` of `eval/look.py` it shows them without a server."""
    style = _read("style.css")
    script = "\n".join(map(_read, SCRIPTS))
    allowed = ("default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}")
    policy = "; ".join((*allowed, "connect-src 'self'", "img-src data:"))
    data = json.dumps(views, ensure_ascii=False).replace("<", "\\u003c")
    return Template(_read("index.html")).substitute(policy=policy, style=style, script=script, data=data)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what lets this text run, and no other (Content Security Policy)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def save_page(path: str, model: str | None = None, data: str | None = None) -> None:
    """Write a page without a server: of an example under all masks, or of a model and a file's first chat.

    Raises `UserError` where there is no such model or chat.
    """
    write_text(Path(path), page(_example_views() if model is None else _views_of(model, data)))


def _example_views() -> list[dict[str, Any]]:
    panels, labels = strategy_panels()
    said = [("assistant" if is_answer else text.split()[0].strip("[]"), text) for is_answer, text in EXAMPLE]
    roles = [role for role, text in said for _ in text.split()]
    return [mask_view(panel.title, [panel], labels, roles) for panel in panels]


def _views_of(model: str, data: str) -> list[dict[str, Any]]:
    """Return views of a chat under each mask, that of the model's training first."""
    check_sources([data])
    record = next(read_records([data]), None)
    try:
        messages = parse_messages((record and record.value) or {})
    except RecordError as error:
        raise UserError(f"{data}: the first record is no chat ({error})") from None
    if unread := unread_keys(record.value, format_of(record.value)):
        tell(f"{NOTE}{data}: keys not read: {shown(sorted(unread))}")
    served = open_model(model)
    rendered = render(messages, served.tokenizer)
    if len(rendered) > (takes := served.model.config.max_position_embeddings):
        raise UserError(f"{data}: the first chat has {len(rendered)} tokens but {model} takes {takes}")
    masks = sorted(STRATEGIES, key=lambda mask: mask != served.prompt_mask)
    return [view(served, rendered, mask) for mask in masks]
