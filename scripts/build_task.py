"""Write a task: conversations to train on, and questions about other texts to evaluate."""

import sys

if not __package__:
    print("error: run python -m scripts.build_task from the repository root", file=sys.stderr)
    sys.exit(2)

from dataset.builtin.folder import check_replaceable, table, write_files
from dataset.builtin.tasks import BuildTaskSettings, build_task
from dataset.command_line import parse, run


def main() -> None:
    """Build, write, and print what was written."""
    settings = parse(BuildTaskSettings, __doc__)
    check_replaceable(settings.out, settings.files)
    files = build_task(settings)
    print("\n".join(table(settings.out, files, write_files(settings.out, files))))


if __name__ == "__main__":
    run(main)
