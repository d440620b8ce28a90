"""The report of an experiment as a page and as Markdown: numbers, foreign texts, pictures, a browser."""

import math
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from markdown_it import MarkdownIt
from pretend_results import HOSTILE, pretend_results
from rich.cells import cell_len

from dataset.printing import printable
from eval.plots import HAN_FONTS
from eval.report import write_report
from eval.report_pictures import GREY, Estimate, draw_attention, draw_forest, draw_mask
from eval.tables import Table, as_markdown, figure, literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MARKDOWN = MarkdownIt("commonmark").enable("table")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def written(folder: Path, results: dict) -> tuple[str, str]:
    write_report(folder, results)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.md"]
    return tuple((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))


def test_every_number_of_the_primary_line_stands_in_both_files(tmp_path):
    for text in written(tmp_path, pretend_results()):
        cells = {cell.strip() for cell in re.split(r"\||<t[dh][^>]*>|</t[dh]>", text)}
        assert {"+0.0432", "+0.0123 to +0.0741", "0.0468", "8", "1,000", "higher"} < cells
        assert {"−0.512", "−0.469", "0.0234", "+1.17", "0.0370", "+0.0322 to +0.0542"} < cells
        assert {
            "200",
            "0.0457",
            "0.810",
            "+0.0432 (+0.0123 to +0.0741) primary",
        } < cells
        assert any(cell == "stories_context_first (8 × 1,000)" for cell in cells)


def test_exact_match_is_shown_in_points_and_likelihood_in_nats(tmp_path):
    results = pretend_results()
    units = {"f1": "points", "log_likelihood": "nats", "bits": ""}
    results["comparisons"] = [
        results["comparisons"][0] | {"metric": metric, "unit": unit} for metric, unit in units.items()
    ]
    for text in written(tmp_path, results):
        assert re.search(r"f1, points\s*(\||</td><td[^>]*>)\s*\+4\.32\b", text)
        assert re.search(r"log_likelihood, nats\s*(\||</td><td[^>]*>)\s*\+0\.0432\b", text)
        assert re.search(r"bits\s*(\||</td><td[^>]*>)\s*\+0\.0432\b", text)


def test_no_foreign_text_becomes_markup_or_steers_anything(tmp_path):
    page, text = written(tmp_path, pretend_results())
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") > 20
    for shown in (page, text):
        assert "\x1b" not in shown and "\u202e" not in shown and "\\u202e" in shown
    kinds = {token.type for block in MARKDOWN.parse(text) for token in (block, *(block.children or ()))}
    assert kinds.isdisjoint({"html_block", "html_inline", "image", "link_open", "em_open", "code_inline"})
    assert HOSTILE.count("<script>") == 1 and text.count("<script>") > 20


@pytest.mark.parametrize(
    "text",
    [HOSTILE, r"a\*b\\", "&lt; &amp;", "~~a~~ **b** __c__", "# a", "> a", "- a", "---", "[a]: b", "a_b"],
)
def test_literal_markdown_shows_the_text_itself(text):
    assert unescape(MARKDOWN.render(literal(text))) == f"<p>{printable(text)}</p>\n"
    table = MARKDOWN.render(as_markdown(Table(("x", text), (("y", text),))))
    assert unescape(table).count(printable(text)) == 2 and table.count("<td") == 2


@pytest.mark.parametrize("shape", [(2, 4, 8), (18, 5, 1)])
def test_markdown_tables_are_well_formed_straight_and_narrow(tmp_path, shape):
    _, text = written(tmp_path, pretend_results(*shape, hostile=""))
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == sum(token.type == "table_open" for token in MARKDOWN.parse(text))
    for table in tables:
        header, rule, *rows = table.splitlines()
        assert re.fullmatch(r"\|( -+:? \|)+", rule)
        assert {line.count("|") for line in (header, rule, *rows)} == {rule.count("|")}
        assert len({cell_len(line) for line in (header, rule, *rows)}) == 1
        assert len(header) < 200 or "answered by" in header


def test_every_picture_is_a_drawing_inside_the_page(tmp_path):
    page, text = written(tmp_path, pretend_results())
    assert page.count("<svg ") == 2 + 2 + 2 + 2 * 2  # metrics, stages, masks, layers of both arms
    assert page.count("</svg>") == page.count("<figcaption>") == text.count("\n* ") == 10
    assert "url(" not in page and " id=" not in re.sub(r'<section id="s\d+">', "", page)


def test_arms_with_the_same_mask_share_one_picture(tmp_path):
    page, _ = written(tmp_path, pretend_results(arms=3, hostile=""))
    assert page.count("<figcaption>causal: causal<") == 1
    assert page.count("<figcaption>prefix: prefix, grid_arm_2_with_a_rather_long_name_of_settings<") == 1


