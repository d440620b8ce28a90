"""Choose what is measured: python -m scripts.bench data …, decode, train and so on"""

import sys

if not __package__:
    print("error: run python -m scripts.bench from the repository root", file=sys.stderr)
    sys.exit(2)

from importlib import import_module

from dataset.command_line import fail, run

SUBJECTS = ("data", "decode", "load", "train", "quality", "lengths", "growth", "entered", "agreement")


def main() -> None:
    """Run the measurement that the first word names, with the flags after it."""
    subject = sys.argv[1] if len(sys.argv) > 1 else ""
    if subject in ("-h", "--help"):
        print(f"usage: python -m scripts.bench {{{','.join(SUBJECTS)}}} [--help] …")
    elif subject not in SUBJECTS:
        fail(f"expected what to measure ({', '.join(SUBJECTS)}), got {subject or 'nothing'}")
    else:
        del sys.argv[1]
        import_module(f"scripts.bench.{subject}").main()


if __name__ == "__main__":
    run(main)
