"""Talk with a model: interactively, or once with `--prompt` or piped input."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.config import PromptMask
from model.errors import UserError
from trainer.command_line import parse, run

if TYPE_CHECKING:
    from eval.chat import TextSession


@dataclass(frozen=True)
class ChatSettings:
    """Flags of the chat."""

    model: str
    """model directory"""
    prompt: tuple[str, ...] | None = None
    """answer this once and leave: only the answer goes to standard output; piped input likewise"""
    system: str = ""
    """system message of the conversation"""
    raw: bool = False
    """continue text as a pretrained model does, instead of answering questions"""
    temperature: float = 0.0
    """divides the logits before a token is drawn; 0, the default, always takes the most probable token"""
    top_k: int | None = None
    """draw from this many most probable tokens only"""
    top_p: float = 1.0
    """draw from the most probable tokens that reach this much probability together"""
    seed: int = 0
    """of the random choice; the same seed gives the same answer"""
    max_new_tokens: int = 256
    """most tokens of an answer"""
    prompt_mask: PromptMask | None = None
    """attention pattern over the prompt; by default the one that the model was trained with"""
    allow_mask_mismatch: bool = False
    """run the model with a --prompt_mask that it was not trained with"""


def main() -> None:
    """Answer once or talk until the user leaves."""
    settings = parse(ChatSettings, "Talk with a model.")
    if settings.raw and settings.system:
        raise UserError("--system has no effect with --raw; leave one of them out")
    question = _question(settings)
    session = _session(settings)
    if question is None:
        _talk(session)
        return
    for piece in session.ask(question):
        print(piece, end="", flush=True)
    print()


def _question(settings: ChatSettings) -> str | None:
    """Return what is to be answered once, None to talk."""
    if settings.prompt is None and sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.read().rstrip("\n") if settings.prompt is None else " ".join(settings.prompt)
        text.encode()
    except UnicodeError:
        raise UserError("the prompt is not valid UTF-8 text") from None
    if not text.strip() and not settings.raw:
        raise UserError("the prompt is empty; give --prompt a question, or pipe one in")
    return text


def _session(settings: ChatSettings) -> "TextSession":
    from eval.chat import ChatSession, RawSession
    from eval.served_model import open_model
    from model.sampling import Sampling

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    sampling = Sampling(**{name: getattr(settings, name) for name in names})
    served = open_model(settings.model, settings.prompt_mask, settings.allow_mask_mismatch)
    if settings.allow_mask_mismatch:
        print(f"note: running with {served.prompt_mask}, not with the mask of its training", file=sys.stderr)
    return RawSession(served, sampling) if settings.raw else ChatSession(served, sampling, settings.system)


def _talk(session: "TextSession") -> None:
    from eval.chat import ChatSession
    from eval.terminal import ChatTerminal, Terminal

    terminal = ChatTerminal if isinstance(session, ChatSession) else Terminal
    terminal(session).run()


if __name__ == "__main__":
    run(main)
