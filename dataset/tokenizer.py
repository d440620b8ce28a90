"""BPE of bytes: training, the directory it lives in, text to ids and back, text from a stream of ids.

Content never becomes a special token here: whoever wants one writes its id. The form of a conversation is
`dataset/conversation.py`'s.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

import dataset.foreign_tokenizer as foreign
from dataset.chat_form import COPIES_OF, ROLES, ChatForm, our_templates
from dataset.foreign_form import read_form
from dataset.words import BYTE_OF_CHARACTER, Words, parts_of, pre_tokenizer, without_long_runs, without_marks
from model.errors import UserError, hub_advice
from model.files import read_object

ENDOFTEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
MARKERS = (ENDOFTEXT, IM_START, IM_END, PAD)
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
RESERVED = tuple(f"<|reserved_{slot}|>" for slot in range(6))
SPECIAL_TOKENS = MARKERS + TAGS + RESERVED  # ids 0 … 15 of a tokenizer that is trained here
TEMPLATE_FILES = ("chat_template.jinja", "chat_template_training.jinja")
FILES = ("tokenizer.json", *foreign.NAMED_FILES, *TEMPLATE_FILES)
SMALLEST_VOCAB, LARGEST_VOCAB = 256 + len(SPECIAL_TOKENS), 2**24


class Tokenizer:
    """A BPE tokenizer of bytes with our markers and tags; one from elsewhere keeps its files and its form.

    It is byte-level, or has pieces of characters and of the bytes of others, as those of Llama 2 and Gemma.

    What one from elsewhere lacks of them gets ids beyond its own; a model needs rows for those of messages.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        files: Mapping[str, bytes] | None = None,
        room: int = LARGEST_VOCAB,
    ) -> None:
        """Take over a tokenizer of `tokenizers` and the files beside it, by name, for ids below `room`.

        Raises `UserError` if it is another kind.
        """
        self.decoding = foreign.decoding_of(backend)
        self.own_vocab_size = _size(backend)
        if self.own_vocab_size > LARGEST_VOCAB:
            raise UserError(f"expected ids below {LARGEST_VOCAB}, got a token {self.own_vocab_size - 1}")
        backend.no_truncation()
        backend.no_padding()
        backend.model.dropout = None  # with which a text has other ids each time
        self._files, self._backend, self._own = dict(files or {}), backend, backend
        template, self._named = foreign.brought_template(self._files), foreign.named_tokens(self._files)
        self.prompt_copies = COPIES_OF.get(template, 1)
        self._template = "" if template in COPIES_OF else template  # of one from elsewhere
        added = {token.content for token in foreign.marks_of(backend).values()}
        endoftext = next((t for t in (ENDOFTEXT, self._named.get("eos_token")) if t in added), ENDOFTEXT)
        wanted = (endoftext, *(() if self._template else (IM_START, IM_END)), *TAGS)
        if lacking := [text for text in wanted if text not in added]:
            self._own = foreign.copy_of(backend, list(backend.get_added_tokens_decoder().values()))
            backend.add_tokens([AddedToken(t, special=t not in TAGS, normalized=False) for t in lacking])
        self.vocab_size, self._room = _size(backend), room
        self._words = Words(without_marks(backend))
        self.endoftext_id = self.special(endoftext)
        pads = (self._named.get("pad_token"), PAD, endoftext)
        self.pad_id = next((self.special(text) for text in pads if text in added), 0)

    @classmethod
    def load(cls, path: str | Path, room: int = LARGEST_VOCAB) -> "Tokenizer":
        """Open a tokenizer directory for a model with `room` for that many ids.

        Raises `UserError` if it is missing or broken, or has more tokens of its own.
        """
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            others = any(file.with_name(name).is_file() for name in ("tokenizer.model", "vocab.json"))
            written = f"; AutoTokenizer.from_pretrained({str(path)!r}) of transformers can save one"
            advice = written if others else hub_advice(path)
            raise UserError(f"no tokenizer in {path}: expected a directory with tokenizer.json{advice}")
        present = [each for each in map(file.with_name, FILES) if each.is_file()]
        for each in present:
            if each.name in foreign.NAMED_FILES:
                read_object(each, "copy the tokenizer again")
        try:
            files = {each.name: foreign.without_code(each.name, each.read_bytes()) for each in present}
            with foreign.quiet_panics():
                backend = tokenizers.Tokenizer.from_buffer(files[file.name])
        except UserError:
            raise
        except Exception as error:  # the library raises nothing more precise
            raise UserError(f"{file} is not a tokenizer: {error}") from None
        with foreign.quiet_panics():
            tokenizer = cls(backend, files, room)
            tokenizer.text_begin  # noqa: B018 - the rules are tried
        if (size := tokenizer.own_vocab_size) > room:
            fault = f"{path}: the tokenizer has {size} tokens but the model takes {room}"
            raise UserError(f"{fault}; they do not belong together, copy both from one place")
        return tokenizer

    def save(self, path: str | Path, is_whole: bool = False) -> None:
        """Write a directory that `transformers.AutoTokenizer` opens, chat template included.

        The files of a tokenizer from elsewhere are written as they were. Tokens that it lacked come with a
        model that has learnt them, `is_whole`.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        whole = self._backend if is_whole else self._own
        files = dict(self._files)
        if not self._template and whole.token_to_id(IM_END) is not None:
            files = self._our_files() | files
        if "tokenizer.json" not in files or whole is not self._own:
            files["tokenizer.json"] = whole.to_str(pretty=True).encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def _our_files(self) -> dict[str, bytes]:
        """Return what stands beside `tokenizer.json` of a tokenizer whose form is ours."""
        names = {"bos_token": self.endoftext_id, "eos_token": self.im_end_id, "pad_token": self.pad_id}
        names = {name: self.token_bytes(token_id).decode() for name, token_id in names.items()}
        about = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False}
        described = [(json.dumps(values, indent=2) + "\n").encode() for values in (about, names)]
        templates = [template.encode() for template in our_templates(self.prompt_copies)]
        return dict(zip((*foreign.NAMED_FILES, *TEMPLATE_FILES), described + templates, strict=True))

    @cached_property
    def form(self) -> ChatForm:
        """Return how conversations are written; raises `UserError` where the template cannot be read."""
        if not self._template:
            return ChatForm(prompt_copies=self.prompt_copies)
        marks = {token.content for token in foreign.marks_of(self._own).values()}
        return read_form(self._template, self._named, marks)

    @cached_property
    def im_end_id(self) -> int:
        """Return the id that ends an answer."""
        return self.special(self.form.end)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer, whichever of them pads rows."""
        ends = (self.form.end, self.token_text(self.endoftext_id))
        return tuple(self.added_ids[text] for text in dict.fromkeys(ends) if text in self.added_ids)

    @cached_property
    def text_begin(self) -> list[int]:
        """Return what stands before a text: the end of another, or what a foreign tokenizer puts there."""
        return self._own.encode("").ids[:1] or [self.endoftext_id]

    def encode_form(self, text: str, before: str | None = None) -> list[int]:
        """Return the ids of text of a form, after other such text or some content: marks are themselves."""
        if text in self.added_ids:
            return [self.added_ids[text]]
        backend = self._own if self._template else self._backend
        return foreign.encode_after(backend, self._words.inside if before is None else before, text)

    def encode(self, text: str, begins: bool = False) -> list[int]:
        """Return the ids of content: the text of a mark in it is encoded as the characters it is.

        Raises `UserError` for what is not Unicode, such as a terminal's undecoded bytes.
        """
        return list(chain.from_iterable(self.encode_parts(text, begins)))

    def encode_as_transformers(self, text: str, begins: bool = True) -> list[int]:
        """Return the ids that transformers gives a text, with marks it spells and what stands before it."""
        return self._own.encode(text, add_special_tokens=begins).ids

    def encode_parts(self, text: str, begins: bool = False) -> Iterable[Iterable[int]]:
        """Yield what `encode` returns, a part at a time where a text is very long."""
        return (self._words.encode(part, begins and not n) for n, part in enumerate(parts_of(text)))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD."""
        stream = TextStream(self, skip_special_tokens)
        return "".join([stream.feed(int(i)) for i in ids]) + stream.flush()

    def special(self, text: str) -> int:
        """Return the id of an added token; raises `UserError` if the tokenizer has none of that text."""
        if text not in self.added_ids:
            raise UserError(f"the tokenizer has no added token {text!r} that the model knows")
        return self.added_ids[text]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; an id that the vocabulary lacks gives U+FFFD."""
        return self._bytes.get(token_id, "\ufffd".encode())

    def token_text(self, token_id: int) -> str:
        """Return a token for a table, on one line: control characters and parts of characters as escapes."""
        text = self.token_bytes(token_id).decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    @cached_property
    def added_ids(self) -> dict[str, int]:
        """Return the id of each added token by its text: marks and tags, never text of a person's."""
        marks = foreign.marks_of(self._backend).items()
        return {token.content: token_id for token_id, token in marks if token_id < self._room}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the ids that `skip_special_tokens` leaves out of decoded text; tags are never among them."""
        marks = foreign.marks_of(self._backend).items()
        return frozenset(i for i, token in marks if token.special and token.content not in TAGS)

    @property
    def typecode(self) -> str:
        """Return the smallest unsigned integer that holds every id, as `array` and NumPy name it."""
        return "H" if self.vocab_size <= 2**16 else "I"

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 of everything that decides which ids a text or a conversation gets."""
        if self.prompt_copies == 1:
            return self.text_fingerprint
        return hashlib.sha256(f"{self.text_fingerprint} {self.prompt_copies}".encode()).hexdigest()

    @cached_property
    def text_fingerprint(self) -> str:
        """Return the same of tokenizers that differ only in how often texts of users stand in prompts."""
        own_form = self._template  # what tells the form of conversations from ours, if anything
        with suppress(UserError):  # of one that cannot be read
            if (form := self.form).whole is not None:
                own_form = "" if form == ChatForm() else repr(form) + " trims" * form.trims
        return hashlib.sha256((self._backend.to_str() + own_form).encode()).hexdigest()

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        if self.decoding != "byte-level":
            pieces, byte_of = self._backend.get_vocab().items(), foreign.BYTE_PIECES
            return {i: byte_of.get(piece) or piece.replace("▁", " ").encode() for piece, i in pieces}
        vocab, byte_of = self._backend.get_vocab(with_added_tokens=False), BYTE_OF_CHARACTER
        known = {i: bytes(byte_of[c] for c in t) for t, i in vocab.items() if byte_of.keys() >= set(t)}
        added = self._backend.get_added_tokens_decoder()
        return known | {token_id: token.content.encode() for token_id, token in added.items()}


