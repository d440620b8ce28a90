"""The rule against pictures drawn by hand, and against a second form of it written out in loops."""

import numpy as np
import pytest
import torch

from model import strategies
from model.errors import UserError
from model.layouts import blocks_before_answer, positions_of, prompt_blocks
from model.masks import (
    Layout,
    cached_mask,
    causal_layout,
    check_layout,
    draw_text,
    is_plain_causal,
    is_readable,
    last_visible,
    reusable_prefix,
    visible_mask,
)
from model.pattern import ALL, Pattern
from model.runs import Span, document_spans, last_seen
from tests.conftest import STRATEGIES, one_document, turns

CONVERSATION = "Ss Uu Aa Uu A"

DRAWINGS = {
    "causal": """
        1 . . . . . . . .
        1 1 . . . . . . .
        1 1 1 . . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 1 . . . .
        1 1 1 1 1 1 . . .
        1 1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 1""",
    "prefix": """
        1 1 1 1 . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 1 . . . .
        1 1 1 1 1 1 . . .
        1 1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 1""",
    "segment": """
        1 1 . . . . . . .
        1 1 . . . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 1 . . . .
        1 1 1 1 1 1 . . .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 1""",
    "history": """
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 1""",
}


def drawn(picture: str) -> torch.Tensor:
    lines = picture.split("\n")[1:] if picture.startswith("\n") else picture.split("\n")
    return torch.tensor([[cell == "1" for cell in line.split()] for line in lines])


def by_hand(layout: Layout, pattern: Pattern) -> torch.Tensor:
    """The rule of the design, once more, as loops over single tokens."""
    window, both_sides, sinks, chunk = pattern
    documents, places, blocks, parts = (ids.tolist() for ids in layout)
    batch, n = len(documents), len(documents[0])
    mask = torch.zeros(batch, n, n, dtype=torch.bool)
    for b in range(batch):
        for q in range(n):
            for k in range(n):
                if q == k:
                    mask[b, q, k] = True
                elif documents[b][k] >= 0 and documents[b][q] == documents[b][k]:
                    distance = places[b][q] - places[b][k]
                    inside = window is None or (abs(distance) if both_sides else distance) < window
                    inside = inside and (chunk is None or places[b][q] // chunk == places[b][k] // chunk)
                    inside = inside or places[b][k] < sinks
                    shared = blocks[b][q] >= 0 and blocks[b][q] == blocks[b][k]
                    mine, other = parts[b][q], parts[b][k]
                    apart = mine != other and (mine < -1 or (mine >= 0 and other != -1))
                    mask[b, q, k] = inside and (k < q or shared) and not apart
    return mask


def random_layout(batch: int, length: int) -> Layout:
    """Packed rows of random documents with random blocks and parts, and padding on the right."""
    rows = [_random_row(length) for _ in range(batch)]
    return Layout(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def _random_row(length: int) -> tuple[list[int], list[int], list[int], list[int]]:
    documents, positions, blocks, parts = [], [], [], []
    while len(documents) < length - 3 and int(torch.randint(5, ())):
        size = min(int(torch.randint(1, 8, ())), length - len(documents))
        cut = int(torch.randint(0, size + 1, ()))
        documents += [max(documents, default=-1) + 1] * size
        blocks += [max(blocks, default=-1) + 1] * cut + [-1] * (size - cut)
        parts += [-1] * cut + (mine := _random_parts(size - cut, max(map(abs, parts), default=0) + 2))
        positions += positions_of(np.array([-1] * cut + mine), size).tolist()
    missing = length - len(documents)
    none = [-1] * missing
    return documents + none, positions + [0] * missing, blocks + none, parts + none


def _random_parts(count: int, first: int) -> list[int]:
    """Parts of a set, or isolated ones, or none, in turns of random lengths; numbers grow from `first` on."""
    parts = []
    while len(parts) < count:
        number = (first + len(parts)) * int(torch.randint(-1, 2, ()))
        parts += [number or -1] * int(torch.randint(1, 4, ()))
    return parts[:count]


@pytest.mark.parametrize("strategy", DRAWINGS)
def test_every_strategy_draws_the_picture_that_we_drew_by_hand(strategy):
    mask = visible_mask(one_document(prompt_blocks(strategy, *turns(CONVERSATION))))[0]
    assert draw_text(mask) == "\n".join(line.strip() for line in DRAWINGS[strategy].split("\n")[1:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_makes_the_blocks_that_its_docstring_draws(strategy):
    blocks = prompt_blocks(strategy, *turns("Ss Uu Aa Uu Aa")).tolist()
    drawing = strategies.STRATEGIES[strategy].drawing
    assert " ".join("." if block < 0 else str(block) for block in blocks) == drawing
    check_layout(one_document(torch.tensor(blocks)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_loss_of_a_strategy_is_on_a_token_that_its_predicting_row_sees(strategy):
    answers, starts = turns("Ss Uu Aa Uu Aa")
    last = answers & (torch.arange(10) >= 8)
    targets = {"answers": answers, "last": last, "all": torch.ones(10, dtype=torch.bool)}
    readable = is_readable(prompt_blocks(strategy, answers, starts)[None])[0]
    legal = {name for name, chosen in targets.items() if not (chosen & readable).any()}
    assert {*strategies.STRATEGIES[strategy].losses} <= legal
    texts = torch.cat((torch.zeros(4, dtype=torch.bool), torch.ones(6, dtype=torch.bool)))
    readable = is_readable(prompt_blocks(strategy, texts, torch.zeros_like(texts))[None])[0]
    targets = {"suffix": texts, "all": torch.ones_like(texts)}
    legal = {name for name, chosen in targets.items() if not (chosen & readable).any()}
    assert {*strategies.STRATEGIES[strategy].text_losses} <= legal


def test_a_window_bounds_blocks_on_the_left_and_counts_the_token_itself():
    blocks = torch.tensor([0, 0, 0, 0, -1, -1])
    assert torch.equal(
        visible_mask(one_document(blocks), Pattern(2))[0],
        drawn("1 1 1 1 . .\n1 1 1 1 . .\n. 1 1 1 . .\n. . 1 1 . .\n. . . 1 1 .\n. . . . 1 1"),
    )


def test_a_window_on_both_sides_bounds_later_keys_of_a_block_and_nothing_else():
    blocks = torch.tensor([0, 0, 0, 0, -1, -1])
    assert torch.equal(
        visible_mask(one_document(blocks), Pattern(2, both_sides=True))[0],
        drawn("1 1 . . . .\n1 1 1 . . .\n. 1 1 1 . .\n. . 1 1 . .\n. . . 1 1 .\n. . . . 1 1"),
    )
    causal = causal_layout(2, 9)
    assert torch.equal(visible_mask(causal, Pattern(4, both_sides=True)), visible_mask(causal, Pattern(4)))
    layout = random_layout(batch=16, length=20)
    assert torch.equal(visible_mask(layout, Pattern(both_sides=True)), visible_mask(layout))


def test_sinks_are_seen_besides_the_window_and_stay_in_their_document():
    layout = Layout(
        torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, -1]]),
        torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0]]),
        torch.tensor([[-1, -1, -1, -1, -1, 0, 0, 0, -1]]),
    )
    picture = """
        1 . . . . . . . .
        1 1 . . . . . . .
        1 1 1 . . . . . .
        1 . 1 1 . . . . .
        1 . . 1 1 . . . .
        . . . . . 1 1 1 .
        . . . . . 1 1 1 .
        . . . . . 1 1 1 .
        . . . . . . . . 1"""
    assert torch.equal(visible_mask(layout, Pattern(2, sinks=1))[0], drawn(picture.strip()))


