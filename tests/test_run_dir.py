"""The run directory: whole saves, one writer, nothing overwritten."""

import json
import os
from pathlib import Path

import pytest

from model.errors import UserError
from trainer.run_dir import RunDirectory


@pytest.fixture
def run_dir(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.claim():
        directory.write_text("settings.yaml", "seed: 0\n")
        yield directory


def save(run_dir: RunDirectory, step: int, facts: dict | None = None) -> None:
    """A checkpoint whose weights tell the step."""
    run_dir.begin_checkpoint()
    (run_dir.partial / "model.safetensors").write_text(f"weights of step {step}")
    (run_dir.partial / "training/settings.json").write_text(json.dumps(facts or {"seed": 0}))
    run_dir.commit_checkpoint(step)


def contents(run_dir: RunDirectory) -> tuple[str, str]:
    return tuple((folder / "model.safetensors").read_text() for folder in (run_dir.path, run_dir.latest))


def test_the_last_save_is_at_the_top_and_the_one_before_is_gone(run_dir):
    assert run_dir.latest is None
    save(run_dir, 3)
    save(run_dir, 6)
    assert contents(run_dir) == ("weights of step 6", "weights of step 6")
    assert [folder.name for folder in (run_dir.path / "checkpoints").iterdir()] == ["step-00000006"]


@pytest.mark.parametrize("victim", ["step-00000006", "model.safetensors", "latest"])
def test_a_save_that_dies_before_any_of_its_renames_leaves_the_one_before(run_dir, victim, monkeypatch):
    save(run_dir, 3)
    replace = os.replace

    def dying(source, target):
        if target.name == victim:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("trainer.run_dir.os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save(run_dir, 6)
    monkeypatch.undo()
    top, latest = contents(run_dir)
    assert latest == "weights of step 3" and top in (latest, "weights of step 6")
    save(run_dir, 6)
    assert contents(run_dir) == ("weights of step 6", "weights of step 6")


def test_a_second_writer_is_refused_until_the_first_is_done(run_dir, tmp_path):
    with pytest.raises(UserError, match=f"is being written by process {os.getpid()}; wait for it or stop it"):
        RunDirectory(run_dir.path).claim()
    with RunDirectory(tmp_path / "other").claim():
        pass
    with RunDirectory(tmp_path / "other").claim():
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("forty pages")
    with pytest.raises(UserError, match="holds thesis.tex and no run; choose a new folder"):
        RunDirectory(tmp_path).claim()
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "thesis.tex").claim()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_a_kill_left_in_the_first_instant_is_taken_up(tmp_path):
    (tmp_path / ".settings.yaml.partial").write_text("seed")
    with RunDirectory(tmp_path).claim():
        pass


@pytest.mark.parametrize("content", ["[]", "{br", ""])
def test_a_damaged_file_of_a_run_is_named(run_dir, content):
    save(run_dir, 3)
    (run_dir.latest / "training/settings.json").write_text(content)
    with pytest.raises(UserError, match="settings.json .*begin again"):
        run_dir.check({"seed": 0}, "auto")


def test_other_settings_are_refused_by_name(run_dir):
    run_dir.check({"seed": 1}, "never")
    save(run_dir, 3, {"seed": 0, "optimizer.name": "muon", "sizes": [1]})
    run_dir.check({"seed": 0, "optimizer.name": "muon", "sizes": (1,)}, "auto")
    with pytest.raises(UserError, match=r"\(seed was 0, is 1; sizes was \[1\], is None\)"):
        run_dir.check({"seed": 1, "optimizer.name": "muon"}, "auto")


def test_metrics_are_cut_back_to_a_step_and_bear_a_torn_line(run_dir):
    for step in (1, 2, 3):
        run_dir.append_metrics({"step": step})
    with open(run_dir.metrics_path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in run_dir.read_metrics()] == [1, 2, 3]
    run_dir.cut_metrics(2)
    assert Path(run_dir.metrics_path).read_text() == '{"step": 1}\n{"step": 2}\n'