class TextStream:
    """Turns ids into text as they come: whole characters only, and each as soon as its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        """Start an empty text."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_trimmed = tokenizer.decoding != "trimmed pieces"

    def feed(self, token_id: int) -> str:
        """Return the characters that this token completes, often none or one."""
        if token_id in self._skipped:
            return ""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        if text and not self._is_trimmed:
            text, self._is_trimmed = text.removeprefix(" "), True
        return text

    def flush(self) -> str:
        """Return what an unfinished character leaves (U+FFFD or nothing) and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, isolate_han: bool = True, prompt_copies: int = 1
) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens on a stream of texts; deterministic.

    `isolate_han` keeps each Han character apart before merging, so that no token spans Chinese words. The
    names of the roles are counted with every text, so that headers are short. A run of 512 letters, digits,
    signs or spaces is cut, as the time for a word is quadratic. Raises what `check_vocab_size` does.
    """
    check_vocab_size(vocab_size)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer(isolate_han)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    role_names = "\n".join(ROLES)
    pieces = chain.from_iterable(without_long_runs(f"{text}\n{role_names}") for text in texts)
    backend.train_from_iterator(pieces, trainer)
    template = our_templates(prompt_copies)[0].encode()
    return Tokenizer(_with_visible_tags(backend), {TEMPLATE_FILES[0]: template})


def check_vocab_size(vocab_size: int) -> None:
    """Raise `UserError` for a vocabulary too small to hold all bytes, or too large for any memory."""
    if not SMALLEST_VOCAB <= vocab_size <= LARGEST_VOCAB:  # the library takes memory for all, and aborts
        known = f"{SMALLEST_VOCAB} (bytes and special tokens) to {LARGEST_VOCAB}"
        raise UserError(f"expected vocab_size of {known}, got {vocab_size}")


def _size(backend: tokenizers.Tokenizer) -> int:
    return 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)


def _with_visible_tags(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Let decoded text keep `<think>` and its like, which the library's trainer makes special."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in TAGS
    return tokenizers.Tokenizer.from_str(json.dumps(content))
