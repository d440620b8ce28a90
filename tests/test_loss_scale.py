"""Training in float16: the scale of the loss, which changes nothing but what underflows or overflows."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
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

import trainer.setup
from model.errors import UserError
from trainer.loop import Training
from trainer.optimizer import STEPS_TO_DOUBLE, next_scale, unscale

HALF = ["--dtype", "float16"]


@pytest.mark.parametrize("seed", range(3))
def test_the_scale_and_the_updates_are_those_of_torchs_scaler(seed):
    """One weight, whose gradients are finite or not by chance; torch has no least scale."""
    chance, scale, steps = random.Random(seed), 2.0**16, 0
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.SGD([each], 0.1) for each in (ours, theirs)]
    scaler = torch.amp.GradScaler("cpu", growth_interval=STEPS_TO_DOUBLE)
    for _ in range(2 * STEPS_TO_DOUBLE + 50):
        factor = float("inf") if chance.random() < 0.0003 else 1.0
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
        nats = backward(training, batch, scale)
        next(training.model.parameters()).grad.fill_(float("nan"))
        return nats

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