def test_chunks_are_counted_from_the_first_token_of_a_document_and_bound_blocks():
    layout = Layout(
        torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1]]),
        torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]]),
        torch.tensor([[0, 0, 0, -1, -1, -1, -1, -1]]),
    )
    chunks = """
        1 1 . . . . . .
        1 1 . . . . . .
        . . 1 . . . . .
        . . 1 1 . . . .
        . . . . 1 . . .
        . . . . 1 1 . .
        . . . . . . 1 .
        . . . . . . . 1"""
    assert torch.equal(visible_mask(layout, Pattern(chunk=2))[0], drawn(chunks.strip()))
    sinks = drawn(chunks.strip())
    sinks[2, 0] = sinks[3, 0] = sinks[6, 4] = True
    assert torch.equal(visible_mask(layout, Pattern(sinks=1, chunk=2))[0], sinks)


def test_a_pattern_without_bounds_that_a_document_meets_is_none():
    assert Pattern(9, True, 2, 12).within(9) == ALL == Pattern(sinks=3).within(5)
    assert Pattern(3, True, 9, 4).within(9) == ALL
    assert Pattern(3, True, 2, 12).within(9) == Pattern(3, True, 2)
    assert Pattern(9, True, 2, 4).within(9) == Pattern(None, False, 2, 4)
    layout = random_layout(batch=8, length=9)
    for pattern in (
        Pattern(9, True, 2, 12),
        Pattern(3, True, 2, 12),
        Pattern(9, True, 2, 4),
        Pattern(3, True, 9, 4),
    ):
        assert torch.equal(visible_mask(layout, pattern), visible_mask(layout, pattern.within(9)))


