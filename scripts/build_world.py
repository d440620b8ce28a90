"""Write the built-in Chinese and English world: pretraining text, conversations and evaluation splits."""

import sys

if not __package__:
    print("error: run python -m scripts.build_world from the repository root", file=sys.stderr)
    sys.exit(2)

from pathlib import Path

from dataset.builtin.splits import BuildWorldSettings, build_world, check_replaceable, write_world
from dataset.builtin.world import SCALES
from dataset.printing import printable
from trainer.command_line import parse, run


def main() -> None:
    """Build, write, and print what was written."""
    settings = parse(BuildWorldSettings, __doc__)
    check_replaceable(settings.out)
    files = build_world(settings.seed, SCALES[settings.scale])
    sizes = write_world(settings.out, files)
    print(f"{'file':<36}{'records':>9}{'kilobytes':>11}")
    for name, records in files.items():
        print(
            f"{printable(str(Path(settings.out) / name)):<36}{len(records):>9,}{sizes[name] / 1000:>11,.0f}"
        )


if __name__ == "__main__":
    run(main)
