"""Greedy answers against an engine that is not ours: `generate` of transformers on the exported weights."""

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


def greedy_of_transformers(model, ids: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """The ids that `generate` appends, the stop id included, and how far each was ahead of the next."""
    made = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=7,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tops = torch.stack(made.logits).topk(2).values[:, 0]  # (n, 2)
    return tuple(made.sequences[0, len(ids) :].tolist()), (tops[:, 0] - tops[:, 1]).tolist()
