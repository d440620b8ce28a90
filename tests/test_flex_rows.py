"""Rows for FlexAttention; forward only, as torch has no gradients of it on CPUs."""

import pytest
import torch

from model.backends import cut_rows
from model.flex_rows import has_flex, padded
from tests.conftest import tiny_model, windowed
from tests.test_masks import random_layout


def test_rows_of_all_lengths_are_padded_to_few():
    assert [padded(length) for length in (1, 128, 129, 256, 257, 5000)] == [128, 128, 256, 256, 512, 8192]


def test_nothing_with_gradients_is_given_to_flex_on_a_cpu():
    q = torch.zeros(1, 1, 3, 2)
    assert not has_flex(q)
    with torch.no_grad():
        assert has_flex(q)


@pytest.mark.long
@pytest.mark.parametrize("memory_tokens", [None, 2])
def test_a_model_in_flex_equals_one_under_dense_masks_on_packed_rows_with_parts(memory_tokens):
    model = tiny_model(memory_tokens=memory_tokens, **windowed(3, None, sinks=1))
    layout, ids = random_layout(3, 150), torch.randint(97, (3, 150))
    with torch.no_grad():
        expected = model(ids, layout)
        model.set_attention("flex")
        kinds = [(seen.kind, seen.rows.squares.shape) for seen in model.model.visibilities(ids, layout)]
        assert kinds == [("flex", (3, 1, 256, 256))] * 2
        assert (model(ids, layout) - expected)[layout.document_ids >= 0].abs().max() < 1e-9
    model.set_attention("auto")
    assert model.model.cut_rows is cut_rows
