"""The arithmetic of a batch, and its share of what the machine can do."""

import platform
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset.batches import Batch
from model.config import from_preset
from model.layers import FeedForward
from model.masks import causal_layout
from model.transformer import LanguageModel
from trainer.device import peak_flops
from trainer.placement import model_flops


def full_batch(rows: int, length: int) -> Batch:
    ids = torch.randint(97, (rows, length))
    labels = ids.clone()
    labels[:, 0] = -100
    return Batch(ids, labels, *causal_layout(rows, length))


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "qwen3_moe"])
def test_the_arithmetic_is_what_torch_counts_in_forward_and_backward(family):
    config = from_preset("tiny", vocab_size=97, architecture=family)
    model, batch = LanguageModel(config), full_batch(2, 64)
    model.set_attention("eager")  # which computes invisible pairs, too
    with FlopCounterMode(display=False) as counter:
        model(batch.ids, batch.layout, batch.labels).backward()
    invisible = 2 * (64 * 64 - 64 * 65 // 2)
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert counter.get_total_flops() == model_flops(config, batch) + 12 * width * invisible


def test_layers_of_other_parts_are_counted_as_what_they_are(monkeypatch):
    class Two(torch.nn.Module):
        """A feed-forward layer beside a narrower one."""

        def __init__(self, size: int, inner: int) -> None:
            super().__init__()
            self.down_proj, self.parts = torch.nn.Linear(size, size), torch.nn.ModuleList()
            self.parts.extend(FeedForward(size, each) for each in (inner, inner // 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(x) + sum(part(x) for part in self.parts)

    monkeypatch.setattr(
        "model.transformer.feed_forward_of", lambda config: Two(config.hidden_size, config.intermediate_size)
    )
    config, batch = from_preset("tiny", vocab_size=98), full_batch(2, 64)
    model = LanguageModel(config)
    model.set_attention("eager")
    with FlopCounterMode(display=False) as counter:
        model(batch.ids, batch.layout, batch.labels).backward()
    invisible, width = 2 * (64 * 64 - 64 * 65 // 2), 2 * 4 * 16
    assert counter.get_total_flops() == model_flops(config, batch) + 12 * width * invisible


def test_padding_and_other_documents_count_nothing():
    config = from_preset("tiny", vocab_size=97)
    packed = full_batch(1, 64)
    packed.document_ids[0, 24:], packed.position_ids[0, 24:] = 1, torch.arange(40)
    packed.labels[0, 24] = -100
    apart = model_flops(config, full_batch(1, 24)) + model_flops(config, full_batch(1, 40))
    assert model_flops(config, packed) == apart
    packed.document_ids[0, 24:], packed.labels[0, 24:] = -1, -100
    assert model_flops(config, packed) == model_flops(config, full_batch(1, 24))


def test_a_window_bounds_the_pairs():
    wide, narrow = (from_preset("tiny", vocab_size=97, sliding_window=w) for w in (None, 3))
    width = wide.num_hidden_layers * wide.num_attention_heads * wide.head_dim
    batch = full_batch(1, 64)
    difference = model_flops(wide, batch) - model_flops(narrow, batch)
    assert difference == 12 * width * (64 * 65 // 2 - (1 + 2 + 62 * 3))


def test_measuring_the_peak_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's library can be told to keep memory")
def test_freed_memory_is_kept_for_the_tensors_of_later_steps():
    program = """
import resource, torch
from trainer.device import keep_freed_memory
keep_freed_memory()
x = torch.ones(2**23)  # 32 MB
for step in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [x + n for n in range(6)]
    del kept
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    first, *_, fourth, fifth = map(int, done.stdout.split())
    assert fourth + fifth < 0.5 * first  # pages that the system cleared; twice the first without it
