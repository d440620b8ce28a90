"""What the training of a tokenizer is asked for."""

from dataclasses import dataclass

from dataset.chat_form import MOST_COPIES
from dataset.text_files import DEFAULT_RULES, TextMarks
from dataset.tokenizer import check_vocab_size
from model.errors import UserError


@dataclass(frozen=True)
class TokenizerSettings:
    """What `scripts.train_tokenizer` is asked for."""

    data: tuple[str, ...]
    """files, folders, globs or hub names of texts or chats, as for scripts.prepare_data"""
    out: str
    """tokenizer directory to write"""
    vocab_size: int = 6400
    """tokens, bytes and special tokens included"""
    isolate_han: bool = True
    """keep each Han character apart before merging; without it tokens run across Chinese words"""
    text_column: str = "text"
    """key of the text in a record"""
    document_separator: str = DEFAULT_RULES.separator
    """what ends a document of a .txt file, as for scripts.prepare_data"""
    text_marks: TextMarks = DEFAULT_RULES.marks
    """split: marks that texts spell are not trained on; keep: they are text"""
    max_bytes: int = 300_000_000
    """bytes of text to train on; of more, documents from all over the data are taken"""
    prompt_copies: int = 1
    """how often the text of a user stands in a prompt, one copy below the other; it is a property of the chat
    template, so that whatever renders with this tokenizer does the same"""
    compare: tuple[str, ...] = ()
    """what to report beside it: tokenizer directories, or sizes of vocabularies to train on the same text"""
    max_reject_fraction: float = 0.01
    """share of the records that may be unusable; more is an error"""
    overwrite: bool = False
    """replace what lies at --out"""

    def __post_init__(self) -> None:
        """Check what no type can say, before the work begins."""
        if self.max_bytes < 1:
            raise UserError(f"max_bytes: expected at least 1, got {self.max_bytes}")
        if not 1 <= self.prompt_copies <= MOST_COPIES:
            raise UserError(f"prompt_copies: expected 1 to {MOST_COPIES}, got {self.prompt_copies}")
        for size in (self.vocab_size, *filter(str.isdecimal, self.compare)):
            check_vocab_size(int(size))
