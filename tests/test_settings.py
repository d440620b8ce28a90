"""Settings of a training: what they make of a model, and what they refuse."""

from dataclasses import fields, replace

import pytest

from dataset.command_line import parse
from dataset.printing import printable
from dataset.yaml_file import as_yaml, read_yaml
from model.config import ARCHITECTURES, ModelConfig, from_preset
from model.errors import UserError
from model.pattern import ALL, Pattern
from scripts.show_batch import ShowBatchSettings
from tests.conftest import windowed, windows_of
from trainer.model_settings import ModelSettings
from trainer.settings import PretrainSettings, SftSettings


@pytest.mark.parametrize("out", ["阅读 a", "a\u202eb\x1b\u2028\x85", "007", "no"])
def test_saved_settings_are_read_back_and_nothing_in_them_steers_a_terminal(tmp_path, out):
    text = as_yaml({"out": out, "max_steps": 3})
    assert "".join(map(printable, text.split("\n"))) == text.replace("\n", "")
    (tmp_path / "settings.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(str(tmp_path / "settings.yaml")) == {"out": out, "max_steps": 3}


def model_of(line: str) -> ModelSettings:
    line = f"--data d --out o --max_steps 1 --model.preset tiny --model.num_hidden_layers 3 {line}"
    return parse(PretrainSettings, "Trains.", line.split()).model


@pytest.mark.parametrize(
    ("line", "windows"),
    [
        ("", (None, None, None)),
        ("--model.sliding_window 8", (8, 8, 8)),
        ("--model.sliding_window 8 --model.sliding_layers 2 0", (8, None, 8)),
        ("--model.sliding_window 8 --model.sliding_layers 0 1 2", (8, 8, 8)),
    ],
)
def test_the_window_is_in_the_layers_that_are_named_or_in_all(line, windows):
    assert windows_of(model_of(line).config(97)) == windows


@pytest.mark.parametrize(
    ("line", "windows", "both_sides"),
    [
        ("", (4, None, None), True),
        ("--model.window_both_sides false", (4, None, None), False),
        ("--model.sliding_window 8", (8, 8, 8), False),
        ("--model.sliding_window 8 --model.window_both_sides true", (8, 8, 8), True),
    ],
)
def test_a_trained_model_keeps_its_sides_unless_they_or_its_window_are_given(line, windows, both_sides):
    config = from_preset("tiny", vocab_size=97, **windowed(4, None, None, both_sides=True))
    changed = model_of(line).placed(config)
    assert windows_of(changed) == windows and changed.window_both_sides is both_sides


def test_sinks_and_chunks_bound_the_layers_that_slide():
    config = model_of("--model.attention_chunk_size 8 --model.sliding_layers 1").config(97)
    assert config.layer_patterns == (ALL, Pattern(chunk=8), ALL)
    config = model_of("--model.sliding_window 8 --model.attention_sinks 4").config(97)
    assert config.layer_patterns == (Pattern(8, sinks=4),) * 3
    assert model_of("--model.attention_sinks 2").placed(config).layer_patterns[0] == Pattern(8, sinks=2)
    assert model_of("--model.sliding_window 6").placed(config).layer_patterns[0] == Pattern(6)
    with pytest.raises(UserError, match="attention_sinks: expected a sliding_window or attention_chunk"):
        model_of("--model.attention_sinks 2").config(97)
    with pytest.raises(UserError, match=r"sliding_window 8: expected fewer than .*chunk_size \(8\)"):
        model_of("--model.sliding_window 8 --model.attention_chunk_size 8").config(97)


def test_every_value_of_a_shape_can_be_set():
    otherwise = {"layer_types", "prompt_mask"}  # by --model.sliding_layers and --prompt_mask
    settable = {field.name for field in fields(ModelSettings)}
    assert {field.name for field in fields(ModelConfig)} - otherwise <= settable
    assert model_of("--model.rms_norm_eps 1e-5").config(97).rms_norm_eps == 1e-5


@pytest.mark.parametrize("settings_class", [PretrainSettings, SftSettings, ShowBatchSettings])
def test_a_setting_is_explained_wherever_it_is_offered(settings_class, capsys):
    with pytest.raises(SystemExit):
        parse(settings_class, "", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    texts = ["best_fit: texts cut only where they are longer than a row"]
    texts += ["added to the mean square before the root"] * (settings_class is not ShowBatchSettings)
    for text in texts:
        assert text in shown


def test_the_form_of_a_model_is_another_setting_than_its_size(capsys):
    assert model_of("").architecture == "qwen3" and from_preset("124m", vocab_size=97).num_hidden_layers == 12
    with pytest.raises(SystemExit):
        model_of("--model.architecture mamba")
    expected = f"--model.architecture: expected one of {', '.join(ARCHITECTURES)}, got 'mamba'"
    assert expected in capsys.readouterr().err


def test_an_architecture_brings_its_parts_and_a_flag_takes_one_of_them_away():
    config = model_of("--model.architecture gpt2 --model.qk_norm true").config(97)
    assert (config.norm, config.positions, config.qk_norm) == ("layer", "learned", True)
    assert config.num_key_value_heads == config.num_attention_heads == 4
    assert config.intermediate_size == 288  # two matrices with as many weights as the preset's three
    gemma = model_of("--model.architecture gemma3").config(97)
    assert windows_of(gemma) == (64, 64, None) and gemma.rope_local_theta == 1e4
    assert model_of("--model.architecture gemma3 --model.sliding_window 8").config(97).sliding_window == 8
    assert windows_of(model_of("--model.architecture gemma2").config(97)) == (256, None, None)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_scaled_positions_make_the_context_so_many_times_longer(kind):
    config = model_of(f"--model.rope_scaling {kind}:2.5").config(97)
    assert config.max_position_embeddings == 1280 and config.rope_scaling.factor == 2.5
    assert config.rope_scaling.original_max_position_embeddings == (None if kind == "linear" else 512)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model.architecture gpt2 --model.rope_theta 100", "rope_theta: expected rotary .* got learned"),
        ("--model.rope_local_theta 100", "rope_local_theta: expected sliding layers with it, got none"),
    ],
)
def test_a_rotary_base_without_effect_is_refused(line, message):
    with pytest.raises(UserError, match=message):
        model_of(line).config(97)
    assert (
        model_of("--model.rope_local_theta 100 --model.sliding_window 8").config(97).rope_local_theta == 100
    )


