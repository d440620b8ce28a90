"""The page of masks."""

from pathlib import Path

from eval.mask_page import PICTURE, drawing
from scripts.draw_masks import main

PAGE = Path(__file__).parent.parent / "docs/masks.md"


def test_the_pictures_of_the_page_of_masks_are_those_that_its_command_draws(tmp_path, monkeypatch):
    there, page = PAGE.read_text(encoding="utf-8"), tmp_path / "masks.md"
    page.write_text(there.replace("1 1", ". ."), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["draw_masks", "--page", str(page), "--out", str(tmp_path / "masks.png")])
    main()
    assert page.read_text(encoding="utf-8") == there


def test_every_section_of_the_page_of_masks_has_a_picture_of_its_own_a_source_and_a_limit():
    _, *sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    pictures = [PICTURE.search(section)[0].partition("\n")[2] for section in sections]
    assert len({*pictures}) == len(sections) >= 10
    assert all("* **From:**" in section and "* **Breaks:**" in section for section in sections)


def test_a_picture_of_sinks_is_as_drawn_by_hand():
    assert drawing("causal", "window=2", "sinks=1").splitlines()[3:6] == [
        "u  1 . 1 1 . . . . . .",
        "A  1 . . 1 1 . . . . .",
        "a  1 . . . 1 1 . . . .",
    ]