def test_packed_documents_and_padding_see_nothing_of_each_other():
    layout = Layout(
        torch.tensor([[0, 0, 0, 1, 1, -1]]),
        torch.tensor([[0, 1, 2, 0, 1, 0]]),
        torch.tensor([[0, 0, -1, 1, 1, -1]]),
    )
    picture = "1 1 . . . .\n1 1 . . . .\n1 1 1 . . .\n. . . 1 1 .\n. . . 1 1 .\n. . . . . 1"
    assert torch.equal(visible_mask(layout)[0], drawn(picture))


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("sinks", "chunk"), [(0, None), (2, None), (0, 4), (1, 4)])
def test_the_predicate_equals_the_rule_written_as_loops(window, both_sides, sinks, chunk):
    layout, pattern = random_layout(batch=8, length=20), Pattern(window, both_sides, sinks, chunk)
    assert torch.equal(visible_mask(layout, pattern), by_hand(layout, pattern))


def test_rows_of_later_queries_are_slices_of_the_whole_mask():
    whole = one_document(torch.tensor([0, 0, 0, -1, -1, 1, 1, -1, -1]), batch=2)
    tail = Layout(*(ids[:, 4:8] for ids in whole[:3]))
    for both_sides in (False, True):
        sliced = cached_mask(tail, whole, Pattern(2, both_sides))
        assert torch.equal(sliced, visible_mask(whole, Pattern(2, both_sides))[:, 4:8])


def test_no_row_of_a_mask_is_ever_empty():
    assert visible_mask(random_layout(batch=16, length=20), Pattern(1)).any(-1).all()


@pytest.mark.parametrize("strategy", ["prefix", "segment", "history"])
def test_single_turns_without_a_system_message_make_the_strategies_one(strategy):
    assert torch.equal(prompt_blocks(strategy, *turns("Uuu Aaa")), torch.tensor([0, 0, 0, -1, -1, -1]))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_follows_the_last_answer_is_causal(strategy):
    answers, starts = turns("Ss Uu Aa Uu Aa u")
    assert prompt_blocks(strategy, answers, starts)[-1] == -1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_prompt_gets_the_blocks_that_training_gave_it(strategy):
    answers, starts = turns(CONVERSATION)
    trained = prompt_blocks(strategy, answers, starts)
    # where the last answer alone carries loss, only what comes before it must be the same
    for n in (8,) if strategies.STRATEGIES[strategy].losses == ("last",) else (4, 8):
        assert torch.equal(blocks_before_answer(strategy, answers[:n], starts[:n]), trained[:n])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_conversations_without_an_answer_are_causal(strategy):
    assert (prompt_blocks(strategy, *turns("Ss Uu")) == -1).all()


def test_an_unknown_strategy_is_refused_with_the_names_of_the_known():
    with pytest.raises(UserError, match=f"choose one of {', '.join(STRATEGIES)}"):
        prompt_blocks("bidirectional", *turns("Uu A"))


def test_a_label_is_readable_where_its_predicting_row_sees_it():
    layout = random_layout(batch=8, length=20)
    mask = visible_mask(layout)
    superdiagonal = torch.zeros_like(layout.block_ids, dtype=torch.bool)
    superdiagonal[:, 1:] = mask.diagonal(offset=1, dim1=1, dim2=2)
    assert torch.equal(is_readable(layout.block_ids), superdiagonal)


def test_a_broken_block_is_refused_and_named():
    check_layout(random_layout(batch=8, length=20))
    with pytest.raises(ValueError, match="block 7 of row 0"):
        check_layout(one_document(torch.tensor([7, 7, -1, 7])))


def test_padding_with_a_block_is_refused():
    layout = causal_layout(1, 3)
    with pytest.raises(ValueError, match="padding"):
        check_layout(Layout(torch.tensor([[0, 0, -1]]), layout.position_ids, torch.tensor([[-1, 0, 0]])))


