"""llama.cpp as the engine of a model, under any prompt mask, through the low-level calls of llama-cpp-python.

A layout is a plan of runs. A block is decoded at once with causal attention switched off, everything else
with it on, so every token sees what came before and, in a block, the rest of it:

    blocks   0 0 0 0 . . . 1 1 . .
    runs     block 4, causal 3, block 2, causal 2

Only the model is replaced: prompts, sampling, sessions and texts are those of our own engine.
"""

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, LlamaFileType
from torch import Tensor

from dataset.tokenizer import Tokenizer
from eval.served_model import ServedModel, choose_mask
from model.config import ModelConfig, from_dict
from model.errors import UserError
from model.masks import Layout
from model.typed_json import read_as

MOST_BLOCK_TOKENS = 2048
"""of a block, which llama.cpp computes at once; its scores take memory by the square of it"""


def runs_of(block_ids: Sequence[int]) -> list[tuple[bool, int]]:
    """Return the plan of a prompt: for each run of tokens whether it is a block, and its length."""
    return [(block >= 0, len([*run])) for block, run in groupby(block_ids)]


class LlamaCache:
    """What llama.cpp holds of the one conversation at a time; keys and values are in its own memory."""

    def __init__(self, library: ModuleType, context: Any) -> None:
        self._library, self._memory = library, library.llama_get_memory(context)
        library.llama_memory_clear(self._memory, True)
        self.lengths = torch.zeros(1, dtype=torch.long)

    @property
    def ends(self) -> Tensor:
        """Position (1,) of the next token."""
        return self.lengths

    def can_truncate(self, length: int) -> bool:
        """Say that going back is always possible, as there are no windows."""
        return True

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        self._library.llama_memory_seq_rm(self._memory, 0, length, -1)
        self.lengths = self.lengths.clamp(max=length)

    def replace(self, rows: list[int], other: "LlamaCache") -> None:
        """Take over what another one holds, which is in the same memory."""
        self.lengths = other.lengths


class LlamaModel:
    """A GGUF file in llama.cpp, which is asked as our own models are, for one conversation at a time."""

    def __init__(self, file: Path, config: ModelConfig, is_exact: bool) -> None:
        """Load the weights; keys and values have 32 bits if the model `is_exact`, else 16.

        Raises `UserError` where llama.cpp is not here or does not open the file.
        """
        self.config, self._library = config, load_library()
        library = self._library
        self._loaded = library.llama_model_load_from_file(str(file).encode(), self._load_settings())
        if not self._loaded:
            raise UserError(f"llama.cpp cannot open {file}; export the model again")
        wanted = library.llama_context_default_params()
        wanted.n_ctx = config.max_position_embeddings
        wanted.n_batch = wanted.n_ubatch = min(config.max_position_embeddings, MOST_BLOCK_TOKENS)
        wanted.n_threads = wanted.n_threads_batch = torch.get_num_threads()
        wanted.type_k = wanted.type_v = library.GGML_TYPE_F32 if is_exact else library.GGML_TYPE_F16
        wanted.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = library.llama_init_from_model(self._loaded, wanted)
        weakref.finalize(self, _free, library, self._loaded, self._context)
        if not self._context:
            raise UserError(f"llama.cpp has no memory for {config.max_position_embeddings} tokens of {file}")
        known = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._loaded))
        if known != config.vocab_size:  # of so many logits nothing may be read beyond the last
            raise UserError(f"{file} has {known} tokens but says {config.vocab_size}; export the model again")

    def _load_settings(self) -> Any:
        """Return settings by which the architecture is opened that the file hides from other programs."""
        settings = self._library.llama_model_default_params()
        self._overrides = (self._library.llama_model_kv_override * 2)()  # the second one ends the list
        self._overrides[0].tag = self._library.LLAMA_KV_OVERRIDE_TYPE_STR
        self._overrides[0].key = b"general.architecture"
        self._overrides[0].value.val_str = self.config.architecture.encode()
        settings.kv_overrides = self._overrides
        return settings

    def eval(self) -> "LlamaModel":
        """Return the model, which is trained nowhere."""
        return self

    def num_parameters(self) -> int:
        """Count parameters."""
        return self._library.llama_model_n_params(self._loaded)

    def new_cache(self, batch: int) -> LlamaCache:
        """Return an empty cache; what an earlier one held is gone. Raises `ValueError` for several rows."""
        if batch != 1:
            raise ValueError(f"expected one conversation at a time in llama.cpp, got {batch}")
        return LlamaCache(self._library, self._context)

    def model(self, ids: Tensor, layout: Layout, cache: LlamaCache) -> Tensor:
        """Return logits (1, T, V) of ids (1, T) after what is cached: each run of the layout in one call."""
        [tokens], [blocks], logits = ids.tolist(), layout.block_ids.tolist(), []
        for is_block, length in runs_of(blocks):
            logits.append(self._decode(tokens[:length], cache, is_block))
            tokens = tokens[length:]
        return torch.cat(logits)[None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what `model` has made already."""
        return hidden

    def step(self, tokens: Tensor, cache: LlamaCache) -> Tensor:
        """Return the logits (1, V) after one causal token (1, 1)."""
        return self._decode(tokens[0].tolist(), cache, is_block=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids that llama.cpp itself makes of a text."""
        library, content = self._library, text.encode()
        ids = (library.llama_token * (len(content) + 1))()
        vocab = library.llama_model_get_vocab(self._loaded)
        count = library.llama_tokenize(vocab, content, len(content), ids, len(ids), False, False)
        return list(ids[:count])

    def _decode(self, tokens: list[int], cache: LlamaCache, is_block: bool) -> Tensor:
        """Feed a run of tokens, return logits (n, V); `UserError` for a block that is too long."""
        library, count, first = self._library, len(tokens), int(cache.lengths[0])
        most = min(self.config.max_position_embeddings, MOST_BLOCK_TOKENS)
        if count > most:
            raise UserError(f"a block of {count} tokens is longer than llama.cpp takes at once here, {most}")
        batch = library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for n, token in enumerate(tokens):
                batch.token[n], batch.pos[n], batch.logits[n] = token, first + n, True
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, 0
            library.llama_set_causal_attn(self._context, not is_block)
            if code := library.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp failed to compute {count} tokens after {first} ({code})")
        finally:
            library.llama_batch_free(batch)
        cache.lengths = cache.lengths + count
        values = library.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(values, (count, self.config.vocab_size)).copy())


