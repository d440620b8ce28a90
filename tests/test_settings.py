"""Settings of a training: what they make of a model, and what they refuse."""

import pytest

from model.errors import UserError
from trainer.command_line import parse
from trainer.settings import ModelSettings, PretrainSettings


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
    assert model_of(line).config(97).layer_windows == windows


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