def test_one_expert_whose_weight_is_always_1_is_refused():
    one = model_of("--model.architecture qwen3_moe --model.num_experts_per_tok 1")
    with pytest.raises(UserError, match="num_experts_per_tok 1: expected --model.norm_topk_prob false"):
        one.config(97)
    assert replace(one, norm_topk_prob=False).config(97).num_experts_per_tok == 1


def test_positions_are_not_scaled_twice():
    scaled = model_of("--model.rope_scaling yarn:4").config(97)
    with pytest.raises(UserError, match="without scaled positions, got one scaled by yarn:4"):
        model_of("--model.rope_scaling yarn:4").placed(scaled)
    assert model_of("").placed(scaled) == scaled


def test_another_window_stays_in_the_layers_that_a_gemma_model_has_it_in():
    kinds = ("full_attention", "sliding_attention", "sliding_attention")
    config = replace(model_of("--model.architecture gemma3").config(97), layer_types=kinds)
    assert windows_of(model_of("--model.sliding_window 8").placed(config)) == (None, 8, 8)


@pytest.mark.parametrize("text", ["yarn", "yarn:x", "yarn:0.5", "yarn:-1", "dynamic:2", "linear:nan", ":2"])
def test_scaled_positions_of_other_words_are_one_line(text):
    with pytest.raises(UserError, match="^--model.rope_scaling .*expected"):
        model_of(f"--model.rope_scaling {text}").config(97)


def test_a_continued_training_keeps_what_is_not_declared_free():
    fixed = PretrainSettings(data=("d",), out="o", max_steps=3).fixed()
    for name in ("seed", "max_seq_len", "packing", "optimizer.beta1", "schedule.name", "model.hidden_size"):
        assert name in fixed
    assert not fixed.keys() & {
        "out",
        "data",
        "init",
        "batch_size",
        "max_steps",
        "dtype",
        "samples",
        "tracker",
    }


def test_both_sides_of_no_window_are_one_line():
    with pytest.raises(UserError, match="^window_both_sides: expected a sliding_window with it, got none$"):
        model_of("--model.window_both_sides true").config(97)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model.sliding_layers 0", "expected --model.sliding_window with it, got none"),
        ("--model.sliding_window 8 --model.sliding_layers 1 1", "expected each layer once, got 1, 1"),
        ("--model.sliding_window 8 --model.sliding_layers 0 3", "expected layers from 0 to 2, got 0, 3"),
        ("--model.sliding_window 8 --model.sliding_layers -1", "expected layers from 0 to 2, got -1"),
    ],
)
def test_sliding_layers_that_make_no_sense_are_one_line(line, message):
    with pytest.raises(UserError, match=f"^--model.sliding_layers: {message}$"):
        model_of(line).config(97)


@pytest.mark.parametrize(
    ("recipe", "line", "expected"),
    [
        ("epochs: 3", "--max_steps 30", {"max_steps": 30, "epochs": None}),
        ("max_steps: 3\nepochs: null", "--max_tokens 30", {"max_steps": None, "max_tokens": 30}),
        ("epochs: 3", "--epochs null --max_steps 30", {"max_steps": 30, "epochs": None}),
        ("epochs: 3", "--max_steps=null", {"max_steps": None, "epochs": 3.0}),
        ("epochs: 3\nmodel: {preset: tiny}", "--init x", {"init": "x", "model": ModelSettings()}),
        ("epochs: 3\nmodel: {preset: tiny}", "--init fresh", {"model": ModelSettings(preset="tiny")}),
        ("epochs: 3\ninit: x", "--model.preset tiny", {"init": "fresh"}),
        (
            "epochs: 3\nmodel: {preset: tiny, sliding_window: 4}",
            "--init x",
            {"model": ModelSettings(sliding_window=4)},
        ),
    ],
)
def test_a_flag_wins_over_what_it_excludes_in_a_recipe(recipe, line, expected, tmp_path):
    (tmp_path / "a.yaml").write_text(recipe)
    words = f"--config {tmp_path / 'a.yaml'} --data d --out o {line}"
    settings = parse(PretrainSettings, "Trains.", words.split())
    assert {name: getattr(settings, name) for name in expected} == expected


def test_a_later_recipe_wins_and_flags_of_one_line_stay_a_contradiction(tmp_path, capsys):
    for name, text in (("a", "epochs: 3"), ("b", "max_steps: 7")):
        (tmp_path / name).write_text(text)
    words = f"--config {tmp_path / 'a'} --config {tmp_path / 'b'} --data d --out o".split()
    assert parse(PretrainSettings, "Trains.", words).max_steps == 7
    with pytest.raises(SystemExit):
        parse(PretrainSettings, "Trains.", [*words, "--max_tokens", "9", "--epochs", "2"])
    assert "got --epochs 2.0 and --max_tokens 9; null takes one back" in capsys.readouterr().err
