"""The trainers as commands: what they accept, and what they refuse in one line."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SHAPE, SHORT, data, init, line, metrics, pretrain, run_trainer, sft

from dataset.tokenizer import Tokenizer
from model.checkpoint import load_checkpoint
from model.errors import UserError
from tests.conftest import windows_of
from trainer.run_dir import RunDirectory


@pytest.mark.parametrize(
    "length, steps", [(["--max_steps", 4], 4), (["--epochs", 1.5], 5), (["--max_tokens", 700], 5)]
)
def test_a_length_can_be_given_in_steps_epochs_and_tokens(pretrain, tmp_path, length, steps):
    pretrain(tmp_path / "run", *length)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == steps


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_seq_len", 4096], "--max_seq_len is 4096 but the model takes 512 tokens"),
        (["--model.vocab_size", 100], "the tokenizer has 290 tokens, got room for 100"),
        (["--model.preset", "huge"], "unknown model preset 'huge'; choose one of tiny"),
        (["--data", "{data}/sft"], "holds sft data; expected what prepare_data --kind pretrain writes"),
        (["--data", "{data}/nowhere"], "no token store in"),
        (["--data", "{data}/pretrain", "{data}/other"], "prepared with different tokenizers"),
        (["--validation", "{data}/other"], "prepared with another tokenizer"),
        (["--validation", "{data}/sft"], "holds sft data"),
        (["--tracker", "abacus"], "--tracker: expected none or one of aim, .*got abacus"),
        (["--out", "{data}/text.jsonl"], "is a file; expected the name of a folder"),
        (["--out", "{data}"], "and no run; choose a new folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(pretrain, data, tmp_path, flags, message):
    flags = [str(flag).format(data=data) for flag in flags]
    with pytest.raises(UserError, match=message):
        pretrain(tmp_path / "run", "--max_steps", 9, *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "{data}/pretrain"], "holds pretrain data; expected what prepare_data --kind sft writes"),
        (["--init", "{data}"], "config.json not found; expected a model directory"),
        (
            ["--supervise", "all", "--prompt_mask", "prefix"],
            "supervise all does not go with prompt_mask prefix",
        ),
        (["--max_seq_len", 16], "no answer fits into 16 tokens"),
    ],
)
def test_what_does_not_fit_a_fine_tuning_is_refused(sft, data, tmp_path, flags, message):
    flags = [str(flag).format(data=data) for flag in flags]
    with pytest.raises(UserError, match=message):
        sft(tmp_path / "run", "--max_steps", 9, *flags)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_can_begin_with_fresh_weights(run_trainer, data, tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        places = {"--data": data / "sft", "--out": tmp_path / name, "--init": "fresh", "--seed": seed}
        run_trainer("sft", *line(places | SHAPE | SHORT, "--max_steps", 3))
    one, same, other = (load_checkpoint(tmp_path / name).model for name in ("one", "same", "other"))
    assert one.config.hidden_size == SHAPE["--model.hidden_size"]
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    run_trainer("sft", *line(places | SHAPE | SHORT, "--max_steps", 3))  # the same run, already finished
    with pytest.raises(UserError, match="model.hidden_size was 32, is 16"):
        run_trainer("sft", *line(places | SHAPE | SHORT, "--max_steps", 3, "--model.hidden_size", 16))


def test_what_a_continued_run_must_agree_with_names_a_shape_only_where_it_was_given(sft, pretrain, tmp_path):
    for name, train, is_given in (("tuned", sft, False), ("new", pretrain, True)):
        train(tmp_path / name, "--max_steps", 3)
        facts = RunDirectory(tmp_path / name).read_training("settings.json")
        assert any(key.startswith("model.") for key in facts) == is_given
        assert "optimizer.learning_rate" in facts and "init" in facts


def test_a_shape_beside_the_model_to_fine_tune_is_refused(sft, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sft(tmp_path / "run", "--max_steps", 1, "--model.num_hidden_layers", 2)
    assert "--model and --init: expected one of them, got both" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_model_to_train_on_may_get_other_windows_that_a_continued_run_must_agree_with(
    sft, tmp_path, capsys
):
    out, window = tmp_path / "run", ("--model.sliding_window", 4, "--model.sliding_layers", 0)
    sft(out, "--max_steps", 3, *window)
    config = load_checkpoint(out).model.config
    assert config.sliding_window == 4 and windows_of(config)[0] == 4 and not config.window_both_sides
    assert not any(windows_of(config)[1:]) and ", window 4 in layers 0\n" in capsys.readouterr().out
    sft(out, "--max_steps", 3, *window)  # the same run, already finished
    for others in ((), ("--model.sliding_window", 4), ("--model.sliding_window", 5, *window[2:])):
        with pytest.raises(UserError, match="model.layer_windows was "):
            sft(out, "--max_steps", 3, *others)
    with pytest.raises(UserError, match="model.window_both_sides was None, is True"):
        sft(out, "--max_steps", 3, *window, "--model.window_both_sides", True)


def test_documents_that_see_one_another_are_trained_on_and_still_measured_alone(pretrain, data, tmp_path):
    still, course = ("--optimizer.learning_rate", 1e-30, "--validation", data / "pretrain"), {}
    for isolates in (True, False):
        out = tmp_path / str(isolates)
        pretrain(out, "--max_steps", 3, "--isolate_documents", isolates, *still)
        course[isolates] = metrics(out)
    alone, joined = (
        {key: [record[key] for record in records if key in record] for key in ("loss", "nats_per_token")}
        for records in (course[True], course[False])
    )
    assert joined["nats_per_token"] == alone["nats_per_token"] and joined["loss"] != alone["loss"]
    proofs = (
        json.loads((tmp_path / name / "summary.json").read_text())["proof"] for name in ("True", "False")
    )
    assert next(proofs) == next(proofs)  # weights at the start, rows and targets
    with pytest.raises(UserError, match="isolate_documents was False, is True"):
        pretrain(out, "--max_steps", 3, *still)


def test_a_window_on_both_sides_is_trained_saved_and_told(sft, tmp_path, capsys):
    window = ("--model.sliding_window", 4, "--model.window_both_sides", True, "--prompt_mask", "prefix")
    sft(tmp_path / "run", "--max_steps", 3, *window)
    assert load_checkpoint(tmp_path / "run").model.config.window_both_sides
    assert "mask prefix, window 4 on both sides in layers 0" in capsys.readouterr().out


def test_a_store_of_another_tokenizer_than_the_models_is_refused(run_trainer, data, init, tmp_path):
    places = {"--data": data / "other", "--init": init, "--out": tmp_path / "run"}
    with pytest.raises(UserError, match="--data was prepared with another tokenizer"):
        run_trainer("pretrain", *line(places | SHORT, "--max_steps", 3))


def test_a_model_of_texts_learns_prompts_of_two_copies_and_one_of_chats_does_not(
    pretrain, run_trainer, data, tmp_path, capsys
):
    pretrain(tmp_path / "texts", "--max_steps", 3)
    places = SHORT | {"--max_steps": 3, "--max_seq_len": 160}
    ways = {"twice": ("twice", "texts"), "once": ("sft", "texts")}
    for name, (store, start) in ways.items():
        flags = {"--data": data / store, "--init": tmp_path / start, "--out": tmp_path / name}
        run_trainer("sft", *line(places | flags))
        told = ", prompts with 2 copies of a question from now on" in capsys.readouterr().out
        assert told == (name == "twice")
        assert Tokenizer.load(tmp_path / name).prompt_copies == 1 + told
    for store, start in (("twice", "once"), ("sft", "twice")):
        flags = {"--data": data / store, "--init": tmp_path / start, "--out": tmp_path / "none"}
        with pytest.raises(UserError, match="--data was prepared with another tokenizer"):
            run_trainer("sft", *line(places | flags))
    with pytest.raises(UserError, match="prepared with different tokenizers"):
        run_trainer("sft", *line(places | flags, "--data", data / "sft", data / "twice"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_steps"], "expected one of --max_steps or --epochs or --max_tokens, got none"),
        (["--max_steps", 3, "--epochs", 1], "got --max_steps 3 and --epochs 1"),
        (["--max_steps", 0], "--max_steps: expected more than 0, got 0"),
        (["--samples", -1], "--samples: expected 0 or more, got -1"),
        (["--sample_tokens", 0], "--sample_tokens: expected more than 0, got 0"),
        (["--init", "somewhere"], "--model and --init: expected one of them, got both"),
        (["--samples", 10**30], "--samples: expected a number below 2^63, got more"),
        (
            ["--optimizer.learning_rate", 1e300],
            "--optimizer.learning_rate: expected more than 0, up to 1e+06",
        ),
        (["--optimizer.weight_decay", 1e300], "--optimizer.weight_decay: expected 0 to 1e+06, got 1e+300"),
        (["--schedule.decay_fraction", 2], "fractions between 0 and 1"),
        (["--packing", "none", "--isolate_documents", "false"], "changes nothing of packing none"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(pretrain, tmp_path, flags, message, capsys):
    length = [] if "--max_steps" in flags else ["--max_steps", 9]
    with pytest.raises(SystemExit) as caught:
        pretrain(tmp_path / "run", *length, *(flags if len(flags) > 1 else []))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_another_run_is_neither_continued_nor_overwritten(pretrain, tmp_path):
    out = tmp_path / "run"
    pretrain(out, "--max_steps", 3)
    before = load_file(out / "model.safetensors")
    with pytest.raises(UserError, match="other settings .optimizer.learning_rate was 0.001, is 0.01"):
        pretrain(out, "--max_steps", 3, "--optimizer.learning_rate", 0.01)
    with pytest.raises(UserError, match="rows_per_step was 4, is 8"):
        pretrain(out, "--max_steps", 3, "--batch_size", 8)
    with pytest.raises(UserError, match="holds a run; choose another folder, or --resume auto"):
        pretrain(out, "--max_steps", 3, "--resume", "never")
    torch.testing.assert_close(before, load_file(out / "model.safetensors"), rtol=0, atol=0)


def test_a_second_writer_is_refused_with_the_process_named(pretrain, tmp_path):
    with RunDirectory(tmp_path / "run").claim(), pytest.raises(UserError, match=f"by process {os.getpid()};"):
        pretrain(tmp_path / "run", "--max_steps", 3)


def targets(out):
    return [record["targets"] for record in metrics(out) if "targets" in record]


def test_arms_of_a_comparison_can_carry_loss_on_the_same_positions(pretrain, sft, tmp_path):
    arms = {
        "prefix": (pretrain, "--prompt_mask", "prefix"),
        "suffix": (pretrain, "--supervise", "suffix"),
        "all": (pretrain,),
        "history": (sft, "--prompt_mask", "history"),
        "last": (sft, "--prompt_mask", "prefix", "--supervise", "last"),
        "answers": (sft,),
    }
    counts = {}
    for name, (train, *flags) in arms.items():
        train(tmp_path / name, "--max_steps", 3, "--max_seq_len", 128, *flags)
        counts[name] = targets(tmp_path / name)
    assert counts["prefix"] == counts["suffix"] != counts["all"]
    assert counts["history"] == counts["last"] != counts["answers"]
