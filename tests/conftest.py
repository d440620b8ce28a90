"""What several test files build on: tiny float64 models and layouts drawn by hand."""

import pytest
import torch

from model.config import from_preset
from model.masks import Layout
from model.transformer import LanguageModel

STRATEGIES = ("causal", "prefix", "segment", "history")


def tiny_model(**overrides) -> LanguageModel:
    """A random two-layer float64 model whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    config = from_preset("tiny", **{"vocab_size": 97, "initializer_range": 0.2, **overrides})
    return LanguageModel(config).double().eval()


def one_document(block_ids: torch.Tensor, batch: int = 1) -> Layout:
    """The layout (batch, n) of rows that hold one document with these blocks (n,)."""
    n = len(block_ids)
    return Layout(
        torch.zeros(batch, n, dtype=torch.long),
        torch.arange(n).expand(batch, n),
        block_ids.expand(batch, n),
    )


def turns(drawing: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and starts (n,) of a conversation in letters, `Ss Uu Aa`: a capital begins a message."""
    letters = drawing.replace(" ", "")
    answers = torch.tensor([letter in "Aa" for letter in letters])
    starts = torch.tensor([letter.isupper() and letter != "A" for letter in letters])
    return answers, starts


@pytest.fixture(autouse=True)
def _same_randomness():
    torch.manual_seed(1)
