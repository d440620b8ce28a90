"""Talk with a model: interactively, or once with `--prompt` or piped input."""

import sys

if not __package__:
    print("error: run python -m scripts.chat from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Literal

from dataset.command_line import parse, run
from dataset.printing import printable, tell
from eval.serving_settings import ServingSettings, TextSampling
from model.errors import UserError

if TYPE_CHECKING:
    from eval.chat import TextSession


@dataclass(frozen=True, kw_only=True)
class ChatSettings(ServingSettings, TextSampling):
    """Flags of the chat."""

    prompt: tuple[str, ...] | None = None
    """answer this once and leave: only the answer goes to standard output, control characters as escapes;
    piped input likewise"""
    system: str = ""
    """system message of the conversation"""
    raw: bool = False
    """continue text as a pretrained model does, instead of answering questions"""
    answer_prefix: str = ""
    """text that every answer is made to begin with; the model goes on from there"""
    log_probabilities: bool = False
    """tell the log-probability of each token of an answer; to standard error when answering once"""
    compare: str | None = None
    """directory of a second model that answers beside the first, under its own mask"""
    engine: Literal["sightline", "llama.cpp"] = "sightline"
    """what computes; llama.cpp takes .gguf files of scripts.export_gguf in place of directories"""

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        super().__post_init__()
        for name in ("system", "answer_prefix"):
            if self.raw and getattr(self, name):
                raise UserError(f"--{name} has no effect with --raw; leave one of them out")
        if self.engine == "llama.cpp" and (self.device != "auto" or self.dtype != "float32" or self.compile):
            raise UserError("--device, --dtype and --compile have no effect with --engine llama.cpp")


def main() -> None:
    """Answer once or talk until the user leaves."""
    settings = parse(ChatSettings, "Talk with a model.")
    question = _question(settings)
    sessions = _sessions(settings)
    if question is not None:
        _answer_once(sessions, question)
        return
    from eval.terminal import ChatTerminal, Terminal

    (Terminal if settings.raw else ChatTerminal)(sessions).run()


def _answer_once(sessions: "list[TextSession]", question: str) -> None:
    """Print the answer alone; of several models, each below its name."""
    from eval.answer_text import shown
    from eval.chat import ChatSession
    from eval.served_model import tell_apart

    served = [session.served for session in sessions]
    labels = tell_apart([each.prompt_mask for each in served], [each.path for each in served])
    for label, session in zip(labels, sessions, strict=True):
        if len(sessions) > 1:
            print(f"[{printable(label)}]")
        for piece in session.ask(question):
            print(shown(piece), end="", flush=True)
        print()
        if isinstance(session, ChatSession) and session.last.finish_reason == "length":
            limits = "--max_new_tokens, or the end of the context"
            tell(f"note: cut after {session.last.tokens} tokens ({limits})")
        if session.sampling.log_probabilities:
            from eval.chat_reports import describe_probabilities  # draws masks, too: slow to import

            print(describe_probabilities(session), file=sys.stderr)


def _question(settings: ChatSettings) -> str | None:
    """Return what is to be answered once, None to talk."""
    if settings.prompt is None and sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.read().removesuffix("\n") if settings.prompt is None else " ".join(settings.prompt)
        text.encode()
    except UnicodeError:
        raise UserError("the prompt is not valid UTF-8 text") from None
    if not text.strip() and not settings.raw:
        raise UserError("the prompt is empty; give --prompt a question, or pipe one in")
    return text


def _sessions(settings: ChatSettings) -> "list[TextSession]":
    from eval.chat import ChatSession, RawSession
    from eval.served_model import open_model

    opened = partial(open_model, device=settings.device)
    if settings.engine == "llama.cpp":
        from eval.engines.llama_engine import open_gguf as opened
    sampling = TextSampling(**{field.name: getattr(settings, field.name) for field in fields(TextSampling)})
    served = [opened(settings.model, settings.prompt_mask, settings.allow_mask_mismatch)]
    if settings.allow_mask_mismatch:
        tell(f"note: running with {served[0].prompt_mask}, not with the mask of its training")
    if settings.compare is not None:
        served.append(opened(settings.compare))
    for each in () if settings.raw else served:
        for note in each.notes("--raw"):
            tell(f"note: {note}")
    served = [each.in_form(settings.dtype, settings.compile, True, tell) for each in served]
    if settings.raw:
        return [RawSession(each, sampling) for each in served]
    return [ChatSession(each, sampling, settings.system, settings.answer_prefix) for each in served]


if __name__ == "__main__":
    run(main)
