"""What was written as GGUF against the model that it was written from: ids of texts, and logits."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import tokenizers

from dataset.conversation import renderer_of
from dataset.prompts import prompt_of
from dataset.token_store import open_stores
from dataset.tokenizer import Tokenizer
from eval.engines.llama_engine import open_gguf
from eval.engines.transformers_files import PROBE
from eval.served_model import ServedModel
from model.errors import UserError, brief

MOST_TEXTS = 2000
"""of each store"""
LARGEST_DIFFERENCE = 1e-3
"""between logits in 32 bits, as a share of the largest one; GPT-2's bent values are looked up in 16 bits"""
ODD_TEXTS = (
    "The year 2024, it's 3.14!\n\n\tdef f(x):\n    return  x  ",
    "你好，世界！中文English混排，日本語のかなとカナ。한국어",
    "😀👩‍👩‍👧 naïve café ÀÉ ß … — “quotes” ¿qué?\r\n𝒳 \u00a0x",
    "Привет, мир! مرحبا שלום नमस्ते ไทย",
)


def check_gguf(served: ServedModel, file: Path, stores: Sequence[str], quantize: str) -> Iterator[str]:
    """Yield what came out, in words; raises `UserError` where more than 1% of texts get other ids.

    Without llama.cpp, ids are those of its rules in our own library, and no logits are computed.
    """
    llama = open_gguf(file) if find_spec("llama_cpp") else None
    encode = llama.model.encode if llama else plain_encoder(served.tokenizer)
    texts, differing = [*ODD_TEXTS, *texts_of(stores, served.tokenizer)], []
    for text in texts:
        if encode(text) != served.tokenizer.encode(text):
            differing.append(text)
    if len(differing) > len(ODD_TEXTS) + len(texts) / 100:
        raise UserError(
            f"{len(differing)} of {len(texts)} texts get other ids in llama.cpp than in training, such as "
            f"{brief(differing[-1])}; train with another tokenizer"
        )
    same = len(texts) - len(differing)
    first = f", not {brief(differing[0])}" if differing else ""
    yield f"{same} of {len(texts)} texts get the same ids in llama.cpp{first}"
    yield (
        compare_logits(served, llama, quantize)
        if llama
        else ("logits are not compared, as llama.cpp is not here: pip install -r requirements-optional.txt")
    )


def texts_of(stores: Sequence[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield texts of token stores without their marks."""
    marks = {*tokenizer.added_ids.values()}
    for store in open_stores(stores, tokenizer):
        for n in range(min(len(store), MOST_TEXTS)):
            yield tokenizer.decode(i for i in store[n].ids.tolist() if i not in marks)


def plain_encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return how texts are encoded where nothing but the rules of llama.cpp cuts them."""
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        content = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    rules = content["pre_tokenizer"]
    if rules.get("pretokenizers") and rules["pretokenizers"][0].get("pattern") == {"Regex": r"\p{Han}"}:
        content["pre_tokenizer"] = rules["pretokenizers"][1]
    content["added_tokens"] = []
    plain = tokenizers.Tokenizer.from_str(json.dumps(content))
    return lambda text: plain.encode(text, add_special_tokens=False).ids


def compare_logits(served: ServedModel, llama: ServedModel, quantize: str) -> str:
    """Return how far logits of llama.cpp are from ours, for a prompt of several turns under the model's mask.

    Raises `RuntimeError` where they are further off than 32 bits explain.
    """
    prompt = prompt_of(renderer_of(served.tokenizer).render(PROBE[:-1], True), served.prompt_mask)
    ours, theirs = (
        each.generator().feed(each.model.new_cache(1), [prompt])[0].float() for each in (served, llama)
    )
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if quantize == "f32" and difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"logits of the written model differ from ours by {difference:.1e}")
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return (
        f"logits in llama.cpp differ from ours by {difference:.1e} of the largest one at most; "
        f"{same} of {len(ours)} tokens have the same most probable next token"
    )
