"""The budgets of the house: a core that is read in an afternoon, and folders that grow only with need."""

from pathlib import Path

import pytest
from conftest import LONGEST, is_alone
from test_imports import FOLDERS, ROOT, direct, modules

from scripts.bench.entered import CORE

MOST_CORE_LINES, MOST_OTHERS = 2000, 15

LINES = {  # of a folder: what it may have with all that is planned, and what it has until it is that small
    "model": (3600, 5785),
    "dataset": (3000, 6305),
    "trainer": (2700, 3761),
    "eval": (4200, 8815),
    "scripts": (1000, 1175),
    "eval/engines": (900, 1112),
    "scripts/bench": (1500, 2161),
}


def lines_of(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_core_is_read_in_an_afternoon_and_with_few_other_files():
    files = [ROOT / name for name in CORE]
    assert lines_of(files) <= MOST_CORE_LINES
    others = {other for file in files for other in direct(file)} - {*files}
    assert len(others) <= MOST_OTHERS, sorted(str(other.relative_to(ROOT)) for other in others)


@pytest.mark.parametrize("folder", LINES)
def test_a_folder_has_no_more_lines_than_it_may(folder):
    planned, today = LINES[folder]
    lines = lines_of([*(ROOT / folder).glob("*.py")])
    assert lines <= max(planned, today), f"{folder} has {lines} lines; make something smaller first"


def test_no_file_is_longer_than_350_lines():
    assert not [file.name for file in modules(*FOLDERS) if lines_of([file]) > 350]


def test_the_page_has_no_more_lines_than_it_may():
    assert lines_of([*(ROOT / "eval/page").iterdir()]) <= 900


def test_tests_are_no_longer_than_what_they_test():
    assert lines_of(modules("tests")) <= lines_of(modules(*FOLDERS))


def test_there_are_five_folders_of_code():
    assert {file.parent.name for file in ROOT.glob("*/__init__.py")} == {*FOLDERS}


def test_the_longest_files_are_begun_first(request):
    names = [item.path.stem for item in request.session.items if not is_alone(item.nodeid)]
    places = [LONGEST.index(name) if name in LONGEST else len(LONGEST) for name in names]
    assert places == sorted(places)
