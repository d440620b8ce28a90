"""Write the built-in Chinese and English world: pretraining text, conversations and evaluation splits."""

import sys

if not __package__:
    print("error: run python -m scripts.build_world from the repository root", file=sys.stderr)
    sys.exit(2)

from dataset.builtin.folder import check_replaceable, table, write_files
from dataset.builtin.splits import FILES, BuildWorldSettings, build_world
from dataset.builtin.world import SCALES
from dataset.command_line import parse, run


def main() -> None:
    """Build, write, and print what was written."""
    settings = parse(BuildWorldSettings, __doc__)
    check_replaceable(settings.out, FILES)
    files = build_world(settings.seed, SCALES[settings.scale])
    print("\n".join(table(settings.out, files, write_files(settings.out, files))))


if __name__ == "__main__":
    run(main)
