"""Models with an encoder in every command: trained on, cut short, chatted with, measured, never exported."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import signal

import pytest
from safetensors.torch import load_file
from training_runs import after_step, data, init, losses, pretrain, run_trainer, sft

from model.checkpoint import load_checkpoint
from model.config import WITH_ENCODER
from model.errors import UserError
from scripts import chat, evaluate, export_hf


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_it_is_pretrained_cut_short_fine_tuned_served_and_not_exported(
    tmp_path, monkeypatch, pretrain, sft, command, family
):
    flags = ["--model.architecture", family, "--prompt_mask", "prefix", "--max_steps", 6]
    pretrain(tmp_path / "whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        after_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(tmp_path / "cut", *flags)
    pretrain(tmp_path / "cut", *flags)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")

    chats = ["--init", tmp_path / "whole", "--max_steps", 8, "--optimizer.learning_rate", 0.01]
    sft(tmp_path / "sft", *chats, "--prompt_mask", "segment")
    assert losses(tmp_path / "sft")[-1] < losses(tmp_path / "sft")[0]
    assert load_checkpoint(tmp_path / "sft").model.config.prompt_mask == "segment"
    model = ["--model", tmp_path / "sft", "--max_new_tokens", 4]
    assert command(chat, *model, "--prompt", "Where is Ada?")
    question = {"context": "Ada goes to the tower.", "question": "Where is Ada?", "answers": ["tower"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    asked = ["--data", tmp_path / "questions.jsonl", "--out", tmp_path / "evaluation"]
    assert "questions" in command(evaluate, *model, *asked)
    with pytest.raises(UserError, match=f"cannot be exported: it has architecture {family}"):
        command(export_hf, "--model", tmp_path / "sft", "--out", tmp_path / "exported")


def test_a_mask_without_blocks_is_refused(tmp_path, pretrain):
    with pytest.raises(UserError, match="architecture merged reads the blocks .* expected a mask that has"):
        pretrain(tmp_path / "run", "--model.architecture", "merged", "--max_steps", 1)
    assert not (tmp_path / "run").exists()


def test_another_number_of_encoder_layers_than_the_weights_have_is_named(tmp_path, pretrain):
    pretrain(tmp_path / "run", "--model.architecture", "merged", "--prompt_mask", "prefix", "--max_steps", 1)
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_encoder_layers": 10**9}))
    with pytest.raises(UserError, match="num_encoder_layers is 1000000000, in the weights 2"):
        load_checkpoint(tmp_path / "run")