@pytest.mark.parametrize(
    ("seeds", "warning"),
    [
        (1, "One seed: says nothing about masks."),
        (5, "p cannot fall below 0.0625"),
        (7, "Only 7 paired"),
        (8, None),
    ],
)
def test_fewer_than_eight_paired_seeds_are_warned_of(tmp_path, seeds, warning):
    for text in written(tmp_path, pretend_results(seeds=seeds)):
        assert ("[!WARNING]" in text or 'class="banner"' in text) == bool(warning)
        assert warning is None or warning in text


def test_an_experiment_of_which_nothing_is_finished_has_a_report(tmp_path):
    results = pretend_results(hostile="")
    for key in ("comparisons", "a_a", "scores", "curves", "disagreements", "cells", "arms"):
        results[key] = []
    results["experiment"]["tuned"], results["tuning"] = {}, {"tried": [], "cells": []}
    for text in written(tmp_path, results):
        assert "prefix read better" in text and "0 of 0 cells" in text and "No arm was compared" in text


def test_failures_and_the_command_of_every_cell_are_listed(tmp_path):
    results = pretend_results(hostile="")
    results["tuning"]["cells"][0] |= {"status": "failed", "error": "the learning rate is none"}
    for text in map(unescape, written(tmp_path, results)):
        assert "3 of 34 cells did not finish." in text and "answers of prefix, seed 1 (" in text
        assert "the learning rate is none" in text and "2 of 4 cells: documents shortened 3" in text
        assert all(cell["command"] in text and cell["address"] in text for cell in results["cells"])
        assert results["experiment"]["command"] in text and "5e1f00d5" in text


def test_a_command_stands_with_its_threads_and_the_seed_that_a_repeated_baseline_has(tmp_path):
    results = pretend_results(hostile="")
    results["cells"][0]["arms"] = ["A/A"]
    for text in map(unescape, written(tmp_path, results)):
        assert (
            f"OMP_NUM_THREADS=1 {results['cells'][0]['command']}" in text and "A/A, seed 0 + 10000 (" in text
        )


def test_what_arms_were_tuned_with_stands_with_its_score_and_command(tmp_path):
    results = pretend_results(hostile="")
    for text in map(unescape, written(tmp_path, results)):
        assert re.search(r"0\.001\W.*−0\.501\W.*taken.*7ab1e", text) and "−0.502" in text
        assert all(cell["command"] in text for cell in results["tuning"]["cells"]) and "seed 20000 (" in text


def test_a_column_in_which_nothing_stands_is_left_out(tmp_path):
    results = pretend_results(hostile="")
    columns = ("differs besides", "p of equivalence")
    for text in written(tmp_path, results):
        tables = "".join(line for line in text.splitlines() if line.startswith(("|", "<thead")))
        assert [column in tables for column in columns] == [False, True]
    for each in results["comparisons"]:
        each |= {"tuned_apart": "tuned: sft.learning_rate 0.01, not 0.001", "equivalence_p": None}
    for text in written(tmp_path, results):
        tables = "".join(line for line in text.splitlines() if line.startswith(("|", "<thead")))
        assert [column in tables for column in columns] == [True, False]
        assert "tuned: sft.learning_rate 0.01, not 0.001" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.500"), (-0.01234, "−0.0123"), (0, "0"), (123456.0, "123,000"), (99.96, "100"), (None, "–"),
        (1.2345e15, "1.23 × 10¹⁵"), (-2e-7, "−2.00 × 10⁻⁷"), (float("nan"), "nan"), (0.0001, "0.000100"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, shown):
    assert figure(value) == shown


def test_a_positive_difference_has_a_plus():
    assert [figure(value, is_signed=True) for value in (0.25, -0.25, 0.0)] == ["+0.250", "−0.250", "0"]


def test_a_mask_is_drawn_cell_by_cell_and_later_tokens_have_another_colour():
    drawn = draw_mask("m", ["a", "<b>", "c"], ["110", "110", "111"])
    [blue] = re.findall(r'fill="#0072b2".*? d="(.*?)"', drawn)
    [orange] = re.findall(r'fill="#e69f00".* d="(.*?)"', drawn)
    assert re.findall(r"M(\d) (\d)", blue) == [
        ("0", "0"),
        ("0", "1"),
        ("1", "1"),
        ("0", "2"),
        ("1", "2"),
        ("2", "2"),
    ]
    assert re.findall(r"M(\d) (\d)", orange) == [("1", "0")]
    assert drawn.count(">&lt;b&gt;</text>") == 2


def test_attention_is_drawn_by_the_root_of_the_probability_and_nothing_where_it_is_none():
    drawn = draw_attention("a", ["a", "b"], [[1.0, 0.0], [0.25, 0.75]])
    assert re.findall(r'fill-opacity="(\S+)" transform.*? d="M(\d) (\d)', drawn) == [
        ("1", "0", "0"), ("0.5", "0", "1"), ("0.9", "1", "1"),
    ]  # fmt: skip


