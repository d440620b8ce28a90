"""The run directory: whole saves, one writer, nothing overwritten."""

import math
import os
from pathlib import Path

import pytest

from model.errors import UserError
from trainer.run_dir import METRICS, RunDirectory


@pytest.fixture
def run_dir(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.claim():
        (directory.path / "settings.yaml").write_text("seed: 0\n")
        yield directory


def save(run_dir: RunDirectory, step: int, keep: int = 1) -> None:
    """A checkpoint whose weights tell the step."""
    run_dir.begin_checkpoint()
    (run_dir.partial / "model.safetensors").write_text(f"weights of step {step}")
    run_dir.commit_checkpoint(step)
    run_dir.prune(keep, "texts")


def kept(run_dir: RunDirectory) -> list[int]:
    return sorted(int(folder.name[-8:]) for folder in (run_dir.path / "checkpoints").iterdir())


def claim(path: Path) -> None:
    with RunDirectory(path).claim():
        pass


def contents(run_dir: RunDirectory) -> tuple[str, str]:
    return tuple((folder / "model.safetensors").read_text() for folder in (run_dir.path, run_dir.latest))


def test_the_last_save_is_at_the_top_and_the_one_before_is_gone(run_dir):
    assert run_dir.latest is None
    save(run_dir, 3)
    save(run_dir, 6)
    assert contents(run_dir) == ("weights of step 6", "weights of step 6")
    assert kept(run_dir) == [6]


def test_the_last_saves_and_that_of_the_least_loss_are_kept(run_dir):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, math.nan), (5, 0.5), (6, 1.5)]:
        save(run_dir, step, keep=2)
        run_dir.append_records(METRICS, [{"step": step, "validation": "texts", "nats_per_token": loss}])
        run_dir.append_records(METRICS, [{"step": step, "validation": "chats", "nats_per_token": -loss}])
        run_dir.prune(2, "texts")
        if step == 4:
            assert kept(run_dir) == [2, 3, 4] and (run_dir.path / "best").read_text() == "step-00000002"
    assert kept(run_dir) == [5, 6] and (run_dir.path / "best").read_text() == "step-00000005"
    for step in (7, 8):
        save(run_dir, step, keep=1)
        run_dir.prune(1, "others")  # not measured yet
    assert kept(run_dir) == [5, 8] and run_dir.best.name == "step-00000005"
    save(run_dir, 4)  # gone back to an earlier one, of no finite loss: what comes after it is given up
    assert kept(run_dir) == [4]


@pytest.mark.parametrize("line", ["{br", "7", '{"loss": 1.0}'])
def test_damaged_records_are_one_line(run_dir, line):
    (run_dir.path / METRICS).write_text(line + "\n")
    with pytest.raises(UserError, match="metrics.jsonl is damaged .* take it away to go on"):
        run_dir.read_records(METRICS)


def test_a_save_that_never_became_the_last_one_takes_no_place(run_dir, capsys):
    for step in (3, 6, 9):
        save(run_dir, step, keep=3)
    assert not capsys.readouterr().err
    (run_dir.path / "latest").write_text("step-00000003")
    save(run_dir, 4)
    assert kept(run_dir) == [4]
    names = "step-00000006, step-00000009"
    said = f"{run_dir.path}: removed, as the training goes on before them: {names}\n"
    assert capsys.readouterr().err == said


def test_a_save_of_a_training_that_has_ended_is_not_taken_for_one_that_a_kill_left(run_dir):
    save(run_dir, 3)
    (run_dir.path / "latest").unlink()
    assert run_dir.latest is None, "a kill may have come before it"
    (run_dir.path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="latest is gone, and step-00000003 is there; write the name of an"):
        _ = run_dir.latest


