"""The chat program as a process: in a pseudo-terminal, and with piped input."""

import io
import json
import os
import pty
import shutil
import termios
import time
from pathlib import Path

import pexpect
import pexpect.fdpexpect
import pytest
import torch
from forked_commands import begin, call

from eval.chat import ChatSession, TextSampling
from eval.terminal import ChatTerminal
from eval.transcript import save_transcript
from scripts.chat import ChatSettings, _question, main
from tests.foreign import FORGETFUL
from tests.serving import save_served, saying_model

SAID = "世国的来Lima😀"
UP = "\x1b[A"
ALT_ENTER = "\x1b\r"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Three models that say SAID: one ends there, one goes on for ever, one forgets soon."""
    folder = tmp_path_factory.mktemp("models")
    save_served(saying_model(SAID, "causal", context=4096), folder / "ends")
    save_served(saying_model(SAID, "prefix", context=100_000, loops=True), folder / "loops")
    save_served(saying_model(SAID, "history", context=128), folder / "forgets")
    return folder


def flags(models: Path, *names: str) -> list[str]:
    given = zip(("--model", "--compare"), names, strict=False)
    return ["scripts.chat", *(part for flag, name in given for part in (flag, str(models / name)))]


class Screen:
    """A chat in a pseudo-terminal whose every byte is kept; reading raises at anything that is no UTF-8."""

    def __init__(self, words: list[str], folder: Path) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (50, 150))
        self.command = begin(words, [os.ttyname(theirs)] * 3, folder, PROMPT_TOOLKIT_NO_CPR="1")
        self.process = pexpect.fdpexpect.fdspawn(ours, encoding="utf-8", timeout=60)
        self.process.expect("Ctrl-D leaves.*> ")
        os.close(theirs)

    def send(self, text: str) -> None:
        """Type, when the program has had the time to listen again."""
        time.sleep(0.05)
        self.process.send(text)

    def enter(self, line: str, answer: str) -> str:
        """Type a line, wait for a pattern; return what stood before it."""
        self.send(f"{line}\r")
        self.process.expect(answer)
        return self.process.before

    def interrupt(self) -> None:
        self.send("\x03")

    def leave(self) -> None:
        self.send("/exit\r")
        self.process.expect(pexpect.EOF)
        self.process.close()
        self.command.join(60)
        assert self.command.exitcode == 0


def test_ten_turns_and_every_command_in_a_terminal(models, tmp_path):
    screen = Screen(flags(models, "ends"), tmp_path)
    for turn in range(10):
        streamed = screen.enter(
            f"法国的首都？😀 {turn}", rf"\[16 tokens.*{'reused' if turn else 'new'}.*stop\]"
        )
        assert SAID in streamed and "\ufffd" not in streamed
    for line, answer in (
        (
            "/stats",
            r"10 turns, \d+ of 4096 tokens of context, which is reused each turn.*"
            r"float32 weights, decoding not compiled.*reused tokens.*stop\]",
        ),
        ("/mask", "prompt_mask causal"),
        ("/undo", r"taken back: 法国的首都？😀 9"),
        ("/save talk.jsonl", "talk.jsonl is written"),
        ("/clear", "forgotten"),
        ("/undo", "error: there is no turn"),
        ("/load talk.jsonl", "9 turns, the last: 法国的首都？😀 8"),
        ("/load nowhere.jsonl", "error: data file not found: nowhere.jsonl"),
        ("/save no/where.jsonl", "error: .*no/where"),
        ("/retry", r"at temperature 0.*stop\]"),
        ("/system Be brief.", "system message: Be brief."),
        ("/set max_new_tokens 6", "seed 1, max_new_tokens 6"),
        ("And?", r"世国\r.*\[6 tokens.* 1 reused.*length\]"),  # one marker stands where it stood
        ("/continue", r"世国的来Lima\r.*prefill 1 new.*length\]"),
        ("/begin 世国", "answers begin with: 世国"),
        ("/retry", r"世国的来Lima\r.*length\]"),
        ("/begin", "answers begin freely"),
        (f"two{ALT_ENTER}lines", r"two.*lines.*length\]"),
        ("/undo", "taken back: two"),
        (UP * 4, "answers begin freely"),  # past /undo and the two lines
        ('/set stop_strings ["世"]', r'max_new_tokens 6, stop_strings \["世"\]'),
        ("Stop?", r"\[3 tokens.*stop_string\]"),
        ("/set log_probabilities true", r"\], log_probabilities true"),
        ("Sure?", r"nats per token"),
        ("/set top_p 3", "error: top_p must be between 0 and 1"),
        ("/set seed x", "error: seed: expected a whole number"),
        ("/nonsense", "error: unknown command /nonsense"),
        ("/help", "/reset or /clear.*/continue.*/quit or /exit.*/load.*/undo"),
    ):
        screen.enter(line, f"(?s){answer}")
    screen.leave()
    record = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))
    assert len(record["conversations"]) == 18 and record["conversations"][1]["content"] == SAID


def test_ctrl_c_stops_the_answers_of_both_models_only_and_overflow_is_told(models, tmp_path):
    limit = ["--max_new_tokens", "90000"]
    screen = Screen([*flags(models, "forgets", "loops"), *limit], tmp_path)
    screen.send("Go on\r")
    screen.process.expect("来Lima😀世国")  # the column of the model that goes on
    screen.interrupt()
    screen.process.expect(r"(?s)history: \[16 tokens.*stop\].*prefix: \[\d+ tokens.*cancelled\]")
    screen.enter("/set max_new_tokens 20", "max_new_tokens 20")
    for _ in range(3):
        screen.enter("And again, please?", r"prefix: \[20 tokens")
    screen.enter(
        "/stats", r"(?s)history: .*prefilled again.*prefix: .*is reused.*history: .* 0 reused tokens"
    )
    screen.enter(
        "And again, please?", r"history: the context is full: the oldest turns were forgotten \(\d\)"
    )
    screen.enter("word " * 60, r"error: prompt has \d+ tokens but the model takes 128")
    screen.interrupt()  # at an empty line
    screen.enter("/save two.jsonl", "two.jsonl is written")
    screen.leave()
    assert len((tmp_path / "two.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_piped_input_is_answered_once_with_the_text_only(models):
    piped = call(flags(models, "ends"), "法国的\n首都是哪里？\n")
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, f"{SAID}\n", "")


def test_an_answer_that_a_limit_cuts_is_said_to_be_cut(models, monkeypatch, capsys):
    asked = [*flags(models, "ends"), "--prompt", "法国?", "--max_new_tokens", "3"]
    for raw, note in (
        ([], "note: cut after 3 tokens (--max_new_tokens, or the end of the context)\n"),
        (["--raw"], ""),
    ):
        monkeypatch.setattr("sys.argv", asked + raw)
        main()
        assert capsys.readouterr().err == note


@pytest.mark.long
def test_of_piped_text_only_the_last_line_end_is_no_part_of_it(monkeypatch):
    for piped, asked in (("a", "a"), ("a\n", "a"), ("a\n\n", "a\n")):
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        assert _question(ChatSettings(model="m", raw=True)) == asked


def test_piped_input_is_answered_by_each_of_two_models_below_its_name(models):
    more = [
        "--max_new_tokens",
        "15",
        "--stop_strings",
        "ma",
        "--answer_prefix",
        "世国",
        "--log_probabilities",
    ]
    piped = call([*flags(models, "ends", "loops"), *more], "法国？\n")
    assert piped.returncode == 0
    assert piped.stdout == "[causal]\n世国的来Li\n[prefix]\n世国的来Li\n"
    assert piped.stderr.count("nats per token") == 2


def test_a_model_that_was_only_trained_on_texts_is_said_to_be_no_chat(models, tmp_path):
    folder = shutil.copytree(models / "ends", tmp_path / "texts")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"trained_on": "texts"}))
    asked = [*flags(tmp_path, "texts"), "--prompt", "?"]
    (folder / "chat_template.jinja").write_text(FORGETFUL)
    stops = json.loads((file := folder / "generation_config.json").read_text())
    file.write_text(json.dumps(stops | {"do_sample": True, "temperature": 0.7}))
    notes = (
        f"note: {folder} was never fine-tuned on chats; --raw continues text\n"
        f"note: {folder}: the chat template leaves out earlier answers (9 of 20 messages)\n"
        f"note: {file}: not read are do_sample, temperature; flags and requests say how answers are drawn\n"
    )
    assert call(asked).stderr == notes
    assert call([*asked, "--raw"]).stderr == ""


@pytest.mark.parametrize("closed, code", [(0, 2), (1, 0), (2, 0)])
def test_closed_streams_make_no_traceback(models, closed, code):
    question = [] if closed == 0 else ["--prompt", "法国?"]
    done = call(flags(models, "ends") + question, closed=closed)
    assert done.returncode == code
    assert done.stderr.count("\n") == (code == 2) and "Traceback" not in done.stderr


STEERS = "世\x1b]0;T\x07国\r\t的"


def test_nothing_that_a_model_or_a_transcript_says_steers_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    served = saying_model(STEERS, "causal")
    sessions = [ChatSession(served, TextSampling(log_probabilities=True), "\x1b]0;S") for _ in range(2)]
    for session in sessions:
        pieces = list(session.ask("\x1b]0;Q\x07"))
        assert len([piece for piece in pieces if piece]) > 2, "the sequence comes in several pieces"
    for terminal in (ChatTerminal(sessions[:1]), ChatTerminal(sessions)):
        save_transcript("talk.jsonl", terminal.sessions)
        for line in ("Q", "/mask", "/stats", "/undo", "/load talk.jsonl", "/load \x1b]0;F", "/\x1b]0;C"):
            terminal.obey(line)
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\x07" not in shown and "\r" not in shown
        for escaped in (r"世\x1b]0;T\x07国\r", r"\x1b]0;Q\x07", r"\x1b]0;F", r"/\x1b]0;C"):
            assert escaped in shown


def test_a_chat_goes_on_after_an_answer_that_memory_was_too_small_for(capsys, monkeypatch):
    served = saying_model(SAID, "causal")
    terminal = ChatTerminal([ChatSession(served, TextSampling())])
    terminal.obey("Q")
    with monkeypatch.context() as patch:
        patch.setattr(served.model.model, "forward", raising(torch.OutOfMemoryError("CUDA out of memory.")))
        terminal.obey("And?")
    assert "error: out of memory (CUDA out of memory.); lower --batch_size" in capsys.readouterr().out
    terminal.obey("And?")
    assert SAID in capsys.readouterr().out and len(terminal.sessions[0].turns) == 2


def raising(error: Exception):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_an_answer_to_a_pipe_holds_escapes_instead_of_control_characters(tmp_path):
    folder = save_served(saying_model(STEERS, "causal"), tmp_path / "steers")
    assert call(flags(tmp_path, folder.name), "Q").stdout == "世\\x1b]0;T\\x07国\\r\t的\n"
