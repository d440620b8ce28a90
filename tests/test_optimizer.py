"""Updates, learning rates, and the scale of the loss in float16, without which gradients underflow."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_runs import (
    after_step,
    assert_same_course,
    data,
    init,
    losses,
    metrics,
    pretrain,
    run_trainer,
    sft,
)

import trainer.optimizer
import trainer.setup
from model.config import from_preset
from model.errors import UserError
from model.transformer import LanguageModel
from trainer.loop import Training
from trainer.newton_schulz import ITERATIONS, QUINTIC, orthogonalise
from trainer.optimizer import (
    AdamW,
    Muon,
    Optimizers,
    count_steps,
    multiplier,
    next_scale,
    split_parameters,
    unscale,
    warmup_steps,
)
from trainer.settings import OptimizerSettings, PretrainSettings, ScheduleSettings

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 8), (8, 24)]


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def draw_gradients(seed: int, *sides: list[nn.Parameter]) -> None:
    for parameters in sides:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)


def test_adamw_equals_torchs_fused_one_to_the_bit():
    ours, theirs = matrices(), matrices()
    torchs = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.0}, {"params": theirs[2:], "weight_decay": 0.1}],
        lr=0.02,
        betas=(0.9, 0.95),
        fused=True,
    )
    own = AdamW([(ours[:2], 0.0), (ours[2:], 0.1)], 0.9, 0.95)
    for step in range(4):
        draw_gradients(step, ours, theirs)
        own.step(0.02)
        torchs.step()
    assert all(map(torch.equal, ours, theirs))
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(own.state[mine][name], value) for name, value in torchs.state[other].items())


def test_muon_equals_torchs_where_torch_computes_in_bfloat16():
    ours, theirs = matrices(), matrices()
    muon = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    own = Muon(ours, torch.bfloat16, decay=0.1)
    for step in range(4):
        draw_gradients(step, ours, theirs)
        own.step(0.02)
        muon.step()
    for start, mine, other in zip(matrices(), ours, theirs, strict=True):
        moved = (other - start).norm()
        assert (mine - other).norm() < 0.02 * moved


def test_orthogonalised_matrices_keep_their_directions_and_lose_their_sizes():
    batch = torch.randn(3, 6, 10, dtype=torch.float64)
    result = orthogonalise(batch, torch.float64)
    u, _, v = torch.linalg.svd(batch, full_matrices=False)
    sizes = u.mT @ result @ v.mT
    torch.testing.assert_close(sizes, torch.diag_embed(sizes.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-9)
    assert ((sizes.diagonal(dim1=1, dim2=2) > 0.5) & (sizes.diagonal(dim1=1, dim2=2) < 1.3)).all()


@pytest.mark.parametrize("dtype, distance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("shape", [(3, 7, 9), (3, 7, 40)])
def test_iterations_in_any_form_equal_the_written_out_ones_also_of_lesser_rank(shape, dtype, distance):
    n, rows, columns = shape
    batch = torch.randn(n, rows, 4, dtype=torch.float64) @ torch.randn(n, 4, columns, dtype=torch.float64)
    (a, b, c), expected = QUINTIC, []
    for matrix in batch:
        x = matrix / matrix.norm()
        for _ in range(ITERATIONS):
            x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
        expected.append(x)
    assert (orthogonalise(batch.to(dtype), dtype) - torch.stack(expected)).abs().max() < distance


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_of_layers_decay(name, family):
    model = LanguageModel(from_preset("tiny", vocab_size=50, tie_word_embeddings=False, architecture=family))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    settings = OptimizerSettings(name=name, learning_rate=0.1, weight_decay=0.5)
    Optimizers(model, settings, torch.float32).step(0.5)
    for key, value in model.state_dict().items():
        decays = "proj.weight" in key
        torch.testing.assert_close(value, before[key] * (1 - 0.5 * 0.1 * 0.5 if decays else 1))


def test_muon_takes_what_maps_states_to_states_and_no_tables_routers_or_biases():
    class Router(nn.Linear):
        """Scores of experts."""

    model = LanguageModel(from_preset("tiny", vocab_size=50, tie_word_embeddings=False))
    layer = model.model.layers[0]
    layer.positions, layer.router = nn.Embedding(512, 64), Router(64, 4, bias=False)
    layer.scales, layer.biased = nn.Parameter(torch.ones(4, 64)), nn.Linear(64, 64)
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices, others = split_parameters(model)
    taken = {names[parameter].split(".")[-2] for parameter in matrices}
    assert taken == {*(f"{each}_proj" for each in ("q", "k", "v", "o", "gate", "up", "down")), "biased"}
    assert len(matrices) + len(others) == len(names) and all(each.ndim == 2 for each in matrices)


def test_warmup_stable_decay_rises_stays_and_falls():
    schedule = ScheduleSettings("wsd", warmup_steps=3, decay_fraction=0.4, final_fraction=0.1)
    course = [multiplier(step, 10, schedule) for step in range(11)]
    assert course == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])


def test_without_warmup_or_decay_the_rate_is_the_peak_from_the_first_step():
    assert [multiplier(step, 4, ScheduleSettings("wsd", 0, 0.0)) for step in range(4)] == [1, 1, 1, 1]
    assert [multiplier(step, 4, ScheduleSettings("linear", 0)) for step in range(5)] == [
        1,
        0.75,
        0.5,
        0.25,
        0,
    ]
    assert multiplier(0, 4, ScheduleSettings("cosine", 0)) == 1


def test_a_longer_training_takes_the_same_steps_until_the_decay_of_the_shorter_one():
    schedule = ScheduleSettings("wsd", warmup_steps=3, decay_fraction=0.4)
    shorter, longer = ([multiplier(step, total, schedule) for step in range(10)] for total in (10, 20))
    assert shorter[:7] == longer[:7] == [0.25, 0.5, 0.75, 1, 1, 1, 1] and shorter[7:] != longer[7:]


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear"])
def test_a_schedule_ends_at_its_final_fraction(name):
    schedule = ScheduleSettings(name, warmup_steps=2, final_fraction=0.1)
    course = [multiplier(step, 50, schedule) for step in range(51)]
    assert course[2] == max(course) == 1 and course[50] == pytest.approx(0.1)
    assert course[2:] == sorted(course[2:], reverse=True)


def test_linear_and_cosine_fall_from_the_warmup_on():
    linear, cosine = (ScheduleSettings(name, warmup_steps=2) for name in ("linear", "cosine"))
    assert [multiplier(step, 6, linear) for step in range(2, 7)] == [1, 0.75, 0.5, 0.25, 0]
    halves = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    assert [multiplier(step, 6, cosine) for step in range(2, 7)] == pytest.approx(halves)


@pytest.mark.parametrize(
    "length, steps",
    [
        ({"max_steps": 7}, 7),
        ({"epochs": 2}, 6),  # 11 rows in steps of 4 rows are 3 steps, the last one short
        ({"epochs": 1.4}, 5),
        ({"max_tokens": 500}, 3),
        ({"max_tokens": 501}, 4),
        ({"max_steps": 7, "max_minutes": 0.1}, 7),
    ],
)
def test_a_length_becomes_steps(length, steps):
    settings = PretrainSettings(data=("a",), out="b", schedule=ScheduleSettings(warmup_steps=2), **length)
    assert count_steps(settings, {"rows": 11, "tokens": 500}, rows_per_step=4) == steps


@pytest.mark.parametrize("given, total, taken", [(20, 60, 20), (20, 59, 5), (20, 6, 0), (0, 6, 0)])
def test_a_short_training_has_a_short_warmup(given, total, taken):
    assert warmup_steps(total, ScheduleSettings(warmup_steps=given)) == taken
    assert multiplier(taken, total, ScheduleSettings(warmup_steps=given)) == 1


HALF = ["--dtype", "float16"]


@pytest.mark.parametrize("seed", range(3))
def test_the_scale_and_the_updates_are_those_of_torchs_scaler(seed, monkeypatch):
    """One weight, whose gradients are finite or not by chance; torch has no least scale."""
    monkeypatch.setattr(trainer.optimizer, "STEPS_TO_DOUBLE", 40)
    chance, scale, steps = random.Random(seed), 2.0**16, 0
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.SGD([each], 0.1) for each in (ours, theirs)]
    scaler = torch.amp.GradScaler("cpu", growth_interval=40)
    for _ in range(200):
        factor = float("inf") if chance.random() < 0.015 else 1.0
        (ours.square().sum() * scale * factor).backward()
        scaler.scale(theirs.square().sum() * factor).backward()
        unscale([ours], scale)
        is_finite = bool(ours.grad.isfinite().all())
        if is_finite:
            optimizers[0].step()
        scale, steps = next_scale(scale, steps, is_finite)
        scaler.step(optimizers[1])
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert scale == scaler.get_scale() and torch.equal(ours, theirs)
    assert next_scale(1.0, 7, is_finite=False) == (1.0, 0)


def test_a_scaled_loss_gives_the_same_updates_to_the_bit(sft, tmp_path, monkeypatch):
    flags = ["--max_steps", 4, "--gradient_accumulation", 2, "--optimizer.max_gradient_norm", 0.1]
    sft(tmp_path / "plain", *flags)
    monkeypatch.setattr(trainer.setup, "first_scale", lambda dtype: 2.0**16)
    sft(tmp_path / "scaled", *flags)
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "scaled")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "scaled")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float16_trains_as_float32_does(sft, tmp_path, optimizer):
    flags = ["--max_steps", 4, "--gradient_accumulation", 2, "--optimizer.name", optimizer]
    sft(tmp_path / "whole", *flags)
    sft(tmp_path / "half", *flags, *HALF)
    assert_same_course(tmp_path / "whole", tmp_path / "half", "float16")


def scale_of(out: Path) -> tuple[float, int]:
    progress = json.loads(
        (out / "checkpoints" / (out / "latest").read_text() / "training/progress.json").read_text()
    )
    return progress["loss_scale"], progress["steps_at_scale"]


def test_overflows_of_the_first_steps_halve_the_scale_and_end_nothing(
    pretrain, tmp_path, monkeypatch, capsys
):
    seen, backward = [], Training._backward

    def watched(training, batch, scale):
        seen.append({name: value.clone() for name, value in training.model.state_dict().items()})
        return backward(training, batch, scale)

    monkeypatch.setattr(Training, "_backward", watched)
    monkeypatch.setattr(trainer.setup, "first_scale", lambda dtype: 2.0**30)
    pretrain(tmp_path / "run", "--max_steps", 20, *HALF)
    skipped = metrics(tmp_path / "run")[-1]["skipped_steps"]
    assert 5 < skipped < 16, "more than failures may be in a row"
    assert scale_of(tmp_path / "run") == (2.0 ** (30 - skipped), 20 - skipped)
    for before in seen[1 : skipped + 1]:
        torch.testing.assert_close(before, seen[0], rtol=0, atol=0)
    assert not torch.equal(seen[skipped + 1]["model.norm.weight"], seen[0]["model.norm.weight"])
    assert None not in losses(tmp_path / "run")  # the loss is finite
    assert (
        f"step 1: a gradient left the range of float16, update skipped, loss scale halved to {2**29:,}"
        in (capsys.readouterr().out)
    )


def test_gradients_that_are_never_finite_end_a_run_in_float16_too(pretrain, tmp_path, monkeypatch):
    backward = Training._backward

    def broken(training, batch, scale):
        sums = backward(training, batch, scale)
        next(training.model.parameters()).grad.fill_(float("nan"))
        return sums

    monkeypatch.setattr(Training, "_backward", broken)
    with pytest.raises(
        UserError, match="not finite in 5 steps in a row, up to step 21;"
    ):  # 16 halvings first
        pretrain(tmp_path / "run", "--max_steps", 40, *HALF)


def test_a_scale_survives_an_interruption_to_the_bit(sft, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.setup, "first_scale", lambda dtype: 2.0**24)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--max_steps", 16, "--save_every_steps", 3, "--optimizer.name", "muon", *HALF]
    sft(whole, *flags)

    def crash():
        raise RuntimeError("power cut")

    for step in (2, 5, 11):
        with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
            after_step(patch, step, crash)
            sft(broken, *flags)
    sft(broken, *flags)
    assert metrics(whole)[-1]["skipped_steps"] > 3
    assert metrics(whole) == metrics(broken) and scale_of(whole) == scale_of(broken)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
