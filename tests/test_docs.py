"""The pages are true: commands, flags, files, links, drawings, messages and code on them."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import io
import json
import re
import shutil
import sys
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from test_house import CORE
from training_runs import conversations, data, preferences, sentences

from dataset.tokenizer import Tokenizer
from eval.engines.transformers_files import export
from eval.experiment import load_experiment
from eval.plots import draw_mask
from model import strategies
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import from_preset
from model.layouts import conversation_layout, prompt_blocks
from model.masks import draw_text, visible_mask
from model.transformer import LanguageModel
from tests.conftest import one_document, passages_in, turns
from tests.minimind import save_minimind
from tests.pages import (
    CODE,
    PAGES,
    ROOT,
    Command,
    anchors,
    blocks,
    code_text,
    commands,
    flags_of,
    links,
    programs,
    read,
    settings_of,
    spans,
)
from trainer.settings import SftSettings

DOCS = ROOT / "docs"
OTHERS = {
    *("--config", "--help", "--traceback", "--long"),
    *("--config_file", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"),
    *("--main_process_port", "--num_cpu_threads_per_process", "--cpu", "--mixed_precision"),
    *("--standalone", "--nproc_per_node", "--nnodes", "--max_restarts"),
}
"""flags of every command, of test.sh, and of launchers"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@each_page
def test_every_command_on_a_page_is_one_that_its_program_takes(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        read(command)
        for flag, value in zip(command.launcher, command.launcher[1:], strict=False):
            assert flag != "--config_file" or Path(value).is_file(), value


def test_rows_of_trainings_that_begin_with_a_model_of_the_quickstart_fit_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    room = from_preset("quickstart", vocab_size=300).max_position_embeddings
    trainings = [each for page in PAGES for each in commands(page) if each.module.startswith("trainer.")]
    rows = [read(each).max_seq_len for each in trainings if "out/quickstart/" in " ".join(each.flags)]
    assert rows and max(rows) <= room


def test_a_command_that_its_program_does_not_take_is_found(monkeypatch):
    command = Command("scripts.chat", ["--modle", "out/sft"], ["python"])
    with pytest.raises(ValueError, match="unknown argument --modle"):
        read(command)


@pytest.fixture(scope="module")
def our_flags() -> set[str]:
    return {flag for module in programs() for flag in flags_of(settings_of(module))}


@each_page
def test_flags_and_files_that_a_page_names_are_there(page, our_flags):
    for span in spans(page):
        assert {*re.findall(r"--[a-z][\w.]*\w", span)} <= our_flags | OTHERS, span
        for module in re.findall(rf"-m ((?:{'|'.join(CODE)})\.\w+)", span):
            assert (ROOT / module.replace(".", "/")).exists() or module in programs(), span
        for file in re.findall(rf"(?<![\w/.])(?:{'|'.join(CODE)}|configs|docs|tests)/[\w/-]+\.\w+", span):
            assert (ROOT / file).is_file(), span


@each_page
def test_links_and_pictures_lead_somewhere(page):
    for target, heading in links(page):
        assert target.exists(), target
        assert not heading or heading in anchors(target), f"{target.name}#{heading}"


def test_the_readme_is_short_and_leads_to_every_page():
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) < 200
    assert {target for target, _ in links(readme)} >= {*PAGES} - {readme}


def test_the_reading_order_is_the_core():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Reading the code")[2]
    named = re.findall(r"`(\w+/\w+\.py)`", text.partition("**infrastructure**")[0])
    assert tuple(named) == CORE


def test_the_map_names_every_file_and_no_other():
    named, folder = [], ""
    for line in (DOCS / "map.md").read_text(encoding="utf-8").splitlines():
        folder = line.removeprefix("## ") if line.startswith("## ") else folder
        named += [folder + file for file in re.findall(r"^\| `(\w+\.py)`", line)]
    files = [file for name in CODE for file in (ROOT / name).rglob("*.py") if file.name != "__init__.py"]
    assert sorted(named) == sorted(str(file.relative_to(ROOT)) for file in files)


