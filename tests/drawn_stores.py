"""Token stores of chats in letters and of texts of given lengths, and drawings of what is read of them."""

from pathlib import Path

import numpy as np

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.conversation import ROLES, START, TARGET, UNTRAINED
from dataset.documents import documents_of
from dataset.token_store import Part, StoreWriter, TokenStore
from dataset.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([" ".join(["法国 Paris", *(f"{n:03}" for n in range(999))])], 800)
ROLE_OF_LETTER = {
    "s": "system",
    "u": "user",
    "t": "tool",
    "a": "assistant",
    "n": "assistant",
    "x": "assistant",
}


def codes_of(drawing):
    """Return codes of a chat in letters: a capital begins a message; `a` and `x` (no loss) are targets."""
    roles = [ROLES.index(ROLE_OF_LETTER[letter.lower()]) for letter in drawing]
    bits = [
        START * letter.isupper() + TARGET * (letter in "ax") + UNTRAINED * (letter == "x")
        for letter in drawing
    ]
    return np.array(roles, dtype=np.uint8) | np.array(bits, dtype=np.uint8)


def write(folder, documents, kind="sft"):
    """Write a store of chats in letters, or of texts of given lengths; ids count on over all documents."""
    writer = StoreWriter(Path(folder), kind, TOKENIZER)
    first = 0
    for document in documents:
        n = document if kind == "pretrain" else len(document)
        ids, codes = np.arange(first, first + n), None if kind == "pretrain" else codes_of(document)
        writer.append(Part(ids.astype(writer.dtype), codes, np.array([n], np.uint32)))
        first += n
    writer.finish({})
    return TokenStore(folder)


def stream_of(folder, documents, kind="sft", **batch_settings):
    return BatchStream(documents_of([write(folder, documents, kind)], BatchSettings(**batch_settings)))


def drawn(values, absent):
    return " ".join("." if value == absent else str(value) for value in values.tolist())
