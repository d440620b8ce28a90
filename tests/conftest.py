"""What several test files build on: tiny float64 models, layouts drawn by hand, the order of files."""

import gc
import os
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from forced_units import CHOICE, force_units
from xdist.scheduler import LoadFileScheduling

from dataset.prompts import prompt_under
from model import strategies
from model.architectures import model_of
from model.config import ModelConfig, from_preset
from model.layouts import document_layout
from model.masks import Layout, visible_mask
from model.pattern import Pattern
from model.prompt import Prompt
from model.transformer import LanguageModel

STRATEGIES = tuple(strategies.STRATEGIES)
WITH_BLOCKS = tuple(name for name, each in strategies.STRATEGIES.items() if "0" in each.drawing)
WITH_PASSAGES = tuple(name for name, each in strategies.STRATEGIES.items() if each.passages != "open")
FOR_TEXTS = tuple(name for name in STRATEGIES if strategies.STRATEGIES[name].text_losses)
LONGEST = ("test_quickstart", "test_scale", "test_grid", "test_stopping", "test_loop", "test_exact_resume")
LONGEST += ("test_bench", "test_judging", "test_chat", "test_bad_input", "test_terminal")
"""files that are begun first, so that no worker computes long after the others"""
MINUTES = ("test_no_change_of_the_input_makes_a_traceback[10000", "test_a_training_killed_at_random")
"""tests of --long that are begun before them"""


class Sharing(LoadFileScheduling):
    """Workers compute whole files, but of tests that take minutes each by itself."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if is_alone(nodeid) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Sharing(config, log)


def is_alone(nodeid: str) -> bool:
    return any(name in nodeid for name in MINUTES)


def _place(name: str) -> int:
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    if forked_runs := sys.modules.get("forked_runs"):  # a test needs it
        forked_runs.start_server()


def seed(number: int) -> None:
    """Seed what draws here: `torch.manual_seed` writes a stack down for each kind of device that is not."""
    (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(number)


def tiny_model(**overrides) -> LanguageModel:
    """A random two-layer float64 model whose weights are large enough for attention to matter."""
    seed(0)
    config = from_preset("tiny", **{"vocab_size": 97, "initializer_range": 0.2, **overrides})
    return model_of(config).double().eval()


def windows_of(config: ModelConfig) -> tuple[int | None, ...]:
    """How far the layers of a model see; None sees everything."""
    return tuple(pattern.reach for pattern in config.layer_patterns)


def windowed(
    *windows: int | None, both_sides: bool = False, sinks: int | None = None, chunk: int | None = None
) -> dict[str, object]:
    """The shape of a model whose layers have these windows; None sees everything, the others are alike.

    They may see sinks, too, and be bounded by chunks.
    """
    kinds = ("full_attention" if window is None else "sliding_attention" for window in windows)
    widest = max((window for window in windows if window), default=None)
    return {
        "num_hidden_layers": len(windows),
        "sliding_window": widest,
        "layer_types": tuple(kinds),
        "window_both_sides": both_sides and widest is not None,
        "attention_sinks": sinks if widest else None,
        "attention_chunk_size": chunk if widest else None,
    }


def one_document(block_ids: torch.Tensor, batch: int = 1, parts: torch.Tensor | None = None) -> Layout:
    """The layout (batch, n) of rows that hold one document with these blocks and parts (n,)."""
    layout = document_layout(block_ids, None if parts is None else parts.numpy())
    return Layout(*(ids if ids is None else ids.expand(batch, -1) for ids in layout))


def turns(drawing: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and starts (n,) of a conversation in letters, `Ss Uu Aa`: a capital begins a message."""
    letters = drawing.replace(" ", "")
    answers = torch.tensor([letter in "Aa" for letter in letters])
    starts = torch.tensor([letter.isupper() and letter != "A" for letter in letters])
    return answers, starts


def check_influence(model: LanguageModel, layout: Layout, *patterns: Pattern) -> None:
    """Check that each token moves exactly the logits that layers of these patterns let it reach."""
    ids, (_, length) = torch.randint(96, layout.position_ids.shape), layout.position_ids.shape
    flow = torch.eye(length, dtype=torch.float64)
    for pattern in patterns:
        flow = visible_mask(layout, pattern)[0].double() @ flow
    with torch.no_grad():
        before = model(ids, layout)[0]
        for j in range(length):
            moved = (model(ids.index_fill(1, torch.tensor(j), 96), layout)[0] - before).abs().amax(-1)
            assert torch.equal(moved > 1e-9, flow[:, j] > 0), f"token {j}"
            assert (moved[flow[:, j] == 0] == 0).all(), f"token {j}"


def passages_in(drawing: str) -> np.ndarray:
    """The passage (n,) of each token of a conversation in letters, `Uu Ppp Pp u`: a capital P begins one."""
    letters = drawing.replace(" ", "")
    numbers = np.cumsum([letter == "P" for letter in letters]) - 1
    return np.where([letter in "Pp" for letter in letters], numbers, -1)


def drawn_prompt(strategy: str, drawing: str, ids: Sequence[int]) -> Prompt:
    """The prompt of a conversation in letters under a strategy."""
    return prompt_under(strategy, tuple(ids), *turns(drawing), passages_in(drawing))


@pytest.fixture(autouse=True)
def _same_randomness():
    seed(1)


@pytest.fixture(scope="module")
def code_kept_apart(tmp_path_factory):
    """Let transformers keep the modelling files that it opens in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("code"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command and return what it prints."""

    def call(module, *words: object) -> str:
        monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
        module.main()
        return capsys.readouterr().out

    return call


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")
    choices = ("native", "absent")
    parser.addoption(
        "--bfloat16", choices=choices, help="what the processor is to look like; default: as it is"
    )


def pytest_configure(config):
    if choice := config.getoption("--bfloat16"):
        os.environ[CHOICE] = choice
    force_units()
    gc.disable()  # imports and items stay: looking through them for garbage finds none


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: (not is_alone(item.nodeid), _place(item.path.stem)))
    skip = pytest.mark.skip(reason="takes minutes; bash scripts/test.sh --long runs it")
    for item in items if not config.getoption("--long") else ():
        if "long" in item.keywords:
            item.add_marker(skip)
