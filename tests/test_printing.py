"""Foreign text on a terminal, and streams that lack characters or are closed."""

import json
import os
import subprocess
import sys

import pytest

from dataset.printing import clear_environment, printable
from model.files import as_json


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("a\u2028b\ud800", r"a\u2028b\ud800"),
        ("家\u3000é 👩\u200d💻\ufe0f\xa0", "家\u3000é 👩\u200d💻\ufe0f\xa0"),
    ],
)
def test_what_would_steer_a_terminal_is_shown_as_an_escape_and_all_else_as_it_is(text, shown):
    assert printable(text) == shown


def test_what_is_to_be_kept_stays():
    assert printable("two\nlines\x1b", keep="\n\t") == "two\nlines\\x1b"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_of_ours_is_readable_whole_and_holds_nothing_that_steers_a_terminal_or_cuts_a_line(indent):
    foreign = {
        "阅读\x7f": ["家\u3000é 👩\u200d💻", "\x9b31m\x1b", "a\x85b\u2028c", "\u202etxt", "\U000e0041\ud800"]
    }
    text = as_json(foreign, indent)
    assert json.loads(text) == foreign and "阅读" in text and "家\u3000é 👩\u200d💻" in text
    assert printable(text, keep="\n") == text and text.splitlines() == text.split("\n")


def program(text: str, redirection: str) -> subprocess.CompletedProcess:
    """What a program of ours does that prints `text` under a redirection, in a terminal without UTF-8."""
    code = f"from dataset.printing import prepare_streams; prepare_streams(); print({text!r})"
    command = f'PYTHONIOENCODING=latin-1 "{sys.executable}" -c "$1" {redirection}'
    return subprocess.run(["bash", "-c", command, "-", code], capture_output=True)


def test_a_character_that_the_terminal_lacks_is_printed_as_an_escape():
    done = program("é 家", "")
    assert (done.stdout, done.stderr, done.returncode) == (b"\xe9 \\u5bb6\n", b"", 0)


def test_no_variable_of_the_environment_is_left_that_a_library_could_steer_a_terminal_with(monkeypatch):
    monkeypatch.setenv("OURS", "ev\x1b[31mil\u202e\x9b")
    monkeypatch.setenv("SHELLS", "() {\n\techo 家\n}")
    monkeypatch.setenv("FOLDER", "/home/j\udce9r\udc9b")
    clear_environment()
    assert os.environ["OURS"] == r"ev\x1b[31mil\u202e\x9b"
    assert (os.environ["SHELLS"], os.environ["FOLDER"]) == ("() {\n\techo 家\n}", "/home/j\udce9r\udc9b")
    code = "from dataset.command_line import run; run(lambda: __import__('pyarrow').default_memory_pool())"
    variables = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "ev\x1b[31mil"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=variables)
    assert rb"ev\x1b[31mil" in done.stderr and b"\x1b" not in done.stderr
    variables = os.environ | {"OPENBLAS_VERBOSE": "2", "OPENBLAS_CORETYPE": "\x1b[31mfoo"}
    for command in ("prepare_data", "ablate", "judge", "show_batch"):  # with numpy, imported early or late
        words = [sys.executable, "-m", f"scripts.{command}", "--help"]
        assert b"\x1b" not in subprocess.run(words, capture_output=True, env=variables).stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_program(redirection):
    done = program("words", redirection)
    assert (done.stderr, done.returncode) == (b"", 0)


def test_a_mistake_of_ours_shows_what_would_steer_the_terminal_as_escapes():
    code = (
        "from dataset.printing import prepare_streams; prepare_streams(); raise ValueError('\x1b[2J\u202e')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.startswith("Traceback ") and done.stderr.endswith("\nValueError: \\x1b[2J\\u202e\n")
    assert done.returncode == 1


def test_what_ends_a_thread_or_a_cleaning_up_shows_what_would_steer_the_terminal_as_escapes():
    code = (
        "import threading\n"
        "from dataset.printing import prepare_streams; prepare_streams()\n"
        "class Lost:\n"
        "    def __del__(self): raise ValueError('\x1b[2J')\n"
        "Lost()\n"
        "def fall(): raise ValueError('\u202e')\n"
        "for work in (fall, lambda: exit(3)):\n"
        "    threading.Thread(target=work).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if not line.startswith((" ", "Traceback"))]
    assert told == [r"ValueError: \x1b[2J", r"ValueError: \u202e"] and done.returncode == 0


def test_what_libraries_log_and_warn_of_shows_what_would_steer_the_terminal_as_escapes():
    code = (
        "import logging, warnings\n"
        "from dataset.printing import prepare_streams; prepare_streams()\n"
        "logging.getLogger('library').warning('task %s', 'a\x1b[2J')\n"
        "logging.getLogger('library').error('failed', exc_info=ValueError('\u202e'))\n"
        "warnings.warn('\x9b31m')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, second, *_, traced, warned = done.stderr.splitlines()
    assert (first, second, traced) == (r"task a\x1b[2J", "failed", r"ValueError: \u202e")
    assert warned.endswith(r"UserWarning: \x9b31m")
