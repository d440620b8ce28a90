import json
import tracemalloc
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.packing import best_fit, one_per_row, split_stream
from scripts.bench.orders import begin_epoch, write_drawn

CAPACITY, MANY = 16, 20_000
lengths = st.just(0) | st.integers(2, CAPACITY)  # a token alone is nothing to learn
lengths_of_documents = st.lists(lengths, min_size=1, max_size=40).filter(any).map(np.array)
lengths_of_texts = st.lists(st.integers(3, 50), min_size=1, max_size=12).map(np.array)


def rows_of(plan):
    return [plan[i].tolist() for i in range(len(plan))]


@settings(max_examples=25)
@given(lengths_of_documents, st.integers(0, 3))
def test_packing_puts_every_document_whole_into_one_row(lengths, epoch):
    plan = best_fit(lengths, CAPACITY, seed=0, epoch=epoch)
    assert sorted(plan.pieces.tolist()) == [[i, 0, n] for i, n in enumerate(lengths.tolist()) if n]
    assert plan.row_tokens.max() <= CAPACITY
    assert plan.row_tokens.tolist() == [sum(end - begin for _, begin, end in row) for row in rows_of(plan)]


@settings(max_examples=25)
@given(lengths_of_documents)
def test_best_fit_fills_the_fullest_row_that_still_has_room(lengths):
    rows = []
    for length in sorted(lengths[lengths > 0].tolist(), reverse=True):
        fitting = [row for row in rows if sum(row) + length <= CAPACITY]
        max(fitting, key=sum).append(length) if fitting else rows.append([length])
    plan = best_fit(lengths, CAPACITY, seed=0, epoch=0)
    assert sorted(plan.row_tokens.tolist()) == sorted(map(sum, rows))


@pytest.mark.parametrize("arrange", [split_stream, one_per_row, best_fit])
@settings(max_examples=25)
@given(lengths=lengths_of_texts)
def test_splitting_loses_no_token_but_one_that_nothing_predicts(arrange, lengths):
    plan = arrange(lengths, CAPACITY, seed=0, epoch=1)
    seen = np.zeros((len(lengths), lengths.max()), dtype=int)
    for document, begin, end in plan.pieces.tolist():
        seen[document, begin:end] += 1
    missing = [(i, t) for i, n in enumerate(lengths.tolist()) for t in range(n) if seen[i, t] != 1]
    may_miss = [(i, n - 1) for i, n in enumerate(lengths.tolist())]
    assert seen.sum() + len(missing) == lengths.sum()
    assert set(missing) <= set(may_miss)
    assert plan.row_tokens.min() >= 2 and plan.row_tokens.max() <= CAPACITY
    if arrange is split_stream:
        assert len(missing) <= 1 and sorted(plan.row_tokens.tolist())[1:] == [CAPACITY] * (len(plan) - 1)


def test_a_stream_is_cut_where_a_row_is_full():
    # one text of 10 tokens in rows of 4:  0 1 2 3 | 4 5 6 7 | 8 9
    assert sorted(rows_of(split_stream(np.array([10]), 4, 0, 0))) == [[[0, 0, 4]], [[0, 4, 8]], [[0, 8, 10]]]
    assert sorted(rows_of(split_stream(np.array([9]), 4, 0, 0))) == [[[0, 0, 4]], [[0, 4, 8]]]
    assert sorted(rows_of(one_per_row(np.array([9, 5, 4]), 4, 0, 0))) == [
        [[0, 0, 4]],
        [[0, 4, 8]],
        [[1, 0, 4]],
        [[2, 0, 4]],
    ]


@pytest.mark.parametrize("arrange", [best_fit, split_stream, one_per_row])
def test_the_order_depends_on_seed_and_epoch_alone(arrange):
    lengths = np.tile(np.arange(3, 15), 5)
    first = rows_of(arrange(lengths, CAPACITY, seed=1, epoch=2))
    np.random.seed(3)
    assert rows_of(arrange(lengths, CAPACITY, seed=1, epoch=2)) == first
    others = [rows_of(arrange(lengths, CAPACITY, *other)) for other in ((1, 3), (2, 2), (2, 1))]
    assert all(other != first and len(other) == len(first) for other in others)


def test_rows_come_in_a_random_order():
    plan = best_fit(np.arange(1, 17), CAPACITY, seed=0, epoch=0)
    longest_of_row = plan.pieces[plan.offsets[:-1], 2].tolist()
    assert longest_of_row != sorted(longest_of_row, reverse=True)


@settings(max_examples=25)
@given(lengths_of_texts)
def test_best_fit_cuts_a_text_only_where_a_row_is_too_short_for_it(lengths):
    plan = best_fit(lengths, CAPACITY, seed=0, epoch=0)
    pieces_of = {n: sorted((b, e) for i, b, e in plan.pieces.tolist() if i == n) for n in range(len(lengths))}
    for n, length in enumerate(lengths.tolist()):
        whole = [(begin, min(begin + CAPACITY, length)) for begin in range(0, length, CAPACITY)]
        assert pieces_of[n] == [(begin, end) for begin, end in whole if end - begin > 1]


@pytest.mark.parametrize("kind, packing", [("sft", "pack"), ("pretrain", "pack")])
def test_the_order_of_an_epoch_takes_at_most_60_bytes_a_document(tmp_path, monkeypatch, kind, packing):
    for name in ("token_store.READ_TOKENS", "documents.TOKENS_AT_ONCE", "packing.AT_ONCE"):
        monkeypatch.setattr(f"dataset.{name}", 2**9)
    store = write_drawn(tmp_path / "store", kind, MANY)
    tracemalloc.start()
    assert len(begin_epoch(store, packing=packing).documents.lengths) == MANY
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * MANY


@pytest.mark.parametrize(
    "arrange, digest",
    [(best_fit, "d2d64a402e3b"), (split_stream, "11cd8797e3e9"), (one_per_row, "0d440d65fa09")],
)
def test_the_order_is_that_of_the_first_version_which_trainings_go_on_with(monkeypatch, arrange, digest):
    monkeypatch.setattr("dataset.packing.AT_ONCE", 7)
    lengths = np.array([0, *range(2, 60), 0, *range(3, 40, 3)] * 2)
    rows = json.dumps(rows_of(arrange(lengths, CAPACITY, seed=5, epoch=2)))
    assert sha256(rows.encode()).hexdigest()[:12] == digest
