"""Rows cut into bands, against the rule as loops over single tokens, and against a dense mask."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from model.attention import Scoring, Visibility, eager_attention
from model.backends import attend
from model.bands import in_bands, in_one
from model.layouts import prompt_blocks
from model.masks import Layout, causal_layout
from model.pattern import ALL, Pattern
from tests.conftest import STRATEGIES, one_document, tiny_model, turns, windowed
from tests.test_masks import by_hand

PIECES = ("Uu Aa", "Ss Uuuu A Uu Aaa", "U Aaaaaaa", "Aaaaaa", "Ssss Uuuuuu A")
patterns = st.builds(
    Pattern,
    window=st.none() | st.integers(1, 30),
    both_sides=st.booleans(),
    sinks=st.integers(0, 4),
    chunk=st.none() | st.integers(1, 9),
).filter(lambda pattern: pattern.reach)


def packed(strategy: str, rows: list[list[str]]) -> Layout:
    """Rows of conversations in letters, of which "." are padding."""
    length = max(sum(len(piece.replace(" ", "")) for piece in row) for row in rows)
    lines = [[], [], []]
    for row in rows:
        ids = [torch.empty(0, dtype=torch.long)] * 3
        for number, piece in enumerate(row):
            there = one_document(prompt_blocks(strategy, *turns(piece)))
            blocks = torch.where(there.block_ids < 0, -1, there.block_ids + 10 * number)[0]
            own = torch.full_like(blocks, -1 if "." in piece else number), there.position_ids[0], blocks
            ids = [torch.cat(pair) for pair in zip(ids, own, strict=True)]
        missing = length - len(ids[0])
        for line, each, filler in zip(lines, ids, (-1, 7, -1), strict=True):
            line.append(pad(each, (0, missing), value=filler))
    return Layout(*(torch.stack(line) for line in lines))


def whole(bands, length: int) -> torch.Tensor:
    """The mask (B, T, T) that bands make of the places of keys in their row, each named at most once."""
    places = torch.arange(1, length + 1, dtype=torch.double)[None, None, :, None]
    batch = len(bands.layout.block_ids)
    of_keys = bands.keys(places.expand(batch, -1, -1, -1)).long()  # (B * N, 1, keys, 1), 0 = of no token
    counts = torch.zeros(*bands.mask.shape[:1], bands.mask.shape[2], length + 1, dtype=torch.long)
    seen = bands.mask[:, 0].long()
    counts.scatter_add_(2, of_keys[:, :, :, 0].expand_as(seen), seen)
    counts = counts.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length, 1:]
    assert counts.max() <= 1
    return counts.bool()


@example("prefix", Pattern(chunk=1, sinks=2), [["Uu Aa"]], 1, None)  # a sink that stands ahead of its query
@settings(max_examples=30, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    pattern=patterns,
    rows=st.lists(
        st.lists(st.sampled_from((*PIECES, "....")), min_size=1, max_size=4), min_size=1, max_size=2
    ),
    smallest=st.integers(1, 6),
    softcap=st.sampled_from((None, 0.8)),
)
def test_bands_see_what_loops_find_and_attend_as_a_dense_mask_does(
    strategy, pattern, rows, smallest, softcap
):
    layout = packed(strategy, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.bands.SMALLEST_BLOCK", smallest)
        patch.setattr("model.bands.WIDEST_SHARE", 1000)
        bands = in_bands(layout, pattern).rows
    batch, length = layout.block_ids.shape
    in_no_part = layout._replace(part_ids=torch.full_like(layout.block_ids, -1))
    mask = by_hand(in_no_part, pattern)
    assert torch.equal(in_one(layout, pattern).mask[:, 0], mask)
    assert torch.equal(in_one(layout, ALL).mask[:, 0], by_hand(in_no_part, ALL))
    assert torch.equal(whole(bands, length), mask) and torch.equal(bands.dense()[:, 0], mask)

    heads, results = (4, 2, 2), []
    inputs = [torch.randn(batch, h, length, 6, dtype=torch.float64, requires_grad=True) for h in heads]
    noise = torch.randn(batch, 4, length, 6, dtype=torch.float64)
    for way, seen in ((attend, Visibility(rows=bands)), (eager_attention, Visibility(mask[:, None]))):
        y = way(*inputs, seen, Scoring(0.3, softcap))
        results.append([y, *torch.autograd.grad(y, inputs, noise)])
    for banded, dense in zip(*results, strict=True):
        assert (banded - dense).abs().max() < 1e-12


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_what_bounds_leave_is_all_that_is_near(window, both_sides, chunk):
    pattern, position, begin = Pattern(window, both_sides, 0, chunk), torch.arange(20), 7
    near = pattern.is_near(position[:, None], position).numpy()
    place = position.numpy() + begin
    first, last = pattern.bounded(place, np.full(20, begin), np.full(20, begin + 19))
    assert ((first[:, None] <= place) & (place <= last[:, None]) == near).all()


@pytest.mark.parametrize(
    ("bounds", "memory_tokens"),
    [({}, None), ({"both_sides": True}, 2), ({"sinks": 2}, 1), ({"chunk": 2}, None)],
)
def test_models_learn_the_same_in_bands_as_under_dense_masks(bounds, memory_tokens, monkeypatch):
    monkeypatch.setattr("model.bands.SMALLEST_BLOCK", 3)
    monkeypatch.setattr("model.bands.WIDEST_SHARE", 2)
    model = tiny_model(memory_tokens=memory_tokens, **windowed(3, None, 3, **bounds))
    layout = packed("segment", [["Uu Aa", "Ss Uu A U A", "Uuu A"], ["Ss Uu A Uu A Uu Aaa"]])
    ids, results = torch.randint(97, layout.block_ids.shape), []
    assert [seen.kind for seen in model.model.visibilities(ids, layout)] == ["bands", "dense", "bands"]
    for backend in ("eager", "auto"):
        model.set_attention(backend)
        model.zero_grad()
        logits = model(ids, layout)[layout.document_ids >= 0]
        logits.square().sum().backward()
        results.append((logits, [parameter.grad.clone() for parameter in model.parameters()]))
    (dense, dense_grads), (banded, grads) = results
    assert (dense - banded).abs().max() < 1e-9
    for a, b in zip(dense_grads, grads, strict=True):
        assert (a - b).abs().max() < 1e-9 * (1 + a.abs().max())


def test_what_places_cannot_say_is_left_to_pairs_of_tokens():
    documents = torch.tensor([[0, 0, 1, 1, 1]])
    layout = Layout(documents, torch.tensor([[0, 1, 0, 1, 2]]), torch.full_like(documents, -1))
    assert in_one(layout, ALL) is not None
    for torn in ([0, 0, 1, 0, 0], [0, 0, -1, 0, 0]):
        again = layout._replace(document_ids=torch.tensor([torn]))
        assert in_one(again._replace(position_ids=torch.tensor([[0, 1, 0, 0, 1]])), ALL) is None
    assert in_one(layout._replace(position_ids=torch.arange(5)[None]), Pattern(2)) is None
    assert in_one(layout._replace(part_ids=documents), ALL) is None
    seen = tiny_model().model.visibilities(documents, layout._replace(part_ids=documents))[0]
    assert torch.equal(seen.mask[:, 0], by_hand(layout._replace(part_ids=documents), ALL))


def test_what_rows_take_under_a_window_grows_as_their_length():
    def pairs(length: int) -> int:
        return in_bands(causal_layout(2, length), Pattern(100, sinks=3)).rows.mask.numel()

    assert pairs(4000) == 4 * pairs(1000) and pairs(1000) < 0.2 * 2 * 1000 * 1000


def test_only_long_rows_in_order_are_cut_into_bands():
    def is_cut(layout: Layout, **bounds: int) -> bool:
        return in_bands(layout, Pattern(**bounds or {"window": 64})) is not None

    row = causal_layout(1, 400)
    documents, positions, blocks, _ = row
    assert is_cut(row) and is_cut(row, chunk=64) and not is_cut(row, sinks=1)
    assert not is_cut(causal_layout(1, 100))
    later = positions >= 200
    assert is_cut(row._replace(document_ids=later.long(), position_ids=positions % 200))
    assert not is_cut(row._replace(document_ids=later.long()))  # the second document does not begin at 0
    torn = (positions // 100) % 2
    assert not is_cut(row._replace(document_ids=torn, position_ids=positions % 100))
    assert not is_cut(row._replace(part_ids=blocks))
    prompt = row._replace(block_ids=torch.where(positions < 200, 0, -1))
    assert not is_cut(prompt) and is_cut(prompt, window=64, both_sides=True)
    assert is_cut(row._replace(block_ids=torch.where(positions < 30, 0, -1)))
