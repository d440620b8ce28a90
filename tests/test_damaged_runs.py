"""Run directories that were damaged, or made by a stranger: one line each, nothing run, nothing misread."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import data, metrics, pretrain, run_trainer

from model.errors import UserError
from trainer.optimizer import Optimizers

ROOT = Path(__file__).parent.parent
FLAGS = ["--max_steps", 4, "--save_every_steps", 2]
LAST = "checkpoints/step-00000002/training"
STATE = f"{LAST}/process-0.safetensors"


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Path:
    """A run of four steps that was stopped after two."""
    from training_runs import SHAPE, SHORT, line

    import trainer.pretrain

    out = tmp_path_factory.mktemp("begun") / "run"
    places = {"--data": data / "pretrain", "--validation": data / "pretrain", "--out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pretrain", *line(places | SHAPE | SHORT, *FLAGS)])
        trainer.pretrain.main()
    (out / "latest").write_text("step-00000002")
    return out


@pytest.fixture
def go_on(pretrain, data, begun, tmp_path):
    """Damage a copy of that run by `damage(out)`, then continue it."""

    def call(damage) -> Path:
        out = shutil.copytree(begun, tmp_path / "run")
        damage(out)
        pretrain(out, *FLAGS, "--validation", data / "pretrain")
        return out

    return call


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def plant(out: Path, names: list[str], target: Path) -> None:
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(pickle.dumps(Bomb(target)))


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["process-0.safetensors"],
        ["progress.json"],
        ["settings.json"],
        ["../model.safetensors"],
        ["optimizer.pt", "random-0.pt"],
        ["optimizer/.metadata", "random-0.pt"],
    ],
)
def test_a_run_of_a_stranger_runs_nothing(go_on, tmp_path, names, is_finished):
    last = LAST.replace("2", "4") if is_finished else LAST

    def damage(out: Path) -> None:
        (out / "latest").write_text(Path(last).parent.name)
        plant(out / last, names, tmp_path / "executed")

    if is_finished and names in (["process-0.safetensors"], ["../model.safetensors"]):
        go_on(damage)  # nothing of it is needed
    else:
        with pytest.raises(UserError, match="damaged|not valid JSON|cannot be read|may hold code"):
            go_on(damage)
    assert not (tmp_path / "executed").exists()


def test_the_state_of_an_earlier_version_is_one_line_that_helps(go_on):
    def damage(out: Path) -> None:
        (out / STATE).unlink()
        (out / LAST / "optimizer.pt").touch()

    with pytest.raises(
        UserError, match="may hold code, which are not read any more; .* --init .*step-00000002"
    ):
        go_on(damage)


def test_nothing_is_unpickled():
    for file in (
        file
        for folder in ("model", "dataset", "trainer", "eval", "scripts")
        for file in (ROOT / folder).rglob("*.py")
    ):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"weights_only=False|\bpickle\b|torch\.save\b|distributed\.checkpoint\.(save|load)", text
        ), file
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, file


def text(name: str, content: str):
    return lambda out: (out / name).write_text(content, encoding="utf-8")


def changed(name: str, **values: object):
    """Other values in a JSON file; None takes one away."""

    def damage(out: Path) -> None:
        former = json.loads((out / name).read_text())
        content = {key: value for key, value in (former | values).items() if value is not None}
        (out / name).write_text(json.dumps(content))

    return damage


def cut(name: str, size: int):
    return lambda out: os.truncate(out / name, size)


def state(**changes):
    """Other tensors in the saved state, by a part of their name: what makes one of another, None for none."""

    def damage(out: Path) -> None:
        tensors, layout = load_file(out / STATE), _layout(out)
        for part, change in changes.items():
            name = next(name for name in tensors if part in name)
            tensor = tensors.pop(name)
            if change:
                tensors[name] = change(tensor)
            else:
                layout["first_rows"].pop(name, None)
        save_file(tensors, out / STATE, {"layout": json.dumps(layout)})

    return damage


def layout(change):
    """Another layout in the saved state."""

    def damage(out: Path) -> None:
        save_file(load_file(out / STATE), out / STATE, {"layout": json.dumps(change(_layout(out)))})

    return damage


def _layout(out: Path) -> dict:
    from safetensors import safe_open

    with safe_open(out / STATE, "pt") as file:
        return json.loads(file.metadata()["layout"])


MESSAGES = {
    "no name of a save": [
        text("latest", "../../../elsewhere"),
        text("latest", "step-00000002/../step-00000004"),
        text("latest", "/etc"),
        text("latest", ""),
        text("latest", "step-٠٠٠٠٠٠٠٢"),
        text("best", "../.."),
    ],
    "latest cannot be read": [lambda out: (out / "latest").write_bytes(b"\xff\xfe")],
    "latest is gone, and step-": [lambda out: (out / "latest").unlink()],
    "settings.json cannot be read": [text("latest", "step-00000003")],
    "metrics.jsonl is damaged": [
        text("metrics.jsonl", '{"step": "2", "loss": 1, "learning_rate": 1}\n'),
        text("metrics.jsonl", '{"step": 2, "loss": 1, "learning_rate": 1, "tokens": "x"}\n'),
        text("metrics.jsonl", '{"step": true, "loss": 1, "learning_rate": 1}\n'),
        text("metrics.jsonl", '{"step": 2, "loss": "low", "learning_rate": 1}\n'),
        text("metrics.jsonl", '{"step": 2, "loss": 1, "learning_rate": null}\n'),
        text("metrics.jsonl", '{"step": 2, "validation": ["pretrain"], "nats_per_token": 1}\n'),
        text("metrics.jsonl", '{"step": 2, "validation": "pretrain"}\n'),
        text("metrics.jsonl", f'{{"step": 2, "validation": "pretrain", "nats_per_token": 1{"0" * 400}}}\n'),
        text("metrics.jsonl", "[" * 100_000 + "\n"),
        text("metrics.jsonl", "1" * 5000 + "\n"),
        lambda out: (out / "metrics.jsonl").write_bytes(b'{"step": \xff}\n'),
    ],
    "samples.jsonl is damaged": [text("samples.jsonl", "{br\n"), text("samples.jsonl", '{"step": -1}\n')],
    "step-00000002 is damaged": [
        changed(f"{LAST}/progress.json", step="2"),
        changed(f"{LAST}/progress.json", step=3),
        changed(f"{LAST}/progress.json", row=-1),
        changed(f"{LAST}/progress.json", row=1.5),
        changed(f"{LAST}/progress.json", seconds=None),
        changed(f"{LAST}/progress.json", seconds=10**400),
        changed(f"{LAST}/progress.json", tokens=True),
        changed(f"{LAST}/progress.json", ledger={"rows": 3}),
        changed(f"{LAST}/progress.json", sums_since_log=[1.0]),
        changed(f"{LAST}/settings.json", rows_per_step="4"),
        changed(f"{LAST}/settings.json", total_steps=0),
        changed("checkpoints/step-00000002/config.json", num_hidden_layers=1),
        changed("checkpoints/step-00000002/config.json", rope_theta=77.0),
        lambda out: (out / STATE).unlink(),
        lambda out: (out / "checkpoints/step-00000002/model.safetensors").unlink(),
        cut(STATE, 0),
        cut(STATE, 100),
        cut(STATE, 100_000),
        cut("checkpoints/step-00000002/model.safetensors", 50_000),
        state(norm=lambda tensor: tensor[:-1].clone()),
        state(embed=lambda tensor: tensor.T.contiguous()),
        state(exp_avg_sq=lambda tensor: tensor.double()),
        state(step=lambda tensor: tensor[None].clone()),
        state(exp_avg=None),
        state(random=lambda tensor: tensor[:-1].clone()),
        state(random=lambda tensor: torch.full_like(tensor, 255)),
        layout(lambda layout: {}),
        layout(lambda layout: [layout]),
        layout(lambda layout: layout | {"processes": 0}),
        layout(lambda layout: layout | {"processes": "1"}),
        layout(lambda layout: layout | {"processes": 10**9}),
        layout(lambda layout: layout | {"first_rows": 7}),
        layout(lambda layout: layout | {"first_rows": layout["first_rows"] | {"else": 0}}),
        layout(lambda layout: layout | {"first_rows": dict.fromkeys(layout["first_rows"], 1)}),
        layout(lambda layout: layout | {"first_rows": dict.fromkeys(layout["first_rows"], "0")}),
    ],
}


@pytest.mark.parametrize("message, damage", [(key, each) for key, all in MESSAGES.items() for each in all])
def test_a_damaged_run_is_one_line(go_on, message, damage):
    with pytest.raises(UserError, match=message) as caught:
        go_on(damage)
    assert "\n" not in str(caught.value) and re.search("write the name of|take it away", str(caught.value))


def test_a_mistake_of_ours_while_resuming_is_not_told_as_damage(go_on, monkeypatch):
    def mistaken(optimizers):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(Optimizers, "state", mistaken)
    with pytest.raises(KeyError, match="a mistake of ours"):
        go_on(lambda out: None)


@pytest.mark.parametrize(
    "values", [{"finished": "no"}, {"steps": "4"}, {"steps": True}, {"finished": None}, {"finished": 1}]
)
def test_a_damaged_summary_is_never_taken_for_the_end_of_a_run(go_on, values):
    def damage(out: Path) -> None:
        text("latest", "step-00000004")(out)
        changed("summary.json", **values)(out)

    with pytest.raises(UserError, match="summary.json is damaged.* take it away to go on"):
        go_on(damage)


def test_a_run_that_was_not_damaged_goes_on(go_on, begun):
    assert metrics(go_on(lambda out: None)) == metrics(begun)