def test_the_drawings_of_the_tutorial_are_those_of_the_code():
    answers, starts = turns("S Uu Aa U A")
    drawn = {}
    for block in blocks(DOCS / "prompt_mask.md", ""):
        _, _, letters, *rows = block.splitlines()
        masks = zip(*(row.split("      ") for row in rows), strict=True)
        drawn |= dict(zip(block.split("\n")[0].split(), masks, strict=True))
        assert letters.split() == list("SUUAAUA") * 4
    for name, rows in drawn.items():
        layout = one_document(prompt_blocks(name, answers, starts))
        text = draw_mask(visible_mask(layout)[0], list("SUUAAUA"))
        assert [row.strip() for row in rows] == text.splitlines(), name
    assert list(drawn) == ["causal", "prefix", "segment", "history"]


def test_the_drawings_of_passages_are_those_of_the_code():
    [block] = blocks(DOCS / "prompt_mask.md", "text")
    names, _, *rows = block.splitlines()
    for half, name in enumerate(names.split()):
        layout = conversation_layout(name, *turns("U Pp P u"), passages_in("U Pp P u"))
        masks = draw_text(visible_mask(layout)[0]).splitlines()
        places = zip(layout.part_ids[0].tolist(), layout.position_ids[0].tolist(), masks, strict=True)
        for row, (part, position, seen) in zip(rows, places, strict=True):
            assert row.split()[7 * half : 7 * half + 7] == [str(part), str(position), *seen.split()]


def test_messages_of_the_page_on_troubles_are_those_of_the_code():
    code = code_text()
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    for seen in re.findall(r"^\| (.*?) \| ", page, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", seen):
            for part in filter(None, map(str.strip, message.split("…"))):
                assert part in code, message


def test_the_mask_of_the_page_on_extending_is_what_its_letters_draw(monkeypatch):
    function, line, *_ = blocks(DOCS / "extending.md", "python")
    names = dict(vars(strategies))
    exec(function, names)  # noqa: S102 - the page's own code
    added = eval(line, names)  # noqa: S307
    monkeypatch.setitem(strategies.STRATEGIES, added.name, added)
    answers, starts = turns("Ss Uu Aa Uu Aa")
    blocks_of = prompt_blocks(added.name, answers, starts).tolist()
    assert " ".join("." if block < 0 else str(block) for block in blocks_of) == added.drawing


def test_code_of_the_page_on_extending_has_names_that_are_there():
    *_, function, line = blocks(DOCS / "extending.md", "python")
    names = dict(vars(import_module("model.backends")))
    exec(function, names)  # noqa: S102
    [backend] = eval(f"{{{line}}}", names).values()  # noqa: S307
    q = torch.zeros(1, 2, 3, 4)
    seen = names["Visibility"](is_causal=True)
    scoring = names["Scoring"](1.0)
    assert backend.serves(q, seen, scoring)
    assert backend.attend(q, q, q, seen, scoring).shape == names["CALLS"][0]


def test_the_experiment_of_the_page_on_extending_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    [text] = blocks(DOCS / "extending.md", "yaml")
    (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    assert list(load_experiment(str(tmp_path / "page.yaml")).named) == list(yaml.safe_load(text)["arms"])


def test_the_page_on_run_directories_tells_what_a_continued_training_may_change():
    page = (DOCS / "run_directory.md").read_text(encoding="utf-8")
    section = page.partition("## Going on")[2].partition("\n## ")[0]
    told = {
        name for cell in re.findall(r"^\|([^|]*)\|", section, re.M) for name in re.findall(r"`--(\w+)`", cell)
    }
    assert told == {each.name for each in fields(SftSettings) if each.metadata.get("is_free")}


def save_tiny(folder: Path, data: Path, prompt_mask: str) -> None:
    """Write a model that has learnt nothing."""
    tokenizer = Tokenizer.load(data / "tokenizer")
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, "prompt_mask": prompt_mask}
    save_checkpoint(folder, LanguageModel(from_preset("tiny", **shape)), tokenizer.stop_ids, "chats")
    tokenizer.save(folder)


def test_python_of_the_page_on_models_answers(tmp_path, monkeypatch, data, capsys, code_kept_apart):
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("out/sft-prefix"), data, "prefix")
    export("out/sft-prefix", "out/exported-prefix")
    names = {}
    for block in blocks(DOCS / "models_in_and_out.md", "python"):
        exec(block, names)  # noqa: S102
    assert len(names["session"].turns) == 2 and names["served"].prompt_mask == "prefix"
    assert capsys.readouterr().out.split()[-1] in ("stop", "length")


