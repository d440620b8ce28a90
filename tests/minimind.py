"""A model directory in minimind's published layout: Qwen3, random weights, a tokenizer of exactly 6,400."""

import json
import random
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from model.checkpoint import save_checkpoint
from model.config import from_preset
from model.transformer import LanguageModel

VOCAB_SIZE = 6400
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
TEMPLATE = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
{{- '<|im_start|>system\n' + (system + '\n\n' if system else '') + '# Tools\n\nThese are at hand:\n<tools>' }}
{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
{{- '\n</tools>\n\nCall one as <tool_call>\n{"name": …}\n</tool_call><|im_end|>\n' }}
{%- elif system %}
{{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{%- set thought = (message.reasoning_content or '').strip('\n') %}
{{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + message.content.lstrip('\n') }}
{%- for call in message.tool_calls or [] %}
{{- ('\n' if message.content or not loop.first else '') + '<tool_call>\n{"name": "' + call.function.name }}
{{- '", "arguments": ' + call.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' + ('<think>\n' if open_thinking else '<think>\n\n</think>\n\n') }}
{%- endif %}
"""


def save_minimind(folder: Path, tags: bool = True, **overrides) -> Path:
    """Write the directory; without `tags` the tokenizer knows the marks of turns alone."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = _tokenizer(MARKS, TAGS if tags else [])
    assert backend.get_vocab_size() == VOCAB_SIZE
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": MARKS[1], "eos_token": MARKS[2], "pad_token": MARKS[0], "unk_token": MARKS[0]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE} | named
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=4))
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB_SIZE, "initializer_range": 0.2, **overrides}
    save_checkpoint(folder, LanguageModel(from_preset("tiny", **shape)), (2,))
    values = json.loads((folder / "config.json").read_text())
    for ours in ("format_version", "prompt_mask"):
        del values[ours]
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _tokenizer(marks: list[str], tags: list[str]) -> tokenizers.Tokenizer:
    """Train byte-level BPE on words of random letters, beside line ends in pairs."""
    draw = random.Random(0)
    words = ("".join(draw.choices("aeiounrstlmkp", k=draw.randint(2, 7))) for _ in range(30_000))
    texts = [" ".join(words) + "\n\n" * 5 + "system user assistant " * 50]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = VOCAB_SIZE - len(tags)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return backend