def test_a_checkpoint_whose_removal_is_killed_is_no_longer_there(run_dir, monkeypatch):
    save(run_dir, 3)

    def dying(folder, ignore_errors=False):
        if any(folder.rglob("model.safetensors")):
            raise KeyboardInterrupt

    monkeypatch.setattr("trainer.run_dir.shutil.rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        save(run_dir, 6)
    monkeypatch.undo()
    assert not (run_dir.path / "checkpoints/step-00000003").exists()
    save(run_dir, 9)
    assert kept(run_dir) == [9]


@pytest.mark.parametrize("victim", ["step-00000006", "model.safetensors", "latest"])
def test_a_save_that_dies_before_any_of_its_renames_leaves_the_one_before(run_dir, victim, monkeypatch):
    save(run_dir, 3)
    replace = os.replace

    def dying(source, target):
        if target.name == victim:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save(run_dir, 6)
    monkeypatch.undo()
    top, latest = contents(run_dir)
    assert latest == "weights of step 3" and top in (latest, "weights of step 6")
    save(run_dir, 6)
    assert contents(run_dir) == ("weights of step 6", "weights of step 6")


def test_all_is_on_the_disk_before_it_gets_its_name(run_dir, monkeypatch):
    run_dir.append_records(METRICS, [{"step": 3, "learning_rate": 0.1}])
    fsync, replace, done = os.fsync, os.replace, []

    def flushing(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def naming(source, target):
        done.append(f"{source.name} -> {target.name}")
        replace(source, target)

    monkeypatch.setattr("os.fsync", flushing)
    monkeypatch.setattr("os.replace", naming)
    save(run_dir, 3)
    begin, named = done.index("partial -> step-00000003"), done.index(".latest.partial -> latest")
    assert {"model.safetensors", "training", "partial"} <= {*done[:begin]}
    assert {"checkpoints", "metrics.jsonl", ".latest.partial"} <= {*done[begin:named]}
    assert done[named + 1] == "run"


def test_a_second_writer_is_refused_until_the_first_is_done(run_dir, tmp_path):
    with pytest.raises(UserError, match=f"is being written by process {os.getpid()}; wait for it or stop it"):
        claim(run_dir.path)
    with RunDirectory(tmp_path / "other").claim():
        pass
    with RunDirectory(tmp_path / "other").claim():
        pass


def test_nothing_is_written_through_the_links_of_a_folder_from_a_stranger(tmp_path):
    (precious := tmp_path / "precious").write_text("kept")
    run_dir = RunDirectory(tmp_path / "run")
    (run_dir.path / "checkpoints").mkdir(parents=True)
    for name in (".lock", METRICS, "checkpoints/partial", ".latest.partial", ".model.safetensors.partial"):
        (run_dir.path / name).symlink_to(precious)
    with pytest.raises(UserError, match=r"run/\.lock is a link"):
        claim(run_dir.path)
    (run_dir.path / ".lock").unlink()
    (run_dir.path / "settings.yaml").write_text("seed: 0\n")
    with run_dir.claim():
        for write in (run_dir.begin_checkpoint, lambda: run_dir.append_records(METRICS, [{"step": 1}])):
            with pytest.raises(UserError, match="is a link, which may lead to any file"):
                write()
        for name in (METRICS, "checkpoints/partial"):
            (run_dir.path / name).unlink()
        save(run_dir, 1)
    assert precious.read_text() == "kept" and contents(run_dir) == ("weights of step 1",) * 2


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("forty pages")
    with pytest.raises(UserError, match="holds thesis.tex and no run; choose a new folder"):
        claim(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "thesis.tex")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_a_kill_left_in_the_first_instant_is_taken_up(tmp_path):
    for name in (".lock", "wandb", ".settings.yaml.partial"):
        (tmp_path / name).touch()
    claim(tmp_path)
    assert not (tmp_path / ".settings.yaml.partial").exists()


def test_a_failure_leaves_nothing_unfinished(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    with pytest.raises(RuntimeError), run_dir.claim():
        run_dir.begin_checkpoint()
        (run_dir.path / ".model.safetensors.partial").write_text("half")
        raise RuntimeError
    assert {entry.name for entry in run_dir.path.rglob("*")} == {"checkpoints", ".lock"}


def test_metrics_are_cut_back_to_a_step_and_bear_a_torn_line(run_dir):
    for step in (1, 2, 3):
        run_dir.append_records(METRICS, [{"step": step, "learning_rate": 0.1}])
    with open(run_dir.path / METRICS, "a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in run_dir.read_records(METRICS)] == [1, 2, 3]
    run_dir.cut_records(2, is_validated=True)
    lines = (run_dir.path / METRICS).read_text().splitlines()
    assert lines == [f'{{"step": {step}, "learning_rate": 0.1}}' for step in (1, 2)]


def test_a_validation_that_a_kill_cut_short_is_done_again(run_dir):
    trained = {"step": 2, "learning_rate": 0.1}
    run_dir.append_records(METRICS, [trained, {"step": 2, "validation": "texts", "nats_per_token": 1.0}])
    assert run_dir.is_validated(2, ["texts"]) and not run_dir.is_validated(2, ["texts", "chats"])
    run_dir.cut_records(2, is_validated=True)
    assert len(run_dir.read_records(METRICS)) == 2
    run_dir.cut_records(2, is_validated=False)
    assert run_dir.read_records(METRICS) == [trained]