@dataclass(frozen=True)
class ServedLlama(ServedModel):
    """A GGUF file as chats want a model; its weights stay as they are."""

    @property
    def device(self) -> torch.device:
        """Where tokens are chosen."""
        return torch.device("cpu")

    def in_form(self, *wanted: Any) -> "ServedLlama":
        """Return the model: a file has one form."""
        return self


def open_gguf(
    file: str | Path, prompt_mask: str | None = None, allow_mask_mismatch: bool = False
) -> ServedLlama:
    """Open a file of `scripts.export_gguf` in llama.cpp, by default with the mask that stands in it.

    Raises `UserError` for another file, for a mask that was not trained without `allow_mask_mismatch`, and
    where llama.cpp is not here.
    """
    values = read_values(Path(file))
    config, tokenizer, form, stop_ids = _read(values, file)
    mask = choose_mask(config.prompt_mask, prompt_mask, allow_mask_mismatch)
    model = LlamaModel(Path(file), replace(config, prompt_mask=mask), form == LlamaFileType.ALL_F32)
    words = f"{form.name.removeprefix('MOSTLY_').lower()} weights in llama.cpp"
    trained_on = values.get("sightline.trained_on")
    return ServedLlama(model, tokenizer, stop_ids, Path(file), form=words, trained_on=trained_on)


class _Reader(GGUFReader):
    """Reads nothing beyond the end of a file, where a list of 2^50 numbers would be one of nothing."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        if len(values := super()._get(offset, dtype, count, override_order)) < count:
            raise IndexError("it ends too early")
        return values


def read_values(file: Path) -> dict[str, Any]:
    """Return what a GGUF file says of itself; `UserError` unless `scripts.export_gguf` wrote it."""
    if not file.is_file():
        raise UserError(f"{file} not found; expected a file that scripts.export_gguf wrote")
    try:
        values = {name: field.contents() for name, field in _Reader(file).fields.items()}
    except (ValueError, IndexError, KeyError, RecursionError) as error:
        raise UserError(f"{file} is no whole GGUF file ({error}); export the model again") from None
    if "sightline.config" not in values:
        raise UserError(f"{file} names no prompt mask; expected a file that scripts.export_gguf wrote")
    return values


def _read(
    values: dict[str, Any], file: str | Path
) -> tuple[ModelConfig, Tokenizer, LlamaFileType, tuple[int, ...]]:
    """Return configuration, tokenizer, form of the weights, stop ids; `UserError` where others wrote them."""
    try:
        config = from_dict(json.loads(values["sightline.config"]), str(file))
        with TemporaryDirectory() as folder:
            for name, text in json.loads(values["sightline.tokenizer"]).items():
                (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
            tokenizer = Tokenizer.load(folder, config.vocab_size)
        stop_ids = read_as(tuple[int, ...], values.get("sightline.stop_ids", ()), "stop_ids")
        if any(stop >= config.vocab_size for stop in stop_ids):
            raise ValueError(f"stop_ids: expected ids below {config.vocab_size}, got {stop_ids}")
        return config, tokenizer, LlamaFileType(values["general.file_type"]), stop_ids
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{file} is not as scripts.export_gguf writes it ({error!r})") from None


@cache
def load_library() -> ModuleType:
    """Return the low-level calls of llama-cpp-python, made silent; `UserError` where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        raise UserError(
            "llama.cpp is not here; pip install -r requirements-optional.txt compiles it, with cmake and a "
            "C++ compiler, in some minutes"
        ) from None
    llama_cpp.llama_log_set(_silent(llama_cpp), None)
    return llama_cpp


@cache
def _silent(library: ModuleType) -> Any:
    """Return a logger that is kept as long as the library may call it."""
    return library.llama_log_callback(lambda level, text, data: None)


def _free(library: ModuleType, loaded: Any, context: Any) -> None:
    if context:
        library.llama_free(context)
    library.llama_model_free(loaded)
