"""Trainings that are killed at any instant and continued end, to the bit, like those that never were."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_runs import KillAtRename, KillInBackward, KillInSave, Run
from safetensors.torch import load_file
from training_runs import SHAPE, SHORT, data, init, line, metrics

INSTANTS = {  # and the save that they leave, of steps 2, 4 and 6
    "mid_accumulation": (KillInBackward(call=9, rank=0), 4),  # the first of two passes of step 5
    "during_a_save": (KillInSave(save=2), 2),
    "before_the_rename": (KillAtRename("step-00000004", after=False), 2),
    "after_the_rename": (KillAtRename("step-00000004", after=True), 2),
    "with_buckets_settled": (KillInBackward(call=11, rank=2), 4),  # two passes were for the buckets
}
BFLOAT16, MUON = ["--dtype", "bfloat16"], ["--optimizer.name", "muon"]
LORA = ["--lora.rank", 2, "--lora.dropout", 0.5]


@pytest.fixture(scope="session")
def words(data, init):
    """The command line of a training that accumulates, validates, and logs and saves at different steps."""

    def make(trainer: str, out: Path, *flags: object) -> list[str]:
        places = {"--data": data / trainer, "--out": out, "--validation": data / trainer}
        shape = SHAPE if trainer == "pretrain" else {"--init": init}
        often = {"--save_every_steps": 2, "--validate_every_steps": 4, "--gradient_accumulation": 2}
        often |= {"--log_every_steps": 3, "--batch_size": 2, "--max_steps": 6}
        often |= {"--max_seq_len": 200} if trainer == "dpo" else {}  # a row holds both sides of a pair
        return [trainer, *line(SHORT | places | shape | often, *flags)]

    return make


def last_states(out: Path) -> tuple:
    """All that the last checkpoint remembers, clocks aside."""
    folder = out / "checkpoints" / (out / "latest").read_text() / "training"
    progress = json.loads((folder / "progress.json").read_text())
    del progress["seconds"]
    states = {file.name: load_file(file) for file in folder.glob("process-*.safetensors")}
    return states, progress, (folder / "settings.json").read_text()


def assert_same_end(one: Path, two: Path) -> None:
    """Equal to the bit: weights, optimizers, progress, every record of the metrics."""
    [first], [second] = (list(out.glob("*model.safetensors")) for out in (one, two))
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    assert metrics(one) == metrics(two)
    (first, *rest), (second, *others) = last_states(one), last_states(two)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert rest == others
    kept = [{folder.name for folder in (out / "checkpoints").iterdir()} for out in (one, two)]
    assert kept[0] == kept[1] and (one / "best").read_text() == (two / "best").read_text()


def finish(run: Run) -> None:
    assert run.wait() == 0, run.output


@pytest.mark.parametrize(
    "trainer, flags, world, instants",
    [
        ("pretrain", BFLOAT16, 1, ["mid_accumulation", "during_a_save", "before_the_rename"]),
        ("sft", MUON, 2, ["mid_accumulation", "during_a_save", "after_the_rename"]),
        ("sft", LORA, 1, ["mid_accumulation"]),
        ("dpo", [], 2, ["mid_accumulation"]),
        # the gradients of more than two are summed in some order
        pytest.param("pretrain", [], 3, ["with_buckets_settled"], marks=pytest.mark.long),
        pytest.param("sft", LORA, 2, ["during_a_save", "after_the_rename"], marks=pytest.mark.long),
    ],
)
def test_a_killed_training_ends_as_if_it_was_not(words, tmp_path, trainer, flags, world, instants):
    flags = [*flags, "--batch_size", 2 if world == 1 else 1]

    def start(name: str, sabotage=None) -> Run:
        return Run(tmp_path / f"{name}.log", words(trainer, tmp_path / name, *flags), world, sabotage)

    whole = start("whole")
    killed = {instant: start(instant, INSTANTS[instant][0]) for instant in instants}
    finish(whole)
    for instant, run in killed.items():
        assert run.wait() == -signal.SIGKILL, run.output
        assert (tmp_path / instant / "latest").read_text() == f"step-{INSTANTS[instant][1]:08d}"
    resumed = [start(instant) for instant in instants]
    for instant, run in zip(instants, resumed, strict=True):
        finish(run)
        assert "continuing after step" in run.output
        assert_same_end(tmp_path / "whole", tmp_path / instant)


@pytest.mark.long
@pytest.mark.parametrize("compiled", ["always", "never"])
@pytest.mark.parametrize("world, sharding", [(1, "none"), (2, "none"), (2, "fsdp")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("trainer", ["pretrain", "sft"])
def test_a_training_killed_at_random_ends_as_if_it_was_not(
    words, tmp_path, trainer, optimizer, world, sharding, compiled
):
    flags = ["--optimizer.name", optimizer, "--max_steps", 12, "--sharding", sharding, "--compile", compiled]

    def start(out: Path) -> Run:
        return Run(tmp_path / "log", words(trainer, out, *flags), world)

    begun = time.monotonic()
    finish(start(tmp_path / "whole"))
    seconds = time.monotonic() - begun
    chance = random.Random(f"{trainer} {optimizer} {world} {sharding} {compiled}")
    kills = 0
    while kills < 2:  # 48 in all
        out = tmp_path / f"killed-{kills}"
        shutil.rmtree(out, ignore_errors=True)
        run = start(out)
        is_late = run.wait(delay := chance.uniform(0, seconds)) is not None
        run.kill()
        run.wait()
        kills += not is_late
        finish(start(out))
        print(f"killed after {delay:.2f} of {seconds:.2f} s" * (not is_late))
        assert_same_end(tmp_path / "whole", out)
