"""What a tokenizer from elsewhere brings: its kind, named tokens, chat template, and rules that may fail."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers

from model.errors import UserError

NAMED_FILES = ("tokenizer_config.json", "special_tokens_map.json")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
TRIED_OUT = " ".join(character * 40 + "!" for character in "a1 中é-\n")  # what costs regexes their patience
TO_KEEP = "Ab  c!\n\n\td-1 2é中。"  # what some rules drop: capitals, spaces, line ends, accents


def kind_of(backend: tokenizers.Tokenizer) -> str:
    """Return the name of a kind of tokenizer that is not ours, as its users know it."""
    kind, rules = type(backend.model).__name__, (backend.pre_tokenizer, backend.decoder)
    if kind == "BPE":
        spaces = pre_tokenizers.Metaspace, decoders.Metaspace
        is_sentence_piece = backend.model.byte_fallback or any(isinstance(each, spaces) for each in rules)
        return "SentencePiece BPE (Llama 2, Mistral)" if is_sentence_piece else "BPE of characters"
    return {"Unigram": "SentencePiece Unigram (T5, XLM-R)", "WordPiece": "WordPiece (BERT)"}.get(kind, kind)


@contextmanager
def explaining_panics() -> Iterator[None]:
    """Turn a panic of the library, which is no `Exception`, into a `UserError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the rules of the tokenizer fail ({error}); use another tokenizer") from None


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Do the same where a panic is likely; what the library prints of it is lost."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with explaining_panics():
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def try_out(content: tokenizers.Tokenizer, lacking: Collection[int]) -> None:
    """Raise `UserError` where rules that are not ours fail on long words, or lose a part of a text.

    `lacking` are bytes without a token, whose loss is told of the texts that have them.
    """
    text = "".join(character for character in TO_KEEP if not {*character.encode()} & {*lacking})
    with quiet_panics():
        content.encode(TRIED_OUT, add_special_tokens=False)
        ids = content.encode(text, add_special_tokens=False).ids
        kept = content.decode(ids, skip_special_tokens=False)
    if kept not in (text, f" {text}"):
        raise UserError(
            f"the rules of the tokenizer lose parts of texts ({text!r} becomes {kept!r}); use another"
        )


def brought_template(files: Mapping[str, bytes]) -> str:
    """Return the chat template that the files of a tokenizer hold, "" where they hold none."""
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode(errors="replace")
    else:
        template = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    if isinstance(template, list):  # several, each with a name
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def named_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the texts of the tokens that have a name; what `tokenizer_config.json` says counts."""
    values: dict[str, Any] = {}
    for name in reversed(NAMED_FILES):
        values |= json.loads(files.get(name, b"{}"))
    texts = {name: values.get(name) for name in NAMED_TOKENS}
    texts = {name: text.get("content") if isinstance(text, dict) else text for name, text in texts.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
