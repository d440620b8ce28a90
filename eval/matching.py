"""What of an answer is compared, and in which form: exact match, and the share of words that are right."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from string import punctuation

FINAL_PUNCTUATION = " .。!?,;:、…"
QUOTES = str.maketrans(dict.fromkeys("‘’‚‛‹›´", "'") | dict.fromkeys("“”„‟«»", '"'))
KEPT_FORMS = ("<super>", "<sub>", "<fraction>", "<circle>", "<square>")
"""forms of Unicode's that say something: 10² is not 102"""
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORDS = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
ARTICLES = {"a", "an", "the"}
MARKED_ANSWER = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S(?:.*\S)?)\s*+\Z", re.MULTILINE)


def final_answer(text: str) -> str | None:
    """Return what an answer says after its thought, None where it ends inside `<think>`.

    Of working that ends with a line `#### 72`, as GSM8K has it, that is what follows the mark.
    """
    if text.rfind("<think>") > text.rfind("</think>"):
        return None
    said = text.rpartition("</think>")[2]
    marked = MARKED_ANSWER.search(said)
    return marked[1] if marked else said


def normalise(text: str) -> str:
    """Return what is compared: one width and case, single spaces, straight quotes, no thousands commas.

    "  Paris. " and "paris" are equal, "1,234" and "1234" too; "10%" and "10", or "10²" and "102", are not.
    """
    folded = unicodedata.normalize("NFC", "".join(map(_folded, text.translate(QUOTES))))
    plain = THOUSANDS.sub(lambda number: number[0].replace(",", ""), " ".join(folded.casefold().split()))
    return plain.rstrip(FINAL_PUNCTUATION) or plain


def _folded(character: str) -> str:
    form = unicodedata.decomposition(character).partition(" ")[0]
    if not form.startswith("<") or form in KEPT_FORMS:
        return character
    return unicodedata.normalize("NFKC", character)


def is_exact_match(text: str, answers: Iterable[str]) -> bool:
    """Say whether what an answer says in the end equals one of the accepted answers after `normalise`."""
    said = final_answer(text)
    return said is not None and normalise(said) in {normalise(answer) for answer in answers}


def f1(text: str, answers: Iterable[str]) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, best over accepted answers.

    Words are SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250): without punctuation and English articles;
    Chinese and Japanese characters are words by themselves. 0 for an answer that ends inside its thought.
    """
    said = final_answer(text)
    return 0.0 if said is None else max(_shared_words(_words(said), _words(answer)) for answer in answers)


def _words(text: str) -> Counter[str]:
    kept = (c for c in normalise(text) if c not in punctuation and unicodedata.category(c)[0] != "P")
    return Counter(word for word in WORDS.findall("".join(kept)) if word not in ARTICLES)


def _shared_words(said: Counter[str], right: Counter[str]) -> float:
    if not said or not right:
        return float(said == right)
    return 2 * (said & right).total() / (said.total() + right.total())
