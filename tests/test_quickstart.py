"""The quickstart itself, at its smallest scale: from nothing to two models that were compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "quickstart.sh"


def run_quickstart(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"QUICKSTART_SCALE": "smoke", "QUICKSTART_OUT": str(folder / "out")}
    return subprocess.run(
        ["bash", str(SCRIPT)], env=environment | variables, cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The folder that a whole quickstart has filled, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = run_quickstart(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout.partition("Does the quickstart")[2]  # packages may have been installed first


def test_it_leaves_two_models_from_one_checkpoint_and_their_comparison(finished):
    folder, printed = finished
    out = folder / "out"
    for name, mask in (("pretrain", "causal"), ("sft-causal", "causal"), ("sft-prefix", "prefix")):
        assert load_checkpoint(out / name).model.config.prompt_mask == mask
        assert (out / name / "loss.png").stat().st_size > 0
    results = json.loads((out / "results.json").read_text())
    tasks = {each["task"] for each in results["comparisons"]}
    assert tasks >= {"facts_unseen_wording", "followup", "reverse", "loss chats_val"}
    prefix = results["arms"][1]
    assert prefix["differs_because"] == ["sft.prompt_mask: prefix, not None"]
    assert prefix["proof"]["sft"] == dict.fromkeys(("initial_weights", "rows", "targets"), "equal")
    assert set("".join(prefix["mask"]["rows"])) == {"0", "1"} and len(prefix["attention"]) == 4
    assert "<svg" in (out / "report.html").read_text() and (out / "report.md").stat().st_size > 0
    assert "one seed: says nothing about masks" in printed and "prefix\N{MINUS SIGN}causal" in printed
    assert f"python -m scripts.chat --model {out}/sft-prefix" in printed


def test_a_second_run_computes_nothing_and_changes_no_model(finished):
    folder, printed = finished
    models = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    again = run_quickstart(folder, OMP_NUM_THREADS="3")  # other cores, the same results
    assert again.returncode == 0, again.stderr
    assert "[1/" not in again.stderr and again.stdout.partition("Does the quickstart")[2] == printed
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == models


def test_the_command_that_it_prints_answers(finished):
    folder, _ = finished
    command = [sys.executable, "-m", "scripts.chat", "--model", str(folder / "out" / "sft-prefix")]
    command += ["--prompt", "法国的首都是哪里?"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # no fork: as a user starts it
    said = [line for line in done.stderr.splitlines() if not line.startswith("note: cut after 256 tokens")]
    assert done.returncode == 0 and not said and done.stdout.endswith("\n")


@pytest.mark.parametrize("scale, shown", [("huge", "huge"), ("\x1b[1m\a\u202e", r"$'\E[1m\a\342\200\256'")])
def test_an_unknown_scale_is_one_line_and_exit_code_2(tmp_path, scale, shown):
    done = run_quickstart(tmp_path, QUICKSTART_SCALE=scale)
    said = f"error: QUICKSTART_SCALE: expected full or smoke, got {shown}\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not list(tmp_path.iterdir())
