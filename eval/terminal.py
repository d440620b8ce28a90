"""The interactive chat program: reads lines, streams answers, obeys commands; Ctrl-C stops an answer only."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from rich.console import Console

from eval.chat import ChatSession, ReplyStatistics, TextSession
from eval.drawings import describe_blocks, draw_mask
from eval.plots import mask_panel
from model.errors import UserError
from model.sampling import Sampling

SETTINGS = {"temperature": float, "top_k": int, "top_p": float, "seed": int, "max_new_tokens": int}
WIDEST_PICTURE_TOKENS = 60


class Terminal:
    """Reads lines and answers them; a method `command_x` is the command /x, and its docstring is its help."""

    def __init__(self, session: TextSession) -> None:
        self.session = session
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.is_running = True

    def run(self) -> None:
        """Talk until /quit or the end of input."""
        served = self.session.served
        self.note(f"{served.path}: {served.model.num_parameters():,} parameters, {served.prompt_mask} mask")
        self.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        reader = PromptSession()
        while self.is_running:
            try:
                line = reader.prompt(FormattedText([("bold fg:ansicyan", "> ")])).strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line:
                self.obey(line)

    def obey(self, line: str) -> None:
        """Run a command or answer a text; a mistake of the user is one line, and nothing else happens."""
        try:
            if line.startswith("/"):
                self._run_command(line)
            else:
                self.say(self.session.ask, line)
        except UserError as error:
            self.console.print(f"error: {error}", style="red")

    def say(self, ask: Callable[..., Iterator[str]], *arguments: str) -> None:
        """Stream an answer, then a line on what it cost."""
        with interrupt_as_event() as is_cancelled:
            for piece in ask(*arguments, is_cancelled=is_cancelled):
                print(piece, end="", flush=True)
        print()
        self.note(describe_reply(self.session.last))

    def note(self, text: str) -> None:
        """Print a dim line of the program itself."""
        self.console.print(text, style="dim", soft_wrap=True)

    def command_help(self, argument: str) -> None:
        """/help: list the commands"""
        for command in self._commands().values():
            usage, _, meaning = command.__doc__.partition(": ")
            self.note(f"  {usage:24}{meaning}")

    def command_quit(self, argument: str) -> None:
        """/quit: leave"""
        self.is_running = False

    def command_set(self, argument: str) -> None:
        """/set [NAME VALUE]: show how tokens are sampled, or change it: temperature 0.7, top_k none, …"""
        if argument:
            name, _, value = argument.partition(" ")
            self.session.change_sampling(**{name: parse_setting(name, value.strip())})
        self.note(describe_sampling(self.session.sampling))

    def command_stats(self, argument: str) -> None:
        """/stats: show what the last answer cost"""
        if self.session.last is None:
            raise UserError("nothing has been answered yet")
        self.note(describe_reply(self.session.last))

    def _run_command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        if name not in self._commands():
            raise UserError(f"unknown command /{name}; /help lists them")
        self._commands()[name](argument.strip())

    def _commands(self) -> dict[str, Callable[[str], None]]:
        prefix = "command_"
        return {
            name.removeprefix(prefix): getattr(self, name) for name in dir(self) if name.startswith(prefix)
        }


class ChatTerminal(Terminal):
    """The terminal of a conversation."""

    session: ChatSession

    def say(self, ask: Callable[..., Iterator[str]], *arguments: str) -> None:
        """Stream an answer, then a line on what it cost and one on what had to be forgotten."""
        super().say(ask, *arguments)
        if self.session.dropped_turns:
            self.note(f"the context is full: the oldest turns were forgotten ({self.session.dropped_turns})")

    def command_system(self, argument: str) -> None:
        """/system [TEXT]: set the system message; without TEXT there is none"""
        self.session.system = argument
        self.note(f"system message: {argument}" if argument else "no system message")

    def command_undo(self, argument: str) -> None:
        """/undo: take back the last question and its answer"""
        self.note(f"taken back: {self.session.undo().question}")

    def command_retry(self, argument: str) -> None:
        """/retry: answer the last question again, with the next seed"""
        if self.session.sampling.temperature == 0:
            self.note("at temperature 0 a seed changes nothing; /set temperature 0.8 lets answers differ")
        self.say(self.session.retry)

    def command_reset(self, argument: str) -> None:
        """/reset: forget the conversation; system message and settings stay"""
        self.session.reset()
        self.note("forgotten")

    def command_mask(self, argument: str) -> None:
        """/mask: show which token of the conversation sees which"""
        served = self.session.served
        ids, block_ids = self.session.layout()
        self.note(f"prompt_mask {served.prompt_mask}, {len(ids)} tokens: {describe_blocks(block_ids)}")
        if 0 < len(ids) <= WIDEST_PICTURE_TOKENS:
            panel = mask_panel(served.prompt_mask, block_ids, served.model.config.sliding_window)
            self.note(draw_mask(panel.mask, [served.tokenizer.token_text(i) for i in ids.tolist()]))

    def command_stats(self, argument: str) -> None:
        """/stats: show how full the context is and what the last answer cost"""
        capacity, used = self.session.served.model.config.max_position_embeddings, self.session.layout()[0]
        self.note(f"{len(self.session.turns)} turns, {len(used)} of {capacity} tokens of context")
        super().command_stats(argument)


def parse_setting(name: str, text: str) -> float | int | None:
    """Return the value of a sampling setting; `UserError` for an unknown name or a wrong type."""
    if name not in SETTINGS:
        raise UserError(f"unknown setting {name!r}; choose one of {', '.join(SETTINGS)}")
    if name == "top_k" and text == "none":
        return None
    try:
        return SETTINGS[name](text)
    except ValueError:
        raise UserError(f"{name}: expected {SETTINGS[name].__name__}, got {text!r}") from None


def describe_sampling(sampling: Sampling) -> str:
    """Return the sampling settings on one line."""
    return ", ".join(f"{name} {str(getattr(sampling, name)).lower()}" for name in SETTINGS)


def describe_reply(reply: ReplyStatistics) -> str:
    """Return what an answer cost on one line."""
    speed = f"{reply.tokens} tokens, {reply.tokens_per_second:.0f} tokens/s"
    prefill = f"prefill {reply.prefilled_tokens} new + {reply.reused_tokens} reused tokens"
    return f"[{speed}, {prefill} in {reply.prefill_seconds * 1000:.0f} ms, {reply.finish_reason}]"


@contextmanager
def interrupt_as_event() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into an answer to the question "was it pressed?" while the block runs."""
    pressed = Event()
    former = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, former)
