"""Serve models to clients of OpenAI's interface, each under its own prompt mask."""

import signal
import sys

if not __package__:
    print("error: run python -m scripts.serve from the repository root", file=sys.stderr)
    sys.exit(2)

from dataset.command_line import parse, run
from dataset.printing import tell
from eval.server_settings import ServerSettings


def main() -> None:
    """Open the models and answer until a signal comes."""
    settings = parse(ServerSettings, "Serve models to clients of OpenAI's interface.")
    from eval.serving import serve

    signal.signal(signal.SIGTERM, lambda *_: None)  # raised again when all is answered: then it ends well
    serve(settings, tell)


if __name__ == "__main__":
    run(main)
