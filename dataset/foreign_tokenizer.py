"""What a tokenizer from elsewhere brings: its kind, named tokens, chat template, and rules that may fail."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders

from model.errors import UserError

NAMED_FILES = ("tokenizer_config.json", "special_tokens_map.json")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
TRIED_OUT = " ".join(character * 40 + "!" for character in "a1 中é-\n")  # what costs regexes their patience
TO_KEEP = "Ab  c!\n\n\td-1 2é中。２ﬁ\u00a0x "  # what some rules drop: capitals, spaces, accents, widths
KEEPING, SPACE = ("Sequence", "NFC", "Prepend", "Replace", "ByteLevel"), {"String": " "}
"""normalizers after which a text is what it was, where they replace spaces alone"""
BYTE_PIECES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
_OF_PIECES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
DECODINGS = {
    decoders.Sequence(_OF_PIECES).__getstate__(): "pieces",
    decoders.Sequence([*_OF_PIECES, decoders.Strip(" ", 1, 0)]).__getstate__(): "trimmed pieces",
}
KINDS = {"BPE": "BPE of characters", "WordPiece": "WordPiece (BERT)"}
KINDS |= {"Unigram": "SentencePiece Unigram (T5, XLM-R)"}


def decoding_of(backend: tokenizers.Tokenizer) -> str:
    """Say how ids become bytes: byte-level, or as pieces of SentencePiece, where each byte has one.

    Of trimmed pieces, the space before a text is left out. Raises `UserError` for other kinds.
    """
    decoder, kind, found = backend.decoder, type(backend.model).__name__, None
    if kind == "BPE" and isinstance(decoder, decoders.ByteLevel):
        found = "byte-level"
    elif kind == "BPE" and decoder and None not in map(backend.token_to_id, BYTE_PIECES):
        found = backend.model.byte_fallback and DECODINGS.get(decoder.__getstate__())
    if not found:
        raise UserError(f"expected BPE, byte-level or with byte fallback, got {KINDS.get(kind, kind)}")
    return found


def without_code(name: str, content: bytes) -> bytes:
    """Return a file without the name of a class of its author's, which transformers would fetch and run."""
    if name not in NAMED_FILES or "auto_map" not in (values := json.loads(content)):
        return content
    del values["auto_map"]
    return json.dumps(values | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2).encode()


def is_blank(token: str) -> bool:
    """Say whether an added token is a run of spaces or line ends: text that anybody writes."""
    return not token.strip(" ▁\n\t\r")


def marks_of(backend: tokenizers.Tokenizer) -> dict[int, AddedToken]:
    """Return the added tokens that are no text; runs of spaces are some, and pieces that stand for bytes."""
    pieces = BYTE_PIECES if backend.model.byte_fallback else ()
    added = backend.get_added_tokens_decoder().items()
    return {i: token for i, token in added if not (is_blank(token.content) or token.content in pieces)}


def copy_of(backend: tokenizers.Tokenizer, added: list[AddedToken]) -> tokenizers.Tokenizer:
    """Return a tokenizer with the same model and rules, and these added tokens; it takes no time."""
    copy = tokenizers.Tokenizer(backend.model)
    for rule in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(copy, rule, getattr(backend, rule))
    copy.add_tokens(added)
    return copy


def encode_after(backend: tokenizers.Tokenizer, before: str, text: str) -> list[int]:
    """Return the ids of a text where it stands after another."""
    with explaining_panics():
        skipped = len(backend.encode(before, add_special_tokens=False).ids) if before else 0
        return backend.encode(before + text, add_special_tokens=False).ids[skipped:]


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
        fault = f"the rules of the tokenizer lose parts of texts ({text!r} becomes {kept!r})"
        raise UserError(f"{fault}; use another")
    changing = [rule for rule in _rules(content.normalizer) if rule.get("pattern", SPACE) != SPACE]
    changing += [rule for rule in _rules(content.normalizer) if rule["type"] not in KEEPING]
    changing += [rule for rule in _rules(content.pre_tokenizer) if rule.get("behavior") == "Removed"]
    if changing:
        raise UserError(f"the rules of the tokenizer change texts ({changing[0]}); use another")


def _rules(rule: Any) -> Iterator[dict[str, Any]]:
    """Yield a rule of the library, or each of several, as its file has them."""
    if not isinstance(rule, dict):
        rule = json.loads(rule.__getstate__()) if rule else {"type": "Sequence"}
    yield rule
    for each in rule.get("normalizers", rule.get("pretokenizers", ())):
        yield from _rules(each)


def brought_template(files: Mapping[str, bytes]) -> str:
    """Return the chat template that the files of a tokenizer hold, "" where they hold none."""
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode(errors="replace")
    else:
        template = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    if isinstance(template, list):  # several, each with a name
        named = (each for each in template if isinstance(each, dict) and each.get("name") == "default")
        template = next(named, {}).get("template")
    return template if isinstance(template, str) else ""


def named_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the texts of the tokens that have a name; what `tokenizer_config.json` says counts."""
    values: dict[str, Any] = {}
    for name in reversed(NAMED_FILES):
        values |= json.loads(files.get(name, b"{}"))
    texts = {name: values.get(name) for name in NAMED_TOKENS}
    texts = {name: text.get("content") if isinstance(text, dict) else text for name, text in texts.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