def test_a_forest_plot_places_its_estimates_on_one_axis_that_holds_zero():
    estimates = [Estimate("a", 1.0, (0.0, 2.0), "red"), Estimate("b", 2.0, None, "red")]
    drawn = draw_forest("f", {"task": estimates})
    zero, one, two = 174.1, 287.5, 400.9  # with 4% beyond both ends
    assert [float(x) for x in re.findall(r'cx="(.*?)"', drawn)] == [one, two]
    assert f'points="{zero},' in drawn and drawn.count('stroke="red"') == 2


def test_a_forest_plot_lets_grey_intervals_leave_the_picture_before_others_shrink():
    estimates = [Estimate("a", 1.0, (0.0, 2.0), "red"), Estimate("b", 9.0, (-9.0, 27.0), GREY)]
    drawn = draw_forest("f", {"task": estimates})
    assert re.findall(r'cx="(.*?)"', drawn) == ["287.5"]
    assert re.search(rf'stroke="{GREY}".*? points="165.0,\S+ 410.0,', drawn)


def test_arms_that_are_identical_or_have_diverged_are_reported(tmp_path):
    results = pretend_results(arms=3, tasks=1, hostile="")
    same, diverged = results["comparisons"][:2]
    same |= {"difference": 0.0, "interval": [0.0, 0.0], "p_value": 1.0, "effect_size": None}
    diverged |= {"difference": math.nan, "interval": [math.nan, math.nan]}
    results["curves"][1]["mean"][5:] = [math.inf] * 75
    results["curves"][2]["mean"] = results["curves"][2]["low"] = [None] * 80
    page, _ = written(tmp_path, results | {"comparisons": [same, diverged], "a_a": []})
    assert "0 (0 to 0) primary" in page and "nan (nan to nan) primary" in page
    pictures = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert pictures[0].count("<circle") == 1 and not re.search("nan|inf|None", "".join(pictures))


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed: no page was opened")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("few", "many")}
    write_report(folders["few"], pretend_results())
    write_report(folders["many"], pretend_results(18, 20, 1))
    return {name: folder / "report.html" for name, folder in folders.items()}


def opened(browser: "Browser", file: Path, width: int, scheme: str) -> tuple["Page", list[str]]:
    """The page with all that can be opened in it open, and what it said or asked for."""
    page, events = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return page, events


@pytest.mark.parametrize(("name", "width"), [("few", 1280), ("few", 390), ("many", 390)])
def test_a_browser_finds_no_error_no_request_and_no_overflow(browser, pages, name, width):
    page, events = opened(browser, pages[name], width, "light")
    assert events == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = """[...document.querySelectorAll('p, h1, h2, pre, summary, figcaption, nav a, .box, figure')]
        .filter(each => each.getBoundingClientRect().right > innerWidth).map(each => each.outerHTML)"""
    assert page.evaluate(beyond) == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_in_both_schemes(browser, pages, scheme):
    page, _ = opened(browser, pages["few"], 390, scheme)
    colours = "each => [getComputedStyle(each).color, getComputedStyle(document.body).backgroundColor]"
    for element in ("h1", "td", "figcaption", "svg text"):
        text, ground = (luminance(colour) for colour in page.locator(element).first.evaluate(colours))
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 4.5  # WCAG 2.1, level AA
        assert (ground > 0.5) == (scheme == "light")
    page.close()


def luminance(colour: str) -> float:
    channels = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# a glyph is missing if it is drawn as one that no font has
MISSING = """family => {
    const context = new OffscreenCanvas(40, 40).getContext("2d", {willReadFrequently: true})
    const draw = character => {
        context.clearRect(0, 0, 40, 40)
        context.font = "20px " + family
        context.fillText(character, 5, 30)
        return context.getImageData(0, 0, 40, 40).data.join()
    }
    const nothing = draw("\\u{10fffd}")
    const characters = [...new Set(document.body.textContent)]
    return characters.filter(each => each.trim() && draw(each) == nothing).join("")
}"""


def test_no_glyph_is_missing_in_the_page(browser, pages):
    page, _ = opened(browser, pages["few"], 1280, "light")
    families = [
        page.locator(element).first.evaluate("each => getComputedStyle(each).fontFamily")
        for element in ("body", "pre", "svg text")
    ]
    missing = "".join(page.evaluate(MISSING, family) for family in families)
    if missing and all("\u4e00" <= each <= "\u9fff" for each in missing):
        pytest.skip(f"no font here draws Chinese, such as {HAN_FONTS[0]}")
    assert missing == ""
    page.evaluate("document.body.append('a\\u{10fffc}b')")
    assert page.evaluate(MISSING, families[0]) == "\U0010fffc"
    page.close()
