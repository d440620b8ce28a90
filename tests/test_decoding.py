"""Narrow weights and compiled steps: what they change, and that it is no more than rounding."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of parameters

import pytest
import torch
from conftest import STRATEGIES, tiny_model, windowed
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served_model
from test_generation_laws import models, prompts, under
from torch._dynamo.testing import CompileCounter

from eval import served_model as serving_module
from model.config import from_preset
from model.decoding import CompiledStep, Steps
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.sampling import Sampling
from model.serving import Int8Linear, ServedLinear, store_weights
from model.transformer import LanguageModel

SECONDS = Steps._seconds


def compiled_by(monkeypatch, backend) -> None:
    """Let everything that is compiled go to this backend, which takes no options."""
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic, options: real(f, dynamic=dynamic, backend=backend)
    )
    torch._dynamo.reset()


def not_compiled(function, dynamic, options):
    """In the place of `torch.compile`."""
    return function


def always(model: LanguageModel, *regimes: bool) -> Steps:
    """Steps that are compiled for one row (True), for more (False) or both, whatever the trials say."""

    def compiled_wins(self, step, rows):
        SECONDS(self, step, rows)
        return 0.0 if isinstance(step, CompiledStep) else 1.0

    steps = Steps(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "_seconds", compiled_wins)
        for for_one_row in regimes or (True, False):
            steps.compile(for_one_row)
    return steps


@settings(max_examples=12, deadline=None)
@given(st.data(), models, st.sampled_from(STRATEGIES))
def test_steps_over_all_slots_give_the_logits_of_the_model_as_it_is_written(data, model, strategy):
    model, rows = under(model, strategy), data.draw(st.lists(prompts(strategy), min_size=1, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", not_compiled)
        generators = [Generator(model, [], step=steps) for steps in (Steps(model), always(model))]
    caches = [generator.model.new_cache(len(rows)) for generator in generators]
    for generator, cache in zip(generators, caches, strict=True):
        generator.prefill(cache, rows)
    for _ in range(data.draw(st.integers(1, 12))):
        if len(rows) > 1 and data.draw(st.booleans()):  # a row is done
            rows.pop()
            for cache in caches:
                cache.select(list(range(len(rows))))
        ids = data.draw(st.lists(st.integers(0, 96), min_size=len(rows), max_size=len(rows)))
        one, other = (
            generator.decode(cache, ids) for generator, cache in zip(generators, caches, strict=True)
        )
        assert (one - other).abs().max() < 1e-9


@pytest.mark.parametrize("weights", [pytest.param("bfloat16", marks=pytest.mark.long), "int8"])
def test_what_was_compiled_once_serves_batches_of_any_size_and_length(weights, monkeypatch):
    counter = CompileCounter()
    compiled_by(monkeypatch, counter)
    shape = {"num_hidden_layers": 1, "head_dim": 24}  # 24 is a size that could be taken for the rows
    model = LanguageModel(from_preset("tiny", vocab_size=97, initializer_range=0.2, **shape)).eval()
    store_weights(model, weights)
    plain, traced = (Generator(model, [], step=steps) for steps in (Steps(model), always(model, False)))
    for lengths in ((3, 200, 17), (9, 4), (1, 1, 1, 1, 1)):  # a cache grows by 128 slots
        requests = [Request(Prompt((n % 90,) * n, (-1,) * n), Sampling(max_new_tokens=9)) for n in lengths]
        assert [len(answer.ids) for answer in traced.generate(requests)] == [9] * len(lengths)
        assert counter.frame_count == 1
    cache, other = (generator.model.new_cache(2) for generator in (plain, traced))
    for each in (cache, other):
        plain.prefill(each, [Prompt((1, 2), (-1, -1)), Prompt((3,), (-1,))])
    one, two = plain.decode(cache, [4, 5]), traced.decode(other, [4, 5])
    assert (one - two).abs().max() <= 0.03 * one.abs().max()


@pytest.mark.long
def test_two_models_of_one_shape_are_not_taken_for_each_other(monkeypatch):
    compiled_by(monkeypatch, "eager")
    for epsilon in (1e-6, 1.0):
        model = tiny_model(rms_norm_eps=epsilon, num_hidden_layers=1)
        plain, traced = (Generator(model, [], step=steps) for steps in (Steps(model), always(model, True)))
        logits = []
        for generator in (plain, traced):
            cache = generator.model.new_cache(1)
            generator.prefill(cache, [Prompt((1, 2, 3), (-1, -1, -1))])
            logits.append([generator.decode(cache, [4]), generator.decode(cache, [5])])
        for one, other in zip(*logits, strict=True):
            assert (one - other).abs().max() < 1e-9


def test_a_cache_too_long_for_the_compiled_step_takes_the_plain_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", not_compiled)
    model = tiny_model(num_hidden_layers=1, max_position_embeddings=5000)
    generator, taken = Generator(model, [], step=always(model, True)), []
    compute = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda *step: (taken.append(1), compute(*step))[1])
    cache = generator.model.new_cache(1)
    for tokens, compiled_steps in ((1, 1), (3800, 2), (200, 2)):
        generator.feed(cache, [Prompt((5,) * tokens, (-1,) * tokens)])
        generator.decode(cache, [6])
        assert len(taken) == compiled_steps


def test_shapes_that_int8_would_misread_are_refused():
    model = LanguageModel(from_preset("tiny", vocab_size=97, intermediate_size=172))
    with pytest.raises(UserError, match="multiple of 32 inputs, got 172; use bfloat16"):
        store_weights(model, "int8")


@pytest.mark.parametrize("quicker", [True, False])
def test_compiled_steps_are_kept_only_where_they_are_measured_to_be_faster(quicker, monkeypatch):
    monkeypatch.setattr(torch, "compile", not_compiled)
    steps = Steps(tiny_model())
    monkeypatch.setattr(
        Steps,
        "_seconds",
        lambda self, step, rows: 0.002 if isinstance(step, CompiledStep) == quicker else 0.003,
    )
    words = steps.compile(for_one_row=True)
    assert words.startswith("compiled (2.0 ms" if quicker else "not compiled (3.0 ms")
    assert (True in steps._compiled) == quicker and False not in steps._compiled


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("widens", [False, True])
def test_bfloat16_weights_are_multiplied_exactly_and_rounded_once(rows, widens):
    linear = torch.nn.Linear(64, 48, bias=False).bfloat16()
    x = torch.randn(2, rows, 64).bfloat16() if rows > 1 else torch.randn(1, 1, 64).bfloat16()
    got = ServedLinear(linear, widens)(x)
    exact = x.double() @ linear.weight.double().T
    assert got.dtype == torch.bfloat16 and got.shape == exact.shape
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


def test_int8_weights_are_off_by_half_a_step_at_most():
    linear = torch.nn.Linear(64, 48, bias=False)
    with torch.no_grad():
        linear.weight[3] = 0.0
        linear.weight[4] *= 100
    served = Int8Linear(linear)
    stored, scale = served.stored.double(), served.scale.double()[:, None]
    assert ((stored * scale - linear.weight).abs() <= 0.51 * scale)[stored.abs() < 127].all()
    assert ((stored * scale - linear.weight).abs() <= 0.01 * linear.weight.abs().amax(1, keepdim=True)).all()
    assert not served.weight[3].any()
    for rows in (1, 5, 9):  # few and many are multiplied in two ways
        x = torch.randn(rows, 64).bfloat16()
        exact = x.double() @ (stored * scale).T
        assert ((served(x).double() - exact).abs() <= exact.abs() * 2**-7 + 0.02 * exact.abs().amax()).all()


@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 5, 64), (9, 2, 64)])  # each takes a way of its own
@pytest.mark.parametrize("kind", [(ServedLinear, True), (ServedLinear, False), (Int8Linear,)])
def test_a_bias_is_added_in_every_form_of_weights(kind, shape):
    linear, x = torch.nn.Linear(64, 48).bfloat16(), torch.randn(shape).bfloat16()
    torch.nn.init.normal_(linear.bias, mean=50.0)
    serve, *widens = kind
    assert (serve(linear, *widens)(x).float() - linear(x).float()).abs().max() < 1


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_linear_layer_of_a_kind_of_its_own_is_served_as_it_is_written(weights):
    class Router(torch.nn.Linear):
        """Scores of 3 experts, from 5 inputs, which int8 would refuse."""

    model = LanguageModel(from_preset("tiny", vocab_size=97))
    model.model.layers[0].router = router = Router(5, 3)
    before = {type(part) for part in model.modules()}
    store_weights(model, weights)
    assert model.model.layers[0].router is router
    assert torch.nn.Linear in before and not any(type(part) is torch.nn.Linear for part in model.modules())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_narrow_weights_keep_the_count_and_nearly_the_logits(weights, family, tied):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "tie_word_embeddings": tied, "architecture": family}
    model = LanguageModel(from_preset("tiny", **shape)).eval()
    for name, parameter in model.named_parameters():  # biases begin at 0
        torch.nn.init.normal_(parameter, std=0.02) if name.endswith("bias") else None
    ids = torch.randint(97, (2, 12))
    count, before = model.num_parameters(), model(ids).detach()
    assert weights in store_weights(model, weights)
    after = model(ids)
    assert after.dtype == (torch.float32 if weights == "float32" else torch.bfloat16)
    error = (after.float() - before).abs().max() / before.abs().max()
    assert model.num_parameters() == count
    assert error < {"float32": 1e-6, "bfloat16": 0.03, "int8": 0.05}[weights]
    assert torch.isfinite(model(ids, None, ids))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_row_of_a_narrow_batch_is_answered_like_the_row_alone(weights):
    torch.manual_seed(0)
    model = LanguageModel(from_preset("tiny", vocab_size=97, initializer_range=0.2)).eval()
    store_weights(model, weights)
    generator = Generator(model, [])
    requests = [Request(Prompt((n,) * n, (-1,) * n), Sampling(6, log_probabilities=True)) for n in (3, 9, 5)]
    for request, got in zip(requests, generator.generate(requests), strict=True):
        [alone] = generator.generate([request])
        assert got.log_probabilities[0] == pytest.approx(alone.log_probabilities[0], abs=0.1)


def test_a_compiler_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(serving_module, "compiler_fault", lambda device: "no working C++ compiler")
    with pytest.raises(UserError, match="--compile: nothing can be compiled here .no working"):
        served_model("causal").in_form("float32", compiles=True, for_one_row=True)


def test_what_was_chosen_is_told(monkeypatch):
    monkeypatch.setattr(torch, "compile", not_compiled)
    monkeypatch.setattr(serving_module, "compiler_fault", lambda device: None)
    lines = []
    served = served_model("causal").in_form("bfloat16", True, True, lines.append)
    assert served.speed.startswith("bfloat16 weights") and "ms a step compiled" in served.speed
    assert len(lines) == 1 and "compiling" in lines[0]
    assert served.generator().step is served.steps


@pytest.mark.long
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_the_compiler_changes_no_more_than_rounding(weights):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = LanguageModel(
        from_preset("tiny", vocab_size=97, initializer_range=0.2, **windowed(None, 5))
    ).eval()
    store_weights(model, weights)
    plain, compiled = (Generator(model, [], step=steps) for steps in (Steps(model), always(model)))
    for lengths in ((3, 200, 17), (9, 4), (7,), (150,)):
        rows = [Prompt((n % 90,) * n, (-1,) * n) for n in lengths]
        caches = [generator.model.new_cache(len(rows)) for generator in (plain, compiled)]
        for cache in caches:
            plain.prefill(cache, rows)
        for token in (1, 2, 3):
            ids = [token] * len(rows)
            one, other = plain.decode(caches[0], ids), compiled.decode(caches[1], ids)
            assert (one - other).abs().max() <= (1e-4 if weights == "float32" else 0.06) * one.abs().max()
