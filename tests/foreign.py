"""Tokenizers and chat templates as published models have them, small and in words of our own."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "The capital of France is Paris. You are a kind helper.\nsystem user assistant model 法国的首都是巴黎。"
)
SPLIT = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SMOLLM2 = r"""{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are a kind helper<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CHATML = r"""{% for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MINIMIND2 = r"""{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}
{%- else %}{% set said = 'You are a helper' %}{% endif %}{{ '<|im_start|>system\n' + said + '<|im_end|>\n' }}
{%- for message in messages %}{% if message['role'] == 'user' %}
{{- '<|im_start|>user\n' + message['content'] + '<|im_end|>\n<|im_start|>assistant\n' }}
{%- elif message['role'] == 'assistant' %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}
{%- endfor %}"""
LLAMA3 = r"""{% for message in messages %}
{%- set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
{{- (bos_token if loop.first else '') + header + message['content'] | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
DATED = (
    r"""{{ bos_token }}{% set header = '<|start_header_id|>system<|end_header_id|>\n\nOn 26 Jul 2024\n\n' %}
{%- if messages[0].role == 'system' %}
{%- set said = messages[0].content | trim %}{% set messages = messages[1:] %}{% endif %}
{{- header + (said or '') + '<|eot_id|>' }}{% set bos_token = '' %}
"""
    + LLAMA3
)
GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('expected turns') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
ZEPHYR = r"""{% for message in messages %}
{% if message['role'] in ('system', 'user', 'assistant') %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
INSTRUCT = r"""{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}{% else %}
{{- ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""
MISTRAL = INSTRUCT.replace("' ' + message['content'] + ' '", "message['content']")
FORGETFUL = r"""{% for message in messages %}{% if message.role != 'assistant' or loop.last %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

IM = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3_TOKENS = (
    ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
)
MODELS = {  # kind of tokenizer, marks, those with a name, template
    "smollm2": ("bytes", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), IM, SMOLLM2),
    "chatml": ("bytes", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), IM, CHATML),
    "minimind2": ("bytes", ("<unk>", "<|im_start|>", "<|im_end|>"), {"eos_token": "<|im_end|>"}, MINIMIND2),
    "llama3": ("llama3", *LLAMA3_TOKENS, LLAMA3),
    "llama3.2": ("llama3", *LLAMA3_TOKENS, DATED),
    "gemma": (
        "gemma",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        GEMMA,
    ),
    "tinyllama": ("llama2", ("<unk>", "<s>", "</s>"), S, ZEPHYR),
    "zephyr": ("llama2 first", ("<unk>", "<s>", "</s>"), S, ZEPHYR),
    "llama2": ("llama2", ("<unk>", "<s>", "</s>"), S, INSTRUCT),
    "mistral": ("llama2", ("<unk>", "<s>", "</s>"), S, MISTRAL),
    "forgetful": ("bytes", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), IM, FORGETFUL),
}
PIECES = ("gemma", "tinyllama", "zephyr")


def save_foreign(folder: Path, name: str) -> Path:
    """Write the tokenizer of a model, as `transformers` opens it."""
    kind, marks, named, template = MODELS[name]
    backend = (
        byte_level(marks) if kind == "bytes" else llama3(marks) if kind == "llama3" else pieces(kind, marks)
    )
    if "bos_token" in named:
        bos = named["bos_token"]
        ids = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", None, ids)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template} | named
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level(marks: tuple[str, ...]) -> tokenizers.Tokenizer:
    """Train byte-level BPE."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(marks), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    return backend


def llama3(marks: tuple[str, ...]) -> tokenizers.Tokenizer:
    """The same, cut into words as Llama 3 does."""
    backend = byte_level(marks)
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return backend


def pieces(kind: str, marks: tuple[str, ...]) -> tokenizers.Tokenizer:
    """Train BPE of pieces, as SentencePiece has it, with a piece for each byte."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(marks), show_progress=False)
    backend.train_from_iterator([TEXT] * 3, trainer)
    content = json.loads(backend.to_str())
    model = content["model"]
    texts = [f"<0x{byte:02X}>" for byte in range(256)] + ["<", "▁<"]
    texts += ["\n", "▁▁", "\n\n"] if kind == "gemma" else []
    for text in texts:
        model["vocab"].setdefault(text, len(model["vocab"]))
    model["merges"] += [["▁", "<"], *([["▁", "▁"], ["\n", "\n"]] if kind == "gemma" else [])]
    model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    spaces = normalizers.Replace(" ", "▁")
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.pre_tokenizer, backend.normalizer = None, spaces
    if kind == "gemma":
        backend.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "▁▁", "\n\n")])
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "llama2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(decoding + [decoders.Strip(" ", 1, 0)] * (kind != "gemma"))
    return backend
