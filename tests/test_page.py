"""The page in a browser: questions answered by a running server, masks drawn, also from one file alone."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import re
import shutil
import time
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest
import torch
from running_server import post, running, save_models
from test_report import browser, luminance

from dataset.chat_form import Message
from dataset.conversation import render
from dataset.prompts import layout_of
from eval.chat import ChatSession
from eval.page import page as page_text
from eval.page import save_page
from eval.plots import strategy_panels
from eval.served_model import open_model
from eval.serving_settings import TextSampling
from model.generator import RunningBatch
from model.masks import visible_mask
from model.strategies import STRATEGIES
from scripts.draw_masks import main as draw_masks
from tests.foreign import FORGETFUL

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUESTION = "What is the capital of Peru?"
LENGTH = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(models):
    with running(models, max_new_tokens=LENGTH) as address:
        yield address


def opened(browser: "Browser", address: str, width: int = 1280, scheme: str = "light", locale: str = "en"):
    """The page, and what it said that it should not."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, locale=locale)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(address) or said.append(request.url))
    page.goto(address)
    return page, said


def said_by(served, question: str) -> str:
    return "".join(ChatSession(served, TextSampling(LENGTH)).ask(question))


def ask(page: "Page", question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Send").click()


def shown(text: str) -> str:
    return " ".join(text.split())


def test_two_masks_answer_side_by_side_and_another_mask_changes_the_answer(browser, address, models):
    page, said = opened(browser, address)
    page.get_by_role("button", name="Side by side").click()
    ask(page, QUESTION)
    page.locator("figure").nth(1).wait_for()
    page.locator("figure").nth(0).wait_for()
    served = [open_model(model) for model in models]
    texts = [said_by(each, QUESTION) for each in served]
    answers = page.locator(".assistant .content")
    assert [answers.nth(n).text_content() for n in range(2)] == texts

    # the second model under the mask of the first: another answer, and another picture
    pane = page.locator(".pane").nth(1)
    pane.locator(".mask").select_option("causal")
    pane.locator(".former").wait_for()
    pane.get_by_text("Mask causal").wait_for()
    other = said_by(open_model(models[1], "causal", allow_mask_mismatch=True), QUESTION)
    assert pane.locator(".assistant .content").text_content() == other != texts[1]
    assert shown(texts[1]) in shown(pane.locator(".former").text_content())
    assert said == []
    page.close()


UNNAMED = """[...document.querySelectorAll('button, select, input, textarea, [role], canvas')]
    .filter(each => each.offsetParent && !(each.textContent.trim() || each.ariaLabel || each.labels?.length
        || each.ariaHidden || each.role == 'status')).map(each => each.outerHTML)"""
"""whatever can be used and has no name for who cannot see it"""


def test_a_token_tells_by_mouse_and_by_keyboard_what_it_sees_and_where_layers_look(browser, address):
    page, said = opened(browser, address)
    ask(page, QUESTION)
    tokens = page.get_by_role("listbox")
    tokens.wait_for()
    page.locator(".pane").locator(".model").select_option("prefix")
    page.get_by_text("Mask prefix").wait_for()
    tokens.get_by_role("option").nth(2).hover()
    assert "token 2, user" in page.locator(".pointed").text_content()
    assert page.locator(".layers li").count() == 2
    seen = tokens.locator(".seen").count()
    tokens.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert tokens.get_attribute("aria-activedescendant") == page.locator(
        "[aria-selected=true]"
    ).get_attribute("id")
    assert "answer" in page.locator(".pointed").text_content() and tokens.locator(".seen").count() > seen > 3
    page.locator(".scroll canvas").hover(position={"x": 5, "y": 2})
    assert "token 0" in page.locator(".pointed").text_content()
    assert page.evaluate(UNNAMED) == []
    assert said == []
    page.close()


def test_a_key_may_come_late_or_be_wrong_and_nothing_is_lost_by_it(browser, models, tmp_path):
    (tmp_path / "key").write_text("secret")
    with running(models, max_new_tokens=LENGTH, key_file=str(tmp_path / "key")) as address:
        page, _ = opened(browser, address)
        panes = page.locator(".pane")
        for n, key in enumerate(("", "secret", "wrong", "secret")):
            if key:
                page.get_by_label("Key").fill(key)
                page.get_by_label("Key").press("Tab")
            told = "^$" if key == "secret" else "key of this server"
            page.locator("#trouble", has_text=re.compile(told)).wait_for(state="attached")
            assert panes.count() == (n > 0)
            assert page.get_by_role("button", name="Send").is_enabled() == (n > 0)
        ask(page, QUESTION)
        page.get_by_role("listbox").wait_for()
        page.close()


def test_stopping_keeps_what_was_said_and_the_next_question_is_answered(browser, address, monkeypatch):
    page, said = opened(browser, address)
    step = RunningBatch.step
    monkeypatch.setattr(RunningBatch, "step", lambda *given: time.sleep(0.02) or step(*given))  # time to stop
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("220")
    ask(page, "On and on")
    page.locator(".content", has_text=re.compile("....")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    page.get_by_label("Most tokens").fill("3")
    ask(page, QUESTION)
    page.get_by_role("listbox").wait_for()
    assert page.locator(".assistant").count() == 2 and said == []
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("article").count() == 0
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_and_its_text_stands_out(browser, address, width, scheme):
    page, said = opened(browser, address, width, scheme, "zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh"
    page.get_by_role("button", name="English").click()
    page.get_by_role("button", name="Side by side").click()
    ask(page, "法国的首都是哪里？" * 3)
    page.locator("figure").nth(1).wait_for()
    page.locator("figure").nth(0).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in (
        "h1",
        "header p",
        ".tokens span",
        ".content",
        ".hint",
        "figcaption",
        "label span",
        ".status",
    ):
        find = "each => [getComputedStyle(each).color, getComputedStyle(document.body).backgroundColor]"
        text, ground = (luminance(colour) for colour in page.locator(name).first.evaluate(find))
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 4.5, name
    assert said == []
    page.close()


def test_one_file_shows_the_masks_of_a_conversation_without_a_server(browser, tmp_path, monkeypatch, models):
    file = tmp_path / "masks.html"
    monkeypatch.setattr("sys.argv", ["draw_masks", "--html", str(file)])
    draw_masks()
    page, said = opened(browser, file.as_uri())
    assert page.locator("figure select").first.locator("option").all_text_contents() == [
        panel.title for panel in strategy_panels()[0]
    ]
    page.locator("figure select").first.select_option(label="segment")
    page.get_by_role("listbox").get_by_role("option").nth(1).hover()
    assert page.locator(".tokens .seen").count() == 3 and said == []
    page.close()


def test_text_of_a_model_is_text_in_the_page_and_never_a_part_of_it():
    hostile = "</script><img src=x onerror=alert(1)>"
    views = [{"title": "m", "tokens": [hostile], "roles": ["user"], "blocks": [0], "masks": [], "layers": []}]
    assert hostile not in page_text(views) and "\\u003c/script>" in page_text(views)


def test_a_file_of_a_model_shows_the_first_chat_of_a_file_under_every_mask(models, tmp_path, capsys):
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Lima"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": turns, "topic": "x"}) + "\n")
    save_page(tmp_path / "talk.html", models[1], str(tmp_path / "talk.jsonl"))
    assert capsys.readouterr().err == f"note: {tmp_path / 'talk.jsonl'}: keys not read: topic\n"
    text = (tmp_path / "talk.html").read_text(encoding="utf-8")
    views = json.loads(re.search(r'id="data" type="application/json">(.*)</script>', text)[1])
    assert [view["title"] for view in views] == ["prefix", *(name for name in STRATEGIES if name != "prefix")]
    served, side = open_model(models[1]), len(views[0]["tokens"])
    rendered = render([Message(**turn) for turn in turns], served.tokenizer)
    for view in views:
        mask = visible_mask(layout_of(rendered, view["title"]))[0]
        assert ["".join("01"[cell] for cell in row) for row in mask.int().tolist()] == view["masks"][0][
            "rows"
        ]
        assert len(view["layers"]) == 2
        for layer in view["layers"]:  # nothing is looked at that is not seen, and all looks of a row make 1
            levels = torch.frombuffer(bytearray(b64decode(layer["weights"])), dtype=torch.uint8).view(
                side, side
            )
            weights = (levels.double() / 255) ** 2
            assert (weights.sum(1) - 1).abs().max() < 0.05 and not weights[~mask].any()


def test_a_conversation_that_is_too_long_to_draw_or_none_is_refused(address):
    for messages, words in (
        ([{"role": "user", "content": "x" * 3000}], "masks of 1 to 256 are drawn"),
        ([{"role": "x"}], "unknown role"),
    ):
        answer = post(address, {"model": "causal", "messages": messages}, "/look")
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_what_the_template_of_a_model_refuses_is_refused_as_an_answer_to_it_would_be(models, tmp_path):
    shutil.copytree(models[0], tmp_path / "silent")
    silent = FORGETFUL.replace("message.role != 'assistant'", "message.role == 'user'")
    (tmp_path / "silent/chat_template.jinja").write_text(silent)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    with running([str(tmp_path / "silent")]) as address:
        answers = [post(address, {"messages": messages}, path) for path in ("/look", "/v1/chat/completions")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json() and "no form of system messages" in answers[0].text
