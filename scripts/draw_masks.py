"""Draw the masks of all strategies over a short chat, the picture of the README, and over passages."""

import sys

if not __package__:
    print("error: run python -m scripts.draw_masks from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass
from pathlib import Path

from dataset.command_line import parse, run
from dataset.printing import printable
from model.errors import UserError


@dataclass(frozen=True)
class DrawMasksSettings:
    """Flags of the picture."""

    out: str = "docs/masks.png"
    """file to write"""
    passages: str = "docs/passages.png"
    """file of the masks that know passages"""
    page: str | None = None
    """page in Markdown whose pictures of masks are drawn anew as well, such as docs/masks.md"""
    html: str | None = None
    """write a page for a browser to this file instead, or over it, in which tokens tell what they see"""
    model: str | None = None
    """model directory whose attention the page for a browser shows, too; needs --data"""
    data: str | None = None
    """file whose first chat that page shows, such as one that /save of scripts.chat wrote; needs --model"""

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        if (self.model is None) != (self.data is None) or (self.model and not self.html):
            raise UserError("--model and --data go together, and with --html")
        if self.page and self.html:
            raise UserError("--page changes nothing beside --html; leave one of them out")


def main() -> None:
    """Draw the picture, or write the page."""
    settings = parse(DrawMasksSettings, "Draw the masks of all strategies over a short chat.")
    if settings.html is None:
        _draw(settings)
        return
    from eval.page import save_page

    save_page(settings.html, settings.model, settings.data)
    print(f"{printable(settings.html)} is written")


def _draw(settings: DrawMasksSettings) -> None:
    from eval.plots import check_picture, passage_panels, save_masks, strategy_panels

    pictures = {settings.out: strategy_panels, settings.passages: passage_panels}
    for file in pictures:
        check_picture(file)
    for file, panels in pictures.items():
        save_masks(file, *panels())
        print(f"{printable(file)} is drawn")
    if settings.page:
        from eval.mask_page import redrawn
        from model.files import write_text

        page = Path(settings.page)
        write_text(page, redrawn(page.read_text(encoding="utf-8")))
        print(f"{printable(settings.page)} is drawn anew")


if __name__ == "__main__":
    run(main)
