"""Mixtures of experts: what a token gets, and how a bias keeps experts busy however a step is spread."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

from dataclasses import replace

import pytest
import torch
from training_runs import data, experts, metrics, pretrain, run_trainer
from two_processes import first_batch, prepare, settings_for

from model.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from model.config import from_preset
from model.errors import UserError
from model.layers import feed_forward_of
from model.masks import Layout
from model.moe import MixtureOfExperts, Router
from model.serving import Int8Linear, store_weights
from model.transformer import LanguageModel
from tests.conftest import tiny_model
from trainer.balance import Balance
from trainer.optimizer import split_parameters


def drawn_mixture(**parts) -> MixtureOfExperts:
    """Five experts with a bias that changes who is chosen."""
    shape = {"num_experts": 5, "num_experts_per_tok": 2, "architecture": "qwen3_moe", "hidden_size": 16}
    mixture = feed_forward_of(from_preset("tiny", vocab_size=97, **shape | parts)).double()
    mixture.gate.e_score_correction_bias[:] = torch.randn(5)
    return mixture


def by_hand(mixture: MixtureOfExperts, x: torch.Tensor, normalises: bool) -> torch.Tensor:
    """Token by token, from the definition."""
    rows = []
    for token in x.flatten(0, 1):
        scores = (mixture.gate.weight @ token).softmax(0)
        ranked = sorted(
            range(5), key=lambda n: -float((scores[n] + mixture.gate.e_score_correction_bias[n]).detach())
        )
        total = sum(scores[n] for n in ranked[:2]) if normalises else 1
        rows.append(sum(mixture.experts[n](token) * scores[n] / total for n in ranked[:2]))
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("normalises", [True, False])
def test_a_token_gets_the_sum_of_its_experts_by_their_scores(normalises, monkeypatch):
    mixture, x = drawn_mixture(norm_topk_prob=normalises), torch.randn(2, 9, 16, dtype=torch.float64)
    noise, results = torch.randn_like(x), []
    for is_compiling, form in ((False, mixture), (True, mixture), (False, None)):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda is_compiling=is_compiling: is_compiling)
        y = mixture(x) if form else by_hand(mixture, x, normalises)
        results.append([y, *torch.autograd.grad(y, [*mixture.parameters()], noise, materialize_grads=True)])
    for result in results[:2]:
        for one, other in zip(result, results[2], strict=True):
            assert (one - other).abs().max() < 1e-12


def test_an_expert_without_tokens_has_a_gradient_of_zeros_and_is_not_computed_without_gradients():
    mixture, x = drawn_mixture(), torch.randn(1, 1, 16, dtype=torch.float64)
    computed = []
    for expert in mixture.experts:
        expert.register_forward_hook(lambda module, inputs, output: computed.append(len(output)))
    mixture(x).sum().backward()
    assert sorted(computed) == [0, 0, 0, 1, 1]
    assert sum(bool((e.down_proj.weight.grad == 0).all()) for e in mixture.experts) == 3
    computed.clear()
    with torch.no_grad():
        mixture(x)
    assert computed == [1, 1]


def test_the_bias_of_an_expert_chooses_it_and_does_not_weigh_it():
    config = from_preset("tiny", vocab_size=97, architecture="qwen3_moe", num_experts=3, hidden_size=3)
    router = Router(config)
    router.weight.data = torch.tensor([[4.0, 1, 1], [2, 1, 1], [1, 1, 1]]).log()
    weights, chosen = router(torch.tensor([[1.0, 0, 0]]))  # scores 4/7, 2/7, 1/7
    assert chosen.tolist() == [[0, 1]] and weights.tolist() == [pytest.approx([2 / 3, 1 / 3])]
    router.e_score_correction_bias[2] = 0.2
    weights, chosen = router(torch.tensor([[1.0, 0, 0]]))
    assert chosen.tolist() == [[0, 2]] and weights.tolist() == [pytest.approx([4 / 5, 1 / 5])]


def test_experts_of_no_score_that_a_bias_chooses_give_nothing():
    router = Router(
        from_preset("tiny", vocab_size=97, architecture="qwen3_moe", num_experts=3, hidden_size=1)
    )
    router.weight.data = torch.tensor([[300.0], [0], [0]])
    router.e_score_correction_bias[1:] = 2
    weights, chosen = router(torch.ones(1, 1))
    assert chosen.sort().values.tolist() == [[1, 2]] and weights.tolist() == [[0, 0]]


def test_muon_takes_the_matrices_of_experts_and_no_router():
    model = LanguageModel(from_preset("tiny", vocab_size=50, architecture="qwen3_moe"))
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices, others = ({names[each] for each in part} for part in split_parameters(model))
    assert {name for name in others if ".mlp." in name} == {
        f"model.layers.{n}.mlp.gate.weight" for n in (0, 1)
    }
    assert sum(".experts." in name for name in matrices) == 2 * 8 * 3


def test_a_trained_bias_moves_against_the_load_until_experts_are_equally_busy():
    model = tiny_model(architecture="qwen3_moe")
    for part in model.modules():
        if isinstance(part, Router):
            part.e_score_correction_bias[0] = 0.2  # every token takes it at first
    balance, violations = Balance(model, 0.01, lambda *numbers: numbers), []
    layout = Layout(*(torch.zeros(4, 48, dtype=torch.long),) * 3)
    ids = torch.randint(97, (4, 48))
    for _ in range(60):
        model(ids, layout)
        balance.step()
        balance.clear()
        violations.append(balance.figures()["expert_max_violation"])
    assert violations[0] > 0.5 and violations[-1] < 0.25
    assert 0.6 < balance.figures()["expert_load_least"] < 1 < balance.figures()["expert_load_most"] < 1.4


def biases(model: LanguageModel) -> torch.Tensor:
    return torch.stack([part.e_score_correction_bias for part in model.modules() if isinstance(part, Router)])


@pytest.mark.parametrize("spread", [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("recomputes", [False, True])
def test_biases_move_by_the_load_of_real_tokens_however_a_step_is_spread(data, experts, spread, recomputes):
    rows, accumulation = spread
    settings = {"batch_size": rows, "gradient_accumulation": accumulation}
    training = prepare(settings_for(data, experts, "unused", gradient_checkpointing=recomputes, **settings))
    batch, model = first_batch(training), load_checkpoint(experts).model
    real, loads = batch.document_ids >= 0, []
    assert not real.all()
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, inputs, output: loads.append(output[1]))
    model(batch.ids, batch.layout)
    expected = []
    for chosen in loads:
        load = [int((chosen[real.flatten()] == n).sum()) for n in range(8)]
        mean = sum(load) / 8
        expected.append([0.001 * ((each < mean) - (each > mean)) for each in load])
    training._update(batch)
    assert torch.equal(biases(training.setup.inputs.start.model), torch.tensor(expected))


def test_a_step_that_is_skipped_moves_no_bias(data, experts):
    training = prepare(settings_for(data, experts, "unused", batch_size=8, gradient_accumulation=1))
    model = training.setup.inputs.start.model
    training.reporter.begin(training.progress)
    training.device.accelerator.backward = lambda nats: (nats * float("nan")).backward()
    training._update(first_batch(training))
    assert training.progress.skipped_steps == 1 and not biases(model).any()


def test_the_metrics_tell_the_load_of_experts(pretrain, tmp_path):
    pretrain(tmp_path, "--max_steps", 2, "--model.architecture", "qwen3_moe", "--model.num_experts", 4)
    for record in metrics(tmp_path):
        assert 0 <= record["expert_load_least"] <= 1 <= record["expert_load_most"] <= 2
        assert 0 <= record["expert_max_violation"] <= record["expert_load_most"] - 1
    assert biases(load_checkpoint(tmp_path).model).abs().max() == pytest.approx(0.002)


def test_experts_answer_in_int8_and_the_router_as_it_is():
    torch.manual_seed(0)
    model = LanguageModel(from_preset("tiny", vocab_size=97, architecture="qwen3_moe", num_experts=2))
    ids = torch.randint(97, (2, 12))
    before = model(ids).detach()
    store_weights(model, "int8")
    mixture = model.model.layers[0].mlp
    assert type(mixture.gate) is Router and mixture.gate.weight.dtype == torch.bfloat16
    assert all(type(expert.up_proj) is Int8Linear for expert in mixture.experts)
    with torch.no_grad():
        error = (model(ids).float() - before).abs().max() / before.abs().max()
    assert error < 0.05 and torch.isfinite(model(ids)).all()


def test_a_mixture_without_its_biases_is_one_of_transformers(tmp_path):
    from transformers import Qwen3MoeForCausalLM

    model, ids = tiny_model(architecture="qwen3_moe"), torch.randint(97, (2, 30))
    save_checkpoint(tmp_path / "ours", model.float())
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs", drops_router_bias=True)
    theirs = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4
    theirs.save_pretrained(tmp_path / "back")
    config = replace(model.config, router_bias=False)
    for folder in ("theirs", "back"):
        loaded = load_checkpoint(tmp_path / folder).model
        assert loaded.config == config and torch.equal(loaded(ids), model(ids)), folder


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"num_experts": 4}, r"expected 1 up to num_experts \(4\), got None"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, r"expected 1 up to num_experts \(2\), got 3"),
        ({"router_bias": True}, "expected num_experts with them, got none"),
        ({"norm_topk_prob": False}, "expected num_experts with them, got none"),
        ({"architecture": "qwen3_moe", "num_experts_per_tok": 0}, "num_experts_per_tok must be greater"),
    ],
)
def test_experts_that_cannot_be_are_one_line(parts, line):
    with pytest.raises(UserError, match=line):
        from_preset("tiny", vocab_size=97, **parts)
