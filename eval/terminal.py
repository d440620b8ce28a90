"""The interactive chat program: reads lines, streams answers, obeys commands; Ctrl-C stops an answer only."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dataset.messages import shown as shown_names
from dataset.printing import printable
from eval.answer_text import shown
from eval.chat import ChatSession, TextSession
from eval.chat_reports import (
    describe_context,
    describe_forgotten,
    describe_mask,
    describe_probabilities,
    describe_reply,
)
from eval.served_model import tell_apart
from eval.serving_settings import TextSampling
from eval.transcript import is_replaced, load_transcript, save_transcript
from model.errors import UserError, brief, in_a_line

Ask = Callable[[TextSession, Callable[[], bool]], Iterator[str]]
"""begins an answer of a session, given the question "is it cancelled?" """


class Terminal:
    """Talks with one model or several side by side; a method `command_x` is /x, its docstring the help."""

    def __init__(self, sessions: Sequence[TextSession]) -> None:
        self.sessions = sessions
        served = [session.served for session in sessions]
        labels = tell_apart([each.prompt_mask for each in served], [each.path for each in served])
        self.labels = [printable(label) for label in labels]
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.is_running = True

    def run(self) -> None:
        """Talk until /quit or the end of input."""
        for served in (session.served for session in self.sessions):
            self.note(f"{served.path}: {served.model.num_parameters():,} weights, {served.prompt_mask} mask")
        self.note("/help lists commands, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves")
        bindings = KeyBindings()
        bindings.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        reader = PromptSession(key_bindings=bindings, prompt_continuation="  ")
        while self.is_running:
            try:
                line = reader.prompt(FormattedText([("bold fg:ansicyan", "> ")])).strip()
                if line:
                    self.obey(line)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def obey(self, line: str) -> None:
        """Run a command or answer a text; a mistake of the user is one line, and nothing else happens."""
        try:
            name, _, argument = line[1:].partition(" ")
            if not line.startswith("/"):
                self.say(lambda session, is_cancelled: session.ask(line, is_cancelled))
            elif name in (commands := self._commands()):
                commands[name](argument.strip())
            else:
                raise UserError(f"unknown command /{name}; /help lists them")
        except Exception as error:
            if (line := in_a_line(error)) is None:
                raise
            self.console.print(f"error: {printable(line)}", style="red", soft_wrap=True)

    def say(self, ask: Ask) -> None:
        """Stream an answer of every model, then a line on what it cost."""
        with interrupt_as_event() as is_cancelled:
            answers = [ask(session, is_cancelled) for session in self.sessions]
            if len(answers) == 1:
                for piece in answers[0]:
                    print(shown(piece), end="", flush=True)
                print()
            else:
                self._show_side_by_side(answers)
        self._note_each(describe_probabilities)
        self._note_each(lambda session: describe_reply(session.last))

    def note(self, text: str) -> None:
        """Print a dim line of the program itself, in which foreign text may stand."""
        self.console.print(shown(text), style="dim", soft_wrap=True)

    def command_help(self, argument: str) -> None:
        """/help: list the commands"""
        for command in dict.fromkeys(self._commands().values()):  # some have two names
            usage, _, meaning = command.__doc__.partition(": ")
            self.note(f"  {usage:24}{meaning}")

    def command_quit(self, argument: str) -> None:
        """/quit or /exit: leave"""
        self.is_running = False

    command_exit = command_quit

    def command_set(self, argument: str) -> None:
        """/set [NAME VALUE]: show how tokens are sampled, or change it: temperature 0.7, top_k none, …"""
        if argument:
            name, _, value = argument.partition(" ")
            change = {name: parse_setting(name, value.strip())}
            for session in self.sessions:
                session.change_sampling(**change)
        self.note(describe_sampling(self.sessions[0].sampling))

    def command_stats(self, argument: str) -> None:
        """/stats: show how the model is computed and what the last answer cost"""
        self._note_each(lambda session: session.served.speed)
        if self.sessions[0].last is None:
            raise UserError("nothing has been answered yet")
        self._note_each(lambda session: describe_reply(session.last))

    def _note_each(self, describe: Callable[[TextSession], str]) -> None:
        for label, session in zip(self.labels, self.sessions, strict=True):
            if text := describe(session):
                self.note(f"{label}: {text}" if len(self.sessions) > 1 else text)

    def _show_side_by_side(self, answers: Sequence[Iterator[str]]) -> None:
        texts, going = [""] * len(answers), list(range(len(answers)))
        with Live(console=self.console, refresh_per_second=10) as live:
            while going:
                for n in list(going):
                    piece = next(answers[n], None)
                    texts[n] += piece or ""
                    if piece is None:
                        going.remove(n)
                table = Table(expand=True)
                for label in self.labels:
                    table.add_column(label, ratio=1, overflow="fold")
                table.add_row(*(Text(shown(text)) for text in texts))
                live.update(table)

    def _commands(self) -> dict[str, Callable[[str], None]]:
        names = (name for name in dir(self) if name.startswith("command_"))
        return {name.removeprefix("command_"): getattr(self, name) for name in names}


class ChatTerminal(Terminal):
    """The terminal of a conversation, which every model has for itself."""

    sessions: Sequence[ChatSession]

    def say(self, ask: Ask) -> None:
        """Stream an answer of every model, then lines on what it cost and what had to be forgotten."""
        super().say(ask)
        self._note_each(describe_forgotten)

    def command_system(self, argument: str) -> None:
        """/system [TEXT]: set the system message; without TEXT there is none"""
        for session in self.sessions:
            session.system = argument
        self.note(f"system message: {argument}" if argument else "no system message")

    def command_begin(self, argument: str) -> None:
        """/begin [TEXT]: let answers begin with TEXT and go on from there; without TEXT they are free"""
        for session in self.sessions:
            session.answer_prefix = argument
        self.note(f"answers begin with: {argument}" if argument else "answers begin freely")

    def command_continue(self, argument: str) -> None:
        """/continue: let the last answer go on from where it ended"""
        self.say(ChatSession.proceed)

    def command_undo(self, argument: str) -> None:
        """/undo: take back the last question and its answer"""
        question = [session.last_turn().question for session in self.sessions][0]
        for session in self.sessions:
            session.undo()
        self.note(f"taken back: {question}")

    def command_retry(self, argument: str) -> None:
        """/retry: answer the last question again, with the next seed"""
        if self.sessions[0].sampling.temperature == 0:
            self.note("at temperature 0 a seed changes nothing; /set temperature 0.8 lets answers differ")
        self.say(ChatSession.retry)

    def command_reset(self, argument: str) -> None:
        """/reset or /clear: forget the conversation; system message and settings stay"""
        for session in self.sessions:
            session.reset()
        self.note("forgotten")

    command_clear = command_reset

    def command_save(self, argument: str) -> None:
        """/save FILE.jsonl: write what the model remembers of the conversation, as training data"""
        replaced = "; what it held before is replaced" * is_replaced(argument, self.sessions)
        blank = save_transcript(argument, self.sessions)
        left_out = f"; {blank} turns with blank answers are left out" if blank else ""
        self.note(f"{argument} is written{replaced}{left_out}")

    def command_load(self, argument: str) -> None:
        """/load FILE.jsonl: take up a conversation that was saved"""
        if keys := load_transcript(argument, self.sessions):
            self.note(f"not taken up: {shown_names(keys)}")
        self._note_each(lambda session: f"{len(session.turns)} turns, the last: {session.turns[-1].question}")

    def command_mask(self, argument: str) -> None:
        """/mask: show which token of the conversation sees which"""
        self._note_each(describe_mask)

    def command_stats(self, argument: str) -> None:
        """/stats: show how full the context is, how the model is computed and what the last answer cost"""
        self._note_each(describe_context)
        super().command_stats(argument)


@contextmanager
def interrupt_as_event() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into an answer to the question "was it pressed?" while the block runs."""
    pressed = Event()
    former = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, former)