SMALL = {
    "trainer.pretrain": {"--model.preset": "tiny"},
    "trainer.dpo": {"--max_seq_len": "320"},  # of both sides of a pair
    "scripts.import_pth": {"--model.preset": "tiny"},
    "scripts.train_tokenizer": {"--vocab_size": "300"},
    "scripts.evaluate": {"--max_new_tokens": "4"},
    "scripts.chat": {"--max_new_tokens": "4"},
}
TRAINED = {"--max_steps": "2", "--batch_size": "2", "--max_seq_len": "64", "--samples": "1"}
TRAINED |= {"--sample_tokens": "4", "--dtype": "float32", "--compile": "never"}
TOO_LONG = ("scripts.ablate", "scripts.judge", "scripts.serve")  # the last serves until it is stopped


def small(command: Command) -> list[str]:
    """The flags of a command at a size that takes a second."""
    wanted = (TRAINED if command.module.startswith("trainer.") else {}) | SMALL.get(command.module, {})
    words = ["chats.jsonl" if word.startswith("hub:") else word for word in command.flags]
    if "--model.preset" in words:
        wanted = wanted | {"--model.preset": "tiny"}
    for name, value in wanted.items():
        if name in words:
            words[words.index(name) + 1] = value
        else:
            words += [name, value]
    return words


def write_data(folder: Path, data: Path) -> None:
    """What the pages take for granted: files of a user, models of minimind, and a finished quickstart."""
    texts = [f"{text} It is day {day}." for day in range(20) for text in sentences()]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "more.txt").write_text("\n\n".join(texts[:40]))
    chats = [
        json.dumps(chat).replace("Where", f"Day {day}. Where")
        for day in range(20)
        for chat in conversations()
    ]
    (folder / "chats.jsonl").write_text("\n".join(chats) + "\n")
    (folder / "talk.jsonl").write_text(chats[0] + "\n")
    pairs = [
        json.dumps(pair).replace("Where", f"Day {n}. Where") for n in range(20) for pair in preferences()
    ]
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    asked = [{"question": f"{text} Who?", "answers": [text.split()[0]]} for text in sentences()[:6]]
    (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    for source, copy in (
        ("texts.jsonl", "pretrain_t2t_mini.jsonl"),
        ("chats.jsonl", "sft_t2t_mini.jsonl"),
        ("more.txt", "input.txt"),
    ):
        shutil.copy(folder / source, folder / copy)
    for name in ("minimind-3", "minimind/model", "Qwen3-0.6B"):
        state = load_checkpoint(save_minimind(folder / name)).model.state_dict()
    torch.save({name: tensor.half() for name, tensor in state.items()}, folder / "full_sft_768.pth")
    for name, mask in (("pretrain", "causal"), ("sft-causal", "causal"), ("sft-prefix", "prefix")):
        save_tiny(folder / "out/quickstart" / name, data, mask)
    (folder / "configs").symlink_to(ROOT / "configs")


@pytest.mark.long
def test_the_commands_of_the_pages_run_one_after_the_other(tmp_path, monkeypatch, data):
    write_data(tmp_path, data)
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for command in commands(page):
            if command.module in TOO_LONG or command.launcher[0] not in ("python", "accelerate"):
                continue
            if "--tasks" in command.flags:  # their data come from the hub
                continue
            if "--engine" in command.flags and not find_spec("llama_cpp"):
                continue
            monkeypatch.setattr(sys, "argv", [command.module, *small(command)])
            monkeypatch.setattr(sys, "stdin", io.StringIO("Where is Ada?"))
            try:
                import_module(command.module).main()
            except (SystemExit, ValueError, OSError) as error:
                pytest.fail(f"{name_of(page)}: {' '.join(sys.argv)}: {error}")
