"""Prefix pretraining: seeded lengths, blocks, and loss on the rest, as designed."""

import numpy as np
import pytest
import torch

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.documents import documents_of, prefix_length
from model.loss import NO_TARGET
from tests.drawn_stores import drawn, stream_of, write


@pytest.mark.parametrize(
    ("prompt_mask", "packing"), [("prefix", "pack"), ("prefix", "none"), ("causal", "pack")]
)
def test_the_suffix_of_a_text_carries_loss_and_its_prefix_is_a_block(tmp_path, prompt_mask, packing):
    lengths = [20, 9, 14]
    stream = stream_of(
        tmp_path,
        lengths,
        "pretrain",
        max_seq_len=16,
        prompt_mask=prompt_mask,
        supervise="suffix",
        packing=packing,
    )
    first_id = np.cumsum([0, *lengths])
    for epoch in range(3):
        plan = stream.plan(epoch)
        for row, batch in enumerate(stream.batches(epoch)):
            begin = 0
            for number, (document, start, end) in enumerate(plan[row].tolist()):
                n = end - start
                prefix = prefix_length(n, 0, epoch, document, start)
                span = slice(begin, begin + n)
                ids = first_id[document] + np.arange(start, end)
                assert batch.ids[0, span].tolist() == ids.tolist()
                assert batch.labels[0, span].tolist() == [
                    token_id if t >= max(prefix, 1) else NO_TARGET for t, token_id in enumerate(ids.tolist())
                ]
                blocks = batch.block_ids[0, span]
                assert len(set(blocks[:prefix].tolist())) <= 1 and (blocks[prefix:] == -1).all()
                assert (blocks[:prefix] == -1).all() == (prompt_mask == "causal" or prefix == 0)
                assert (batch.document_ids[0, span] == number).all()
                begin += n


def test_texts_under_a_prefix_are_as_drawn(tmp_path):
    """Seed 22 draws prefixes of 2, 3 and 1 tokens; the two arms differ in the blocks and in nothing else."""
    drawings = {0: ("0 0 . .", ". . 2 3"), 4: ("0 0 0 . . .", ". . . 7 8 9"), 10: ("0 .", ". 11")}
    rows = {"max_seq_len": 16, "packing": "none", "seed": 22, "supervise": "suffix"}
    store = write(tmp_path, [4, 6, 2], "pretrain")
    prefix, causal = (
        BatchStream(documents_of([store], BatchSettings(prompt_mask=mask, **rows)))
        for mask in ("prefix", "causal")
    )
    for one, other in zip(prefix.batches(0), causal.batches(0), strict=True):
        blocks, labels = drawings.pop(int(one.ids[0, 0]))
        assert (drawn(one.block_ids[0], -1), drawn(one.labels[0], NO_TARGET)) == (blocks, labels)
        assert (other.block_ids == -1).all()
        assert all(torch.equal(*pair) for pair in zip(one[:4], other[:4], strict=True))
    assert not drawings


def test_prefix_lengths_stay_what_they_were_when_a_training_began():
    assert [prefix_length(16, 0, 0, document, 0) for document in range(6)] == [15, 0, 13, 14, 10, 4]
    assert [prefix_length(16, 7, epoch, 3, 32) for epoch in range(4)] == [12, 13, 12, 6]


@pytest.mark.parametrize("packing", ["pack", "best_fit", "none"])
def test_every_fragment_of_two_or_more_tokens_keeps_a_target(tmp_path, packing):
    lengths = [2] * 20 + [3] * 20 + [17] * 20 + [40]
    stream = stream_of(tmp_path, lengths, "pretrain", max_seq_len=16, prompt_mask="prefix", packing=packing)
    for row in range(len(stream.plan(0))):
        for piece in stream.pieces(0, row):
            assert piece.supervised.any() == (len(piece.ids) > 1)


def test_prefix_lengths_are_uniform_and_repeatable():
    lengths = np.array([prefix_length(5, 0, 0, document, 0) for document in range(5000)])
    assert set(lengths.tolist()) == set(range(5))
    assert np.bincount(lengths).min() > 900  # 1000 expected, standard deviation 28
    base = (64, 1, 2, 3, 4)
    assert prefix_length(*base) == prefix_length(*base)
    others = [prefix_length(64, *key) for key in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0))]
    assert len({prefix_length(*base), *others}) > 3
