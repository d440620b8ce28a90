"""What a resumed run may change: its length before the decay, its processes, nothing that changes results."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import signal
from dataclasses import asdict

import pytest
from forked_runs import Run
from training_runs import SHAPE, SHORT, after_step, data, line, losses, metrics, pretrain, run_trainer

from model.errors import UserError
from trainer.inputs import Inputs
from trainer.run_dir import RunDirectory
from trainer.saving import check_resumable, is_length_free, keep_rows_per_step
from trainer.settings import PretrainSettings, ScheduleSettings
from trainer.training_state import Progress

WSD = ScheduleSettings(warmup_steps=2, decay_fraction=0.5)
COSINE = ScheduleSettings("cosine", warmup_steps=2)


@pytest.fixture
def saved(tmp_path):
    """A function that makes a run directory whose last save tells of these facts and this progress."""

    def make(facts: dict, **progress: int) -> RunDirectory:
        run_dir = RunDirectory(tmp_path / "run")
        run_dir.begin_checkpoint()
        facts = {"total_steps": 10, "rows_per_step": 8} | facts
        shown = asdict(Progress(**{"step": 4, "processes": 2} | progress))
        for name, content in (("settings", facts), ("progress", shown)):
            (run_dir.partial / f"training/{name}.json").write_text(json.dumps(content))
        run_dir.commit_checkpoint(4)
        return run_dir

    return make


def test_other_settings_are_refused_by_name(saved, tmp_path):
    check_resumable(RunDirectory(tmp_path / "nothing"), {"seed": 1}, WSD, "never")
    run_dir = saved({"seed": 0, "optimizer.name": "muon", "sizes": [1]})
    same = {"seed": 0, "optimizer.name": "muon", "sizes": (1,), "total_steps": 10, "rows_per_step": 8}
    check_resumable(run_dir, same, WSD, "auto")
    with pytest.raises(UserError, match=r"\(seed was 0, is 1; sizes was \[1\], is None\)"):
        check_resumable(run_dir, same | {"seed": 1, "sizes": None}, WSD, "auto")
    with pytest.raises(UserError, match="holds a run; choose another folder, or --resume auto"):
        check_resumable(run_dir, same, WSD, "never")


@pytest.mark.parametrize("name", ["settings.json", "progress.json"])
@pytest.mark.parametrize("content", ["[]", "{br", "", "{}"])
def test_a_damaged_file_of_a_run_is_named_with_the_way_back(saved, name, content):
    run_dir = saved({})
    (run_dir.latest / "training" / name).write_text(content)
    with pytest.raises(UserError, match="step-00000004.* write the name of an earlier one into .*latest"):
        check_resumable(run_dir, {}, WSD, "auto")


@pytest.mark.parametrize(
    "step, former, total, schedule, is_free",
    [
        (5, 10, 100, WSD, True),
        (7, 10, 100, WSD, False),  # the decay begins with the step after the sixth
        (5, 100, 10, WSD, True),
        (7, 100, 10, WSD, False),
        (11, 100, 10, WSD, False),
        (2, 10, 100, COSINE, True),  # the warmup
        (4, 10, 100, COSINE, False),
    ],
)
def test_a_length_is_free_while_no_finished_step_depends_on_it(step, former, total, schedule, is_free):
    assert is_length_free(step, former, total, schedule) == is_free


def test_a_run_made_longer_before_its_decay_is_the_longer_run(pretrain, tmp_path):
    flags = ["--schedule.decay_fraction", 0.5]
    pretrain(tmp_path / "whole", "--max_steps", 12, *flags)
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        after_step(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(stopped, "--max_steps", 6, *flags)
    pretrain(stopped, "--max_steps", 12, *flags)
    assert metrics(tmp_path / "whole") == metrics(stopped)
    with pytest.raises(UserError, match=r"other settings \(total_steps was 12, is 20\)"):
        pretrain(stopped, "--max_steps", 20, *flags)


def test_a_finished_run_without_decay_can_be_made_longer(pretrain, tmp_path):
    flags = ["--schedule.decay_fraction", 0]
    for steps in (3, 5):
        pretrain(tmp_path / "grown", "--max_steps", steps, *flags)
    pretrain(tmp_path / "whole", "--max_steps", 5, *flags)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "grown")


def test_a_finished_run_that_is_sent_back_to_an_earlier_save_goes_on(pretrain, tmp_path):
    out, flags = tmp_path / "run", ["--max_steps", 4, "--save_every_steps", 2]
    pretrain(out, *flags)
    before = metrics(out)
    (out / "latest").write_text("step-00000002")
    pretrain(out, *flags)
    assert RunDirectory(out).latest.name == "step-00000004" and metrics(out) == before


@pytest.mark.long  # tests/test_scale.py continues so in every run
def test_two_processes_continue_what_one_began(pretrain, data, tmp_path):
    flags = ["--batch_size", 2, "--gradient_accumulation", 2, "--max_steps", 6, "--log_every_steps", 1]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    pretrain(whole, *flags)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        after_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(moved, *flags)
    places = {"--data": data / "pretrain", "--out": moved}
    run = Run(tmp_path / "log", ["pretrain", *line(places | SHAPE | SHORT, *flags)], world=2)
    assert run.wait() == 0, run.output
    assert (
        "2 processes instead of 1: gradient_accumulation is 1, which keeps the rows of a step" in run.output
    )
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-6)
    assert "gradient_accumulation: 2\n" in (moved / "settings.yaml").read_text()  # as it was given
    progress = RunDirectory(moved).read_training("progress.json")
    assert progress["processes"] == 1  # so that a second continuation by two is asked to keep the rows too
    for one, two in zip(metrics(whole), metrics(moved), strict=True):
        assert [one[key] for key in ("epoch", "tokens", "targets")] == [
            two[key] for key in ("epoch", "tokens", "targets")
        ]


def inputs(out, **settings) -> Inputs:
    settings = PretrainSettings(data=("d",), out=str(out), max_steps=9, **settings)
    return Inputs(settings, None, None, {}, "")


@pytest.mark.parametrize("world, batch_size, accumulation", [(1, 4, 2), (4, 2, 1), (1, 8, 1), (2, 2, 5)])
def test_another_number_of_processes_keeps_the_rows_of_a_step(saved, world, batch_size, accumulation):
    out = saved({}).path  # 8 rows on 2 processes
    given = inputs(out, batch_size=batch_size, gradient_accumulation=5)
    assert keep_rows_per_step(given, world).settings.gradient_accumulation == accumulation


@pytest.mark.parametrize(
    "world, batch_size, message",
    [
        (3, 1, "takes 8 rows a step, which 3 processes cannot share evenly; .* divides 8 .it was 2"),
        (4, 4, "expected a --batch_size that divides the 2 of each of 4 processes, got 4"),
    ],
)
def test_processes_that_cannot_keep_the_rows_are_refused(saved, world, batch_size, message):
    with pytest.raises(UserError, match=message):
        keep_rows_per_step(inputs(saved({}).path, batch_size=batch_size), world)
