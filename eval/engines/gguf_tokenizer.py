"""A tokenizer in a GGUF file: the vocabulary as llama.cpp reads it, and our own files beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf

from dataset.tokenizer import TEMPLATE_FILES, Tokenizer
from model.errors import UserError
from model.files import text_in

OURS = "sightline.tokenizer"
"""key of our own files, as JSON"""
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = {
    ("ByteLevel True",): "gpt-2",
    (r"Split \p{Han}", "ByteLevel True"): "gpt-2",  # no merge of ours reaches over what is isolated
    ("Digits True", "ByteLevel True"): "smollm",
    (f"Split {_QWEN}", "ByteLevel False"): "qwen2",
    (f"Split {_QWEN}".replace(r"|\p{N}|", r"|\p{N}{1,3}|"), "ByteLevel False"): "llama-bpe",
}
"""the ways to cut words that llama.cpp has a name for, as steps of our library"""


def write_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, stop_ids: Sequence[int], vocab_size: int
) -> None:
    """Write vocabulary, marks and chat template; `UserError` for a tokenizer that has no name there."""
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        files = {file.name: text_in(file) for file in Path(folder).iterdir()}
    content = json.loads(files["tokenizer.json"])
    tokens, types, merges = _vocabulary(content, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_of(content))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.endoftext_id)
    writer.add_add_bos_token(False)
    writer.add_pad_token_id(tokenizer.pad_id)
    for add, stop in zip((writer.add_eos_token_id, writer.add_eot_token_id), stop_ids, strict=False):
        add(stop)
    if template := files.get(TEMPLATE_FILES[0]):
        writer.add_chat_template(template)
    writer.add_string(OURS, json.dumps(files))


def pre_tokenizer_of(content: dict[str, Any]) -> str:
    """Return llama.cpp's name for how the tokenizer of this `tokenizer.json` cuts words.

    Raises `UserError` where it has none, as of tokenizers of another kind.
    """
    rules = content.get("pre_tokenizer") or {}
    steps = tuple(map(_step, rules.get("pretokenizers", [rules])))
    is_plain = (content.get("normalizer") or {}).get("type") in (None, "NFC")
    if steps not in RULES or not is_plain or content["model"].get("type") != "BPE":
        raise UserError(
            "llama.cpp has no name for how the tokenizer of the model cuts words; expected one trained here, "
            "or that of GPT-2, SmolLM2, Qwen or Llama 3"
        )
    return RULES[steps]


def _step(rule: dict[str, Any]) -> str:
    """Return a rule in two words: its type, and what it is told."""
    told = rule.get("pattern", {}).get("Regex"), rule.get("individual_digits"), rule.get("use_regex")
    return f"{rule.get('type')} {next((each for each in told if each is not None), '')}"


def _vocabulary(content: dict[str, Any], size: int) -> tuple[list[str], list[int], list[str]]:
    """Return text and type of each id, and the merges; an id without a token is one that nothing makes."""
    texts = [f"[PAD{n}]" for n in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for text, n in content["model"]["vocab"].items():
        texts[n], types[n] = text, gguf.TokenType.NORMAL
    for mark in content.get("added_tokens", ()):
        kind = gguf.TokenType.CONTROL if mark["special"] else gguf.TokenType.USER_DEFINED
        texts[mark["id"]], types[mark["id"]] = mark["content"], kind
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    return texts, types, merges
