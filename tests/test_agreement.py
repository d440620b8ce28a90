"""The same questions in every engine: our chat, the server, transformers, llama.cpp, under every mask."""

from importlib.util import find_spec

import pytest

from scripts.bench import agreement
from tests.conftest import WITH_BLOCKS
from tests.serving import save_served, served_model, write_lines

MASKS = ("causal", *WITH_BLOCKS)
pytestmark = pytest.mark.usefixtures("code_kept_apart")
ASKED = (
    ["Capital of Peru?"],
    ["Capital of Peru?", "Lima.", "它的货币呢？"],
    ["法国的首都是哪里？", "巴黎。", "And?", "Euro.", "What is the capital?"],
)


def test_every_engine_gives_the_answers_of_our_chat_under_every_mask(tmp_path, command):
    folders = [save_served(served_model(mask, stops=True), tmp_path / mask) for mask in MASKS]
    chats = [
        [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
        for turns in ASKED
    ]
    data = write_lines(tmp_path / "q.jsonl", *({"conversations": c, "answers": ["x"]} for c in chats))
    told = command(agreement, "--models", *folders, "--data", data, "--max_new_tokens", 9)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines()]
    everyone = ["3", "3", "3" if find_spec("llama_cpp") else "–"]
    assert [row[3:] for row in rows[-4:]] == [["0", *everyone] for _ in MASKS]
    assert [row[1] for row in rows[-4:]] == [*MASKS]