def test_a_block_in_two_documents_is_refused():
    layout = causal_layout(1, 4)
    documents = torch.tensor([[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="one document"):
        check_layout(Layout(documents, layout.position_ids, torch.tensor([[0, 0, 0, 0]])))


def test_plain_causal_means_one_unblocked_document_padded_on_the_right():
    documents, positions, blocks, _ = causal_layout(1, 6)
    assert is_plain_causal(Layout(documents, positions, blocks))
    right = torch.tensor([[0, 0, 0, 0, -1, -1]])
    assert is_plain_causal(Layout(right, positions, blocks))
    assert not is_plain_causal(Layout(right.flip(1), positions.roll(2, 1), blocks))
    two_documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert not is_plain_causal(Layout(two_documents, positions % 3, blocks))
    assert not is_plain_causal(Layout(two_documents, positions, blocks))
    assert not is_plain_causal(Layout(documents, positions, torch.where(positions < 2, 0, -1)))
    assert not is_plain_causal(Layout(documents, positions, blocks, torch.where(positions < 2, 0, -1)))


def test_reach_is_the_last_key_that_the_predicate_shows():
    for _ in range(20):
        blocks = torch.tensor(_random_row(20)[2])
        last_seen = 19 - visible_mask(one_document(blocks))[0].flip(1).long().argmax(1)
        assert torch.equal(last_visible(blocks), last_seen)


@pytest.mark.parametrize("pattern", [ALL, Pattern(2), Pattern(2, True), Pattern(5, True, 2)])
def test_the_reusable_prefix_is_the_last_that_the_cut_rule_allows(pattern):
    for _ in range(60):
        cached, wanted = (torch.tensor(_random_row(14)[2]) for _ in range(2))
        old, new = (visible_mask(one_document(blocks), pattern)[0] for blocks in (cached, wanted))
        legal = [
            c
            for c in range(15)
            if torch.equal(old[:c, :c], new[:c, :c]) and not old[:c, c:].any() and not new[:c, c:].any()
        ]
        assert reusable_prefix(cached, wanted, 14) == max(legal)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_cache_survives_a_new_turn_where_the_strategy_says_so(strategy):
    answers, starts = turns(CONVERSATION + " Uu")
    first_turns = blocks_before_answer(strategy, answers[:8], starts[:8])
    cached = torch.cat((first_turns, torch.tensor([-1])))  # the answer was decoded, causally
    reusable = reusable_prefix(cached, blocks_before_answer(strategy, answers, starts), 9)
    assert (reusable == 9) is strategies.STRATEGIES[strategy].survives_turns
    assert reusable == 0 or strategy != "history"


def test_spans_are_the_documents_and_the_padding_of_all_rows_in_order():
    documents = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0]])
    blocks = torch.tensor([[-1, 3, 3, 3, -1, -1], [-1, -1, -1, -1, -1, -1]])
    layout = Layout(documents, torch.zeros_like(documents), blocks)
    assert document_spans(layout) == [
        Span(0, 0, 2, is_padding=False),
        Span(0, 2, 5, is_padding=False),
        Span(0, 5, 6, is_padding=True),
        Span(1, 0, 6, is_padding=False),
    ]
    assert last_seen(layout).tolist() == [[0, 1, 3, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_no_key_outside_of_its_span_is_visible_to_a_real_token():
    layout = random_layout(8, 30)
    mask = visible_mask(layout)
    for span in document_spans(layout):
        inside = slice(span.begin, span.end)
        mask[span.row, inside, inside] = False
    assert not mask.any()


def test_a_document_in_two_pieces_has_no_spans():
    documents = torch.tensor([[0, 0, 1, 0]])
    layout = Layout(documents, torch.zeros_like(documents), torch.full_like(documents, -1))
    assert document_spans(layout) is None


GEMMA_FILL = -2.3819763e38
"""what google-deepmind/gemma puts in the place of scores that are masked"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_huge_negative_number_masks_as_infinity_does_where_a_row_sees_something(dtype):
    scores, mask = torch.randn(3, 20, 20).to(dtype) * 30, visible_mask(random_layout(3, 20))
    assert mask.any(-1).all()  # as the diagonal is always on
    by_number, by_infinity = (
        scores.masked_fill(~mask, fill).softmax(-1) for fill in (GEMMA_FILL, -torch.inf)
    )
    assert torch.equal(by_number, by_infinity) and (by_number > 0).any(-1).all()


def test_a_huge_negative_number_is_no_mask_in_an_empty_row_added_twice_or_in_float16():
    scores, number = torch.zeros(1, 4), torch.tensor(GEMMA_FILL)
    nothing_seen = torch.ones(1, 4, dtype=torch.bool)
    assert scores.masked_fill(nothing_seen, GEMMA_FILL).softmax(-1).tolist() == [[0.25] * 4]
    assert scores.masked_fill(nothing_seen, -torch.inf).softmax(-1).isnan().all()
    assert number + number == -torch.inf  # of two masks, for the future and for padding
    added = scores + torch.tensor([[1.0, 1, 0, 0]]) * number + torch.tensor([[0.0, 1, 0, 0]]) * number
    assert added.softmax(-1).tolist() == [[0, 0, 0.5, 0.5]]  # right as long as a key is seen
    empty = added + torch.tensor([[0.0, 0, 1, 1]]) * number
    torch.testing.assert_close(empty.softmax(-1), torch.tensor([[1.0, 0, 1, 1]]) / 3)
    assert (scores + number + number).softmax(-1).isnan().all()
    assert number.half() == -torch.inf and torch.finfo(torch.half).min == -65504