def parse_setting(name: str, text: str) -> Any:
    """Return the value of a sampling setting; `UserError` for an unknown name or a wrong type."""
    if name not in SETTINGS:
        raise UserError(f"unknown setting {name!r}; choose one of {', '.join(SETTINGS)}")
    read, expected = SETTINGS[name]
    try:
        return read(text)
    except (ValueError, KeyError, RecursionError):
        raise UserError(f"{name}: expected {expected}, got {brief(text)}") from None


def describe_sampling(sampling: TextSampling) -> str:
    """Return the sampling settings on one line, as `parse_setting` reads them."""
    values = {name: str(getattr(sampling, name)).lower() for name in SETTINGS}
    values["stop_strings"] = json.dumps(sampling.stop_strings, ensure_ascii=False)
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _texts(text: str) -> tuple[str, ...]:
    values = json.loads(text) if text.startswith("[") else [text]
    if not all(isinstance(value, str) for value in values):
        raise ValueError
    return tuple(values)


SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (float, "a number"),
    "top_k": (lambda text: None if text == "none" else int(text), "a whole number or none"),
    "top_p": (float, "a number"),
    "min_p": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "seed": (int, "a whole number"),
    "max_new_tokens": (int, "a whole number"),
    "stop_strings": (_texts, 'a text, or a list such as ["\\n", "User:"] or []'),
    "log_probabilities": ({"true": True, "false": False}.__getitem__, "true or false"),
}
