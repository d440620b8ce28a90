"""The answers in docs/results: each is whole, that of its experiment's file, and honest about noise."""

import json
from pathlib import Path

import pytest
import scipy

from eval.experiment import load_experiment

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*/results.json"))


@pytest.fixture(params=RESULTS, ids=lambda file: file.parent.name)
def result(request) -> tuple[Path, dict]:
    """A folder of docs/results and its numbers."""
    return request.param.parent, json.loads(request.param.read_text(encoding="utf-8"))


def test_a_result_is_that_of_the_file_that_its_command_names(result):
    folder, found = result
    words = found["experiment"]["command"].split()
    assert words[:3] == ["python", "-m", "scripts.ablate"] and words[words.index("--out") + 1] == str(
        folder.relative_to(ROOT)
    )
    experiment = load_experiment(str(ROOT / words[words.index("--config") + 1]))
    assert found["experiment"]["hash"] == experiment.hash
    assert list(json.loads((folder / "experiments.json").read_text())) == [experiment.hash]


def test_every_cell_is_finished_and_has_its_record_from_one_commit(result):
    folder, found = result
    assert {cell["status"] for cell in found["cells"]} == {"finished"}
    records = [folder / "cells" / f"{cell['address']}.json" for cell in found["cells"]]
    assert len({json.loads(record.read_text())["commit"] for record in records}) == 1
    assert all((folder / name).stat().st_size > 0 for name in ("report.html", "report.md"))


def test_arms_against_themselves_are_told_apart_no_more_often_than_chance_does():
    noise = [
        each
        for file in RESULTS
        for each in json.loads(file.read_text(encoding="utf-8"))["a_a"]
        if not each["is_kind"]
    ]
    rejected = sum(each["p_value"] <= each["alpha"] for each in noise)
    low, high = scipy.stats.binom.interval(0.99, len(noise), 0.05)
    assert low <= rejected <= high, f"{rejected} of {len(noise)}"
