"""The loop: what it computes, how it is interrupted, what it leaves, and what it refuses."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import (
    SHORT,
    after_step,
    assert_same_course,
    data,
    init,
    line,
    losses,
    metrics,
    pretrain,
    run_trainer,
    sft,
)

from dataset.printing import about
from model.checkpoint import load_checkpoint
from model.errors import UserError
from trainer import loss_picture
from trainer.loop import Training
from trainer.loss_picture import save_picture
from trainer.settings import PretrainSettings


def test_a_training_lowers_the_loss_and_leaves_a_model_and_its_story(
    pretrain, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loss_picture, "save_picture", save_picture)
    out = tmp_path / "run"
    pretrain(out, "--max_steps", 12, "--validation", data / "pretrain", "--validate_every_steps", 6)
    first, *_, last = losses(out)
    assert last < first - 0.5
    assert load_checkpoint(out).model.config.prompt_mask == "causal"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 12 and summary["tokens"] > summary["targets"] > 0
    validations = [record for record in metrics(out) if "validation" in record]
    assert [record["step"] for record in validations] == [6, 12]
    assert summary["validation"]["pretrain"]["best"]["nats_per_token"] == validations[1]["nats_per_token"]
    assert validations[1]["bits_per_byte"] < validations[0]["bits_per_byte"] < 8
    shown = capsys.readouterr().out
    for part in (
        "\nnote: of the data, tokens after cuts ",
        "\nnote: of pretrain, tokens after cuts ",
        "24 documents",
        "real",
        "with loss",
        "parameters",
        "float32",
        "threads",
        "tok/s",
        "wait",
    ):
        assert part in shown


def test_the_saved_settings_are_a_recipe_for_the_same_run(pretrain, tmp_path):
    from dataset.command_line import parse

    out = tmp_path / "run"
    pretrain(out, "--max_steps", 3, "--optimizer.name", "muon")
    settings = parse(PretrainSettings, "", ["--config", str(out / "settings.yaml")])
    assert settings.optimizer.name == "muon" and settings.max_steps == 3 and settings.model.hidden_size == 32


def test_a_finished_run_is_recognised_and_left_alone(pretrain, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain(out, "--max_steps", 3)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}
    capsys.readouterr()
    pretrain(out, "--max_steps", 3)
    assert capsys.readouterr().out == f"{out} is already finished\n"
    assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.parametrize(
    "name, optimizer, dtype, how, shape",
    [
        ("pretrain", "adamw", "float32", "signal", ()),
        ("pretrain", "adamw", "bfloat16", "crash", ()),
        ("pretrain", "muon", "bfloat16", "crash", ("--model.architecture", "gpt2")),
        ("pretrain", "muon", "float32", "signal", ("--model.architecture", "gemma2")),
        ("pretrain", "muon", "float32", "crash", ("--model.architecture", "qwen3_moe")),
        ("sft", "muon", "bfloat16", "signal", ()),
        ("sft", "muon", "float32", "crash", ()),
    ],
)
def test_a_run_that_was_interrupted_ends_as_if_it_was_not(
    name, optimizer, dtype, how, shape, request, tmp_path, monkeypatch
):
    train = request.getfixturevalue(name)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = [
        "--max_steps",
        11,
        "--dtype",
        dtype,
        "--optimizer.name",
        optimizer,
        "--save_every_steps",
        4,
        "--log_every_steps",
        3,
        *shape,
    ]
    train(whole, *flags)

    def crash():
        raise RuntimeError("power cut")

    after_step(monkeypatch, 7, crash if how == "crash" else lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RuntimeError if how == "crash" else SystemExit):
        train(broken, *flags)
    assert (broken / "latest").read_text() == ("step-00000004" if how == "crash" else "step-00000007")
    torch.manual_seed(99)  # whatever happens in between
    train(broken, *flags)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert metrics(whole) == metrics(broken)
    file = "checkpoints/step-00000011/training/process-0.safetensors"
    torch.testing.assert_close(load_file(whole / file), load_file(broken / file), rtol=0, atol=0)


def test_a_signal_says_how_to_go_on_and_ends_with_its_exit_code(pretrain, tmp_path, monkeypatch, capfd):
    after_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        pretrain(tmp_path / "run", "--max_steps", 9)
    assert caught.value.code == 128 + signal.SIGTERM
    shown = capfd.readouterr()
    assert "stopped and saved after step 2 of 9; the same command continues from there" in shown.out
    assert "SIGTERM: finishing this step, then saving" in shown.err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_time_limit_stops_without_shaping_the_schedule(pretrain, tmp_path):
    whole, limited = tmp_path / "whole", tmp_path / "limited"
    pretrain(whole, "--max_steps", 4)
    for _ in range(2):
        pretrain(limited, "--max_steps", 4, "--max_minutes", 1e-9)
    assert (limited / "latest").read_text() == "step-00000002"
    pretrain(limited, "--max_steps", 4)
    assert metrics(whole) == metrics(limited)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_give_the_same_update_however_they_are_spread(sft, tmp_path, dtype):
    flags = ["--max_steps", 4, "--dtype", dtype]
    sft(tmp_path / "one", *flags, "--batch_size", 8)
    sft(tmp_path / "two", *flags, "--batch_size", 4, "--gradient_accumulation", 2)
    assert_same_course(tmp_path / "one", tmp_path / "two", dtype)


@pytest.mark.parametrize("units", [{"amx_bf16": True}, {}])
def test_the_precision_is_that_of_the_machine_also_after_a_training_of_another(
    sft, tmp_path, monkeypatch, capsys, units
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    other = "float32" if units else "bfloat16"
    sft(tmp_path / "other", "--max_steps", 3, "--dtype", other)
    assert f"{other} (by --dtype)" in capsys.readouterr().out
    sft(tmp_path / "own", "--max_steps", 3, "--dtype", "auto")
    expected = "bfloat16 (amx_bf16 multiplies" if units else "float32 (nothing here multiplies bfloat16"
    assert expected in capsys.readouterr().out


def test_an_update_that_is_not_finite_is_skipped_and_counted(pretrain, tmp_path, monkeypatch):
    backward = Training._backward
    calls = []

    def poisoned(training, batch, scale):
        calls.append({name: value.clone() for name, value in training.model.state_dict().items()})
        sums = backward(training, batch, scale)
        return [float("nan")] if len(calls) == 2 else sums

    monkeypatch.setattr(Training, "_backward", poisoned)
    pretrain(tmp_path / "run", "--max_steps", 4)
    torch.testing.assert_close(calls[1], calls[2], rtol=0, atol=0)
    assert [record["skipped_steps"] for record in metrics(tmp_path / "run")] == [0, 1, 1, 1]
    assert losses(tmp_path / "run")[1] is None


def test_updates_that_stay_not_finite_end_the_run_with_the_batch_saved(sft, init, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "_backward", lambda *_, **__: [float("inf")])
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(1.0))
    with pytest.raises(UserError, match="not finite in 5 steps in a row, up to step 5"):
        sft(tmp_path / "run", "--max_steps", 9)
    batch = load_file(tmp_path / "run/not_finite-0.safetensors")
    assert batch["ids"].shape == batch["labels"].shape == (4, 48)
    assert not (tmp_path / "run/latest").exists()


@pytest.mark.parametrize("mask", ["segment", "history"])
def test_a_fine_tuning_is_saved_with_its_prompt_mask(sft, tmp_path, mask):
    sft(tmp_path / "run", "--max_steps", 3, "--prompt_mask", mask)
    assert load_checkpoint(tmp_path / "run").model.config.prompt_mask == mask


def test_the_prompt_mask_is_kept_unless_another_one_is_asked_for(sft, tmp_path, capsys):
    sft(tmp_path / "first", "--max_steps", 3, "--prompt_mask", "prefix")
    assert "trained with prompt mask causal until now" in capsys.readouterr().out
    again = ["--init", tmp_path / "first", "--max_steps", 3]
    sft(tmp_path / "kept", *again)
    assert load_checkpoint(tmp_path / "kept").model.config.prompt_mask == "prefix"
    assert "until now" not in capsys.readouterr().out
    sft(tmp_path / "changed", *again, "--prompt_mask", "causal")
    assert load_checkpoint(tmp_path / "changed").model.config.prompt_mask == "causal"
    assert "trained with prompt mask prefix until now" in capsys.readouterr().out


def test_pretraining_takes_prefixes_and_saved_weights(pretrain, run_trainer, data, tmp_path):
    pretrain(tmp_path / "first", "--max_steps", 3, "--prompt_mask", "prefix")
    assert load_checkpoint(tmp_path / "first").model.config.prompt_mask == "prefix"
    more = {"--data": data / "pretrain", "--init": tmp_path / "first", "--out": tmp_path / "more"}
    run_trainer("pretrain", *line(more | SHORT, "--max_steps", 3))
    assert load_checkpoint(tmp_path / "more").model.config.prompt_mask == "prefix"


def test_the_time_left_bears_any_number_of_steps():
    for seconds, words in ((0.51, "0.51 s"), (204, "3.4 min"), (71.2 * 3600, "71 h"), (1e6, "12 days")):
        assert about(seconds) == words
    assert about(1e300) == "9999 days"
