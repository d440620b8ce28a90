"""When layers are compiled, and that only the time changes; the arithmetic of a batch."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import platform
import subprocess
import sys
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import tiny_model, windowed
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode
from training_runs import data, init, losses, pretrain, run_trainer, sft

from dataset.batch_settings import BatchSettings
from dataset.batches import Batch, BatchStream
from dataset.documents import documents_of
from dataset.token_store import open_stores
from model.config import from_preset
from model.errors import UserError
from model.layers import FeedForward
from model.layouts import positions_of
from model.masks import causal_layout, visible_mask
from model.transformer import LanguageModel
from trainer import placement
from trainer.device import peak_flops
from trainer.placement import WORTHWHILE_FLOPS, choose_compilation, compile_layers, model_flops

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "choice, device, flops, former, fault, is_on, reason",
    [
        ("auto", CPU, 2 * WORTHWHILE_FLOPS, None, None, True, "each layer"),
        ("auto", CPU, 0.5 * WORTHWHILE_FLOPS, None, None, False, "too short a training"),
        ("auto", CPU, 0.5 * WORTHWHILE_FLOPS, True, None, True, "each layer"),
        ("auto", CPU, 2 * WORTHWHILE_FLOPS, False, None, False, "as the run began"),
        ("auto", CUDA, 1.0, None, None, True, "each layer"),
        ("auto", CPU, 2 * WORTHWHILE_FLOPS, None, "no g++", False, "nothing can be compiled here (no g++)"),
        ("always", CPU, 1.0, False, None, True, "each layer"),
        ("never", CUDA, 2 * WORTHWHILE_FLOPS, True, None, False, "by --compile never"),
    ],
)
def test_layers_are_compiled_where_that_works_and_pays(
    choice, device, flops, former, fault, is_on, reason, monkeypatch
):
    monkeypatch.setattr(placement, "compiler_fault", lambda device: fault)
    decision = choose_compilation(choice, device, flops, former)
    assert decision.is_on == is_on and reason in decision.reason


def test_a_missing_compiler_is_told_from_a_working_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert placement.compiler_fault(CPU) is None

    def broken(function, **_):
        def call(x):
            raise RuntimeError("no working C++ compiler\nlong story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    assert placement.compiler_fault(CPU) == "no working C++ compiler"
    with pytest.raises(UserError, match="--compile always: nothing can be compiled here .no working"):
        choose_compilation("always", CPU, 1.0)


def test_nothing_is_compiled_with_the_code_that_another_user_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert placement.compiler_fault(CPU) is None
    monkeypatch.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)
    assert f"{tmp_path} belongs to another user" in placement.compiler_fault(CPU)


@pytest.mark.parametrize(
    "packing, prompt_mask, in_blocks, family",
    [
        ("pack", "prefix", False, "qwen3"),
        ("pack", "prefix", False, "in bands"),
        ("none", "causal", False, "qwen3"),
        pytest.param("none", "causal", False, "in bands", marks=pytest.mark.long),
        pytest.param("none", "causal", True, "qwen3", marks=pytest.mark.long),
        ("pack", "prefix", False, "encoder_decoder"),
        pytest.param("pack", "prefix", False, "merged", marks=pytest.mark.long),
    ],
)
def test_batches_of_any_shape_run_what_the_first_one_compiled(
    data, packing, prompt_mask, in_blocks, family, monkeypatch
):
    torch._dynamo.reset()
    monkeypatch.setattr("model.backends.SHORTEST_IN_BLOCKS", 1 if in_blocks else 256)
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    choice = BatchSettings(max_seq_len=96, packing=packing, prompt_mask=prompt_mask)
    stream = BatchStream(documents_of(open_stores([data / "sft"]), choice))
    batches = list(islice(stream.batches(0, rows_per_step=4), 4))
    assert len({batch.num_targets for batch in batches}) > 2
    shape = {"vocab_size": 300, "num_hidden_layers": 1, "architecture": family}
    if family == "in bands":
        shape = {"vocab_size": 300, **windowed(4, both_sides=True, sinks=1)}
        monkeypatch.setattr("model.bands.WIDEST_SHARE", 5)
    model, plain = (tiny_model(**shape) for _ in range(2))
    compile_layers(model, lengths_vary=packing == "none")
    frames = []
    for batch in batches:
        for each in (model, plain):
            each(batch.ids, batch.layout, batch.labels).backward()
        frames.append(counter.frame_count)
    assert frames[0] > 0 and frames[-1] == frames[0]
    assert model.state_dict().keys() == plain.state_dict().keys()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-9


def test_what_needs_no_gradient_is_not_compiled(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    model = tiny_model()
    compile_layers(model, lengths_vary=False)
    with torch.no_grad():
        model(torch.randint(97, (2, 9)))
    assert counter.frame_count == 0


def test_a_run_is_continued_compiled_only_as_it_began(pretrain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pretrain(tmp_path / "run", "--max_steps", 3, "--compile", "always")
    assert "compile    each layer" in capsys.readouterr().out
    with pytest.raises(UserError, match="compiled was True, is False"):
        pretrain(tmp_path / "run", "--max_steps", 3, "--compile", "never")


@pytest.mark.long
def test_compiled_trainings_are_equal_to_the_bit_and_close_to_plain_ones(sft, tmp_path):
    flags = ["--max_steps", 4, "--prompt_mask", "prefix", "--compile"]
    for name, choice in [("one", "always"), ("two", "always"), ("plain", "never")]:
        sft(tmp_path / name, *flags, choice)
    one, two, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "plain"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-4)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


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


@pytest.mark.parametrize("bounds", [{}, {"sinks": 2}, {"chunk": 4}, {"sinks": 3, "chunk": 4}])
def test_the_pairs_of_a_pattern_are_those_of_its_mask(bounds):
    config = from_preset("tiny", vocab_size=97, **windowed(5, None, **bounds))
    batch, (near, everything) = full_batch(1, 23), config.layer_patterns
    pairs = [int(visible_mask(batch.layout, pattern).sum()) for pattern in (near, everything)]
    difference = model_flops(from_preset("tiny", vocab_size=97), batch) - model_flops(config, batch)
    assert difference == 12 * config.num_attention_heads * config.head_dim * (pairs[1] - pairs[0])


def test_every_token_meets_the_memory_tokens_of_every_layer():
    plain, remembering = (from_preset("tiny", vocab_size=97, memory_tokens=count) for count in (None, 3))
    batch, width = full_batch(2, 12), plain.num_hidden_layers * plain.num_attention_heads * plain.head_dim
    assert model_flops(remembering, batch) - model_flops(plain, batch) == 12 * width * 3 * batch.num_real


def test_passages_that_share_positions_count_as_they_would_in_a_row():
    batch, documents = full_batch(1, 12), torch.tensor([[0] * 5 + [1] * 7])
    parts = np.array([-1, 0, 0, 1, -1]), np.array([-1, -2, -2, -3, -3, -1, -1])
    shared = torch.from_numpy(np.concatenate([positions_of(each, len(each)) for each in parts]))[None]
    marked = torch.from_numpy(np.concatenate(parts))[None]
    causal = batch._replace(document_ids=documents, position_ids=torch.tensor([[*range(5), *range(7)]]))
    passages = causal._replace(position_ids=shared, part_ids=marked)
    for window in (None, 3):
        config = from_preset("tiny", vocab_size=97, sliding_window=window)
        assert model_flops(config, passages) == model_flops(config, causal)


def test_a_window_bounds_the_pairs():
    wide, narrow = (from_preset("tiny", vocab_size=97, sliding_window=w) for w in (None, 3))
    width = wide.num_hidden_layers * wide.num_attention_heads * wide.head_dim
    batch = full_batch(1, 64)
    difference = model_flops(wide, batch) - model_flops(narrow, batch)
    assert difference == 12 * width * (64 * 65 // 2 - (1 + 2 + 62 * 3))
