"""What of an answer is compared, and in which form: exact match and nothing cleverer."""

import re
import unicodedata
from collections.abc import Iterable

FINAL_PUNCTUATION = " .。!?,;:、…"
QUOTES = str.maketrans(dict.fromkeys("‘’‚‛‹›´", "'") | dict.fromkeys("“”„‟«»", '"'))
KEPT_FORMS = ("<super>", "<sub>", "<fraction>", "<circle>", "<square>")
"""forms of Unicode's that say something: 10² is not 102"""
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
MARKED_ANSWER = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S.*?)\s*\Z", re.MULTILINE)


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
