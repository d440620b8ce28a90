import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream, check_labels, collate
from dataset.conversation import ROLES, Message, Rendered, Renderer
from dataset.documents import Piece, documents_of
from dataset.preparation import PreparationSettings, write_store
from dataset.prompts import prompt_of
from dataset.token_store import Part, StoreWriter, TokenStore
from model.errors import UserError
from model.layouts import prompt_blocks
from model.loss import NO_TARGET
from model.masks import visible_mask
from tests.conftest import STRATEGIES, turns
from tests.drawn_stores import TOKENIZER, codes_of, drawn, stream_of, write

# A chat of two turns and one of one turn, packed into a row of 16 and padded:
TWO_DOCUMENTS = ["SsUuaaUuaan", "Uuan"]
# tokens      S s U u a a U u a a n  U u a n  _
BLOCKS = {
    "causal": ". . . . . . . . . . .  . . . .  .",
    "prefix": "0 0 0 0 . . . . . . .  1 1 . .  .",
    "segment": "0 0 1 1 . . 2 2 . . .  3 3 . .  .",
    "history": "0 0 0 0 0 0 0 0 . . .  1 1 . .  .",
}
LABELS = {
    "answers": ". . . . 4 5 . . 8 9 .  . . 13 .  .",
    "last": ". . . . . . . . 8 9 .  . . 13 .  .",
    "all": ". 1 2 3 4 5 6 7 8 9 10  . 12 13 14  .",
}


@pytest.mark.parametrize(
    ("prompt_mask", "supervise", "labels"),
    [
        ("causal", None, "answers"),
        ("causal", "last", "last"),
        ("causal", "all", "all"),
        ("prefix", None, "answers"),
        ("prefix", "last", "last"),
        ("segment", None, "answers"),
        ("segment", "last", "last"),
        ("history", None, "last"),
        ("history", "last", "last"),
    ],
)
def test_a_packed_row_of_two_chats_is_as_drawn(tmp_path, prompt_mask, supervise, labels):
    stream = stream_of(tmp_path, TWO_DOCUMENTS, max_seq_len=16, prompt_mask=prompt_mask, supervise=supervise)
    (batch,) = stream.batches(epoch=0)
    assert batch.ids[0].tolist() == [*range(15), TOKENIZER.pad_id]
    assert drawn(batch.document_ids[0], -1) == "0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 ."
    assert batch.position_ids[0].tolist() == [*range(11), *range(4), 0]
    assert drawn(batch.block_ids[0], -1) == " ".join(BLOCKS[prompt_mask].split())
    assert drawn(batch.labels[0], NO_TARGET) == " ".join(LABELS[labels].split())
    assert all(field.dtype == torch.int64 and field.shape == (1, 16) for field in batch.tensors)
    assert (batch.num_real, batch.num_targets) == (15, len(LABELS[labels].replace(".", "").split()))


@pytest.mark.parametrize("prompt_mask", STRATEGIES)
def test_a_chat_has_the_blocks_of_its_messages_in_a_packed_row_and_as_a_prompt(tmp_path, prompt_mask):
    (batch,) = stream_of(tmp_path, TWO_DOCUMENTS, max_seq_len=16, prompt_mask=prompt_mask).batches(epoch=0)
    first, second = (prompt_blocks(prompt_mask, *turns(chat)) for chat in TWO_DOCUMENTS)
    second[second >= 0] += first.max() + 1
    assert batch.block_ids[0].tolist() == [*first.tolist(), *second.tolist(), -1]
    asked = prompt_of(Rendered(np.arange(8), codes_of("SsUuaaUu")), prompt_mask)
    assert batch.block_ids[0, :8].tolist() == [*asked.block_ids]


@pytest.mark.parametrize("prompt_mask", BLOCKS)
def test_documents_that_are_not_isolated_see_those_before_them_and_keep_blocks_and_labels(
    tmp_path, prompt_mask
):
    ways = {"max_seq_len": 16, "prompt_mask": prompt_mask}
    (isolated,) = stream_of(tmp_path / "0", TWO_DOCUMENTS, **ways).batches(epoch=0)
    (joined,) = stream_of(tmp_path / "1", TWO_DOCUMENTS, **ways, isolate_documents=False).batches(epoch=0)
    assert drawn(joined.document_ids[0], -1) == "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 ."
    assert joined.position_ids[0].tolist() == [*range(15), 0]
    for name in ("ids", "labels", "block_ids"):
        assert torch.equal(getattr(joined, name), getattr(isolated, name)), name
    assert joined.labels[0, 11] == NO_TARGET
    inside, mask = (visible_mask(batch.layout)[0] for batch in (isolated, joined))
    assert torch.equal(mask[:11, :11], inside[:11, :11])
    assert mask[11:15, :11].all() and torch.equal(mask[11:, 11:], inside[11:, 11:])
    assert not mask[:11, 11:].any() and mask[15].tolist() == [False] * 15 + [True]


def test_documents_with_a_row_each_cannot_be_joined():
    with pytest.raises(UserError, match="isolate_documents false changes nothing of packing none"):
        BatchSettings(packing="none", isolate_documents=False)


@pytest.mark.parametrize("prompt_mask", BLOCKS)
def test_an_answer_without_loss_changes_no_block_and_has_no_label(tmp_path, prompt_mask):
    stream = stream_of(tmp_path, ["SsUuxxUuaan", "Uuan"], max_seq_len=16, prompt_mask=prompt_mask)
    (batch,) = stream.batches(epoch=0)
    assert drawn(batch.block_ids[0], -1) == " ".join(BLOCKS[prompt_mask].split())
    assert drawn(batch.labels[0], NO_TARGET) == ". . . . . . . . 8 9 . . . 13 . ."
    assert stream.describe()["targets"] == batch.num_targets == 3


def test_without_packing_each_chat_has_a_row_as_long_as_the_longest_of_its_batch(tmp_path):
    documents = ["Uan", "Uuan", "Uuuan", "Uuuuan"]
    stream = stream_of(tmp_path, documents, max_seq_len=16, packing="none", prompt_mask="prefix")
    batches = list(stream.batches(epoch=0, rows_per_step=2))
    for batch in batches:
        lengths = (batch.document_ids >= 0).sum(1)
        assert batch.ids.shape[1] == lengths.max()
        assert (batch.position_ids == (torch.arange(lengths.max()) * (batch.document_ids >= 0))).all()
        assert ((batch.block_ids == 0).sum(1) == lengths - 2).all()
    assert sorted(n for batch in batches for n in (batch.document_ids >= 0).sum(1).tolist()) == [3, 4, 5, 6]


def test_text_is_all_target_but_for_the_first_token_of_each_fragment(tmp_path):
    stream = stream_of(tmp_path, [20, 9, 14], kind="pretrain", max_seq_len=16)
    seen = []
    for batch in stream.batches(epoch=0):
        first = batch.position_ids == 0
        assert ((batch.labels == batch.ids) == ~first).all() and (batch.labels[first] == NO_TARGET).all()
        assert (batch.block_ids == -1).all()
        seen += batch.ids[batch.document_ids >= 0].tolist()
    assert sorted(seen) == list(range(43))


@pytest.mark.parametrize("packing", ["pack", "best_fit", "none"])
@pytest.mark.parametrize("lengths", [[17], [17, 33, 5, 16, 40], [3, 9], [16, 32, 17, 1]])
def test_every_token_of_a_text_carries_loss_or_is_counted_as_first_of_its_text_or_after_a_cut(
    tmp_path, lengths, packing
):
    stream = stream_of(tmp_path, lengths, kind="pretrain", max_seq_len=16, packing=packing)
    targets = sum(batch.num_targets for batch in stream.batches(epoch=0))
    told = stream.describe()["tokens_after_cuts"]
    assert targets + told + len(lengths) == sum(lengths)
    if packing != "pack":
        assert told == sum((length - 1) // 16 for length in lengths)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 16), min_size=1, max_size=25),
    world=st.sampled_from([1, 2, 3]),
    world_after=st.sampled_from([1, 2, 3]),
    packing=st.sampled_from(["pack", "none"]),
    data=st.data(),
)
def test_an_epoch_delivers_each_document_once_for_any_processes_and_after_a_restart(
    lengths, world, world_after, packing, data
):
    documents = ["U" + "u" * (n - 3) + "an" for n in lengths]
    with TemporaryDirectory() as folder:
        stream = stream_of(folder, documents, max_seq_len=16, packing=packing)
    steps_before = data.draw(st.integers(0, len(stream.plan(0)) // (2 * world)))
    restart = steps_before * 2 * world
    ids = []
    for rank in range(world):
        steps = list(stream.batches(1, 0, rows_per_step=2 * world, rank=rank, world=world))
        ids += [
            token_id
            for batch in steps[:steps_before]
            for token_id in batch.ids[batch.document_ids >= 0].tolist()
        ]
    for rank in range(world_after):
        steps = list(stream.batches(1, restart, rows_per_step=world_after, rank=rank, world=world_after))
        assert len(steps) == -(-(len(stream.plan(0)) - restart) // world_after)
        ids += [token_id for batch in steps for token_id in batch.ids[batch.document_ids >= 0].tolist()]
    assert sorted(ids) == list(range(sum(lengths)))


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1), min_size=1),
    packing=st.sampled_from(["pack", "none"]),
    supervise=st.sampled_from(["answers", "last", "all"]),
)
def test_each_conversation_is_in_an_epoch_once_or_is_counted_as_left_out(rounds, packing, supervise):
    """Each answer of one that is left out is counted by its reason."""
    renderer, letters = Renderer(TOKENIZER), "法国" * 30
    documents = [
        renderer.render(
            [Message(r, letters[:n]) for pair in each for r, n in zip(ROLES[1:3], pair, strict=True)]
        )
        for each in rounds
    ]
    with TemporaryDirectory() as folder:
        writer = StoreWriter(Path(folder), "sft", TOKENIZER)
        for document in documents:
            writer.append(Part(document.ids, document.codes, np.array([len(document)], np.uint32)))
        writer.finish({})
        choice = BatchSettings(max_seq_len=40, packing=packing, supervise=supervise)
        try:
            stream = BatchStream(documents_of([TokenStore(folder)], choice))
        except UserError:
            return  # no answer fits
    pieces = [piece for row in range(len(stream.plan(0))) for piece in stream.pieces(0, row)]
    seen, figures = [piece.document for piece in pieces], stream.describe()
    assert len(seen) == len(set(seen)) == figures["documents"] and all(p.supervised.any() for p in pieces)
    left_out = set(range(len(documents))) - set(seen)
    assert len(left_out) == figures["documents_left_out"]
    lost = figures["answers_too_long"] + figures["answers_cut_out"]
    assert sum(len(rounds[n]) for n in left_out) <= lost
    if supervise == "answers":
        begun = (np.diff(piece.supervised.astype(int), prepend=0) > 0 for piece in pieces)
        lost += figures["answers_of_oldest_rounds"]
        assert sum(int(each.sum()) for each in begun) + lost == sum(map(len, rounds))


def test_a_short_last_step_is_filled_with_padding(tmp_path):
    stream = stream_of(tmp_path, ["U" + "u" * 13 + "an"] * 3, max_seq_len=16)
    ranks = [list(stream.batches(0, rows_per_step=4, rank=rank, world=2)) for rank in range(2)]
    padding = ranks[1][0]
    assert [len(steps) for steps in ranks] == [1, 1]
    assert padding.ids.shape == (2, 16) and padding.num_real == 16
    assert (padding.ids[1] == TOKENIZER.pad_id).all() and (padding.labels[1] == NO_TARGET).all()
    assert (padding.document_ids[1] == -1).all() and (padding.block_ids[1] == -1).all()
    with pytest.raises(UserError, match="3 rows a step cannot be shared out to 2"):
        next(stream.batches(0, rows_per_step=3, world=2))


def test_all_ranks_pad_to_the_same_length(tmp_path):
    stream = stream_of(tmp_path, ["Uan", "Uuuuuuan"], max_seq_len=16, packing="none")
    shapes = {next(stream.batches(0, rows_per_step=2, rank=rank, world=2)).ids.shape for rank in range(2)}
    assert shapes == {(1, 8)}


def test_several_stores_are_read_as_one(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    stores = [write(tmp_path / "a", ["Uan", "Uuan"]), write(tmp_path / "b", ["Uuuan"])]
    stream = BatchStream(documents_of(stores, BatchSettings(max_seq_len=16, packing="none")))
    rows = [stream.pieces(0, row) for row in range(len(stream.plan(0)))]
    assert sorted((piece.document, len(piece.ids)) for (piece,) in rows) == [(0, 3), (1, 4), (2, 5)]


def test_more_pieces_of_documents_than_a_plan_has_numbers_for_are_refused(tmp_path, monkeypatch):
    stream = stream_of(tmp_path, TWO_DOCUMENTS, max_seq_len=16)
    monkeypatch.setattr("dataset.documents.MOST_PIECES", 2)
    assert len(stream.plan(0)) == 1
    monkeypatch.setattr("dataset.documents.MOST_PIECES", 1)
    with pytest.raises(UserError, match="at most 1 pieces of documents, got 2"):
        stream.plan(1)


def test_long_chats_are_shortened_and_hopeless_ones_counted(tmp_path):
    record = {"context": "法", "question": "国", "answers": ["x" * 100]}
    long_prompt = {"context": "法国" * 30, "question": "Q", "answers": ["Paris"]}
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in (record, long_prompt)))
    TOKENIZER.save(tmp_path / "tokenizer")
    write_store(
        PreparationSettings("sft", (str(data),), str(tmp_path / "tokenizer"), str(tmp_path / "store"))
    )
    stream = BatchStream(documents_of([TokenStore(tmp_path / "store")], BatchSettings(max_seq_len=40)))
    (batch,) = stream.batches(epoch=0)
    assert 38 <= batch.num_real <= 40  # whole characters
    assert TOKENIZER.decode(batch.labels[batch.labels >= 0].tolist()) == "Paris<|im_end|>"
    figures = stream.describe()
    assert (figures["answers_too_long"], figures["documents_shortened"]) == (1, 1)
    assert (figures["documents"], figures["documents_left_out"]) == (1, 1)


def test_nothing_that_fits_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no answer fits into 16 tokens"):
        stream_of(tmp_path, ["U" + "a" * 20 + "n"], max_seq_len=16)


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize(
    ("kind", "prompt_mask", "supervise"),
    [
        ("sft", "causal", "answers"),
        ("sft", "history", "last"),
        ("sft", "causal", "all"),
        ("pretrain", "prefix", None),
    ],
)
def test_the_figures_are_those_of_the_batches(tmp_path, packing, kind, prompt_mask, supervise):
    documents = ["SUuaaUuaan", "Uaan", "UuaaTtan"] * 3 if kind == "sft" else [20, 9, 14, 3]
    choice = {"prompt_mask": prompt_mask, "supervise": supervise, "packing": packing}
    stream = stream_of(tmp_path, documents, kind, max_seq_len=16, **choice)
    figures, batches = stream.describe(rows_per_step=2), list(stream.batches(0, rows_per_step=2))
    rows = [(batch.labels[row], batch.document_ids[row]) for batch in batches for row in range(2)]
    rows = [(labels, documents) for labels, documents in rows if (documents >= 0).any()]
    positions = sum(len(labels) for labels, _ in rows)
    assert figures["rows"] == len(rows)
    assert figures["tokens"] == sum(batch.num_real for batch in batches)
    assert figures["targets"] == sum(batch.num_targets for batch in batches)
    assert figures["real_share"] == pytest.approx(figures["tokens"] / positions)
    assert figures["target_share"] == pytest.approx(figures["targets"] / positions)
    assert figures["rows_without_target"] == sum((labels == NO_TARGET).all() for labels, _ in rows) == 0


def piece(supervised, blocks):
    ids, blocks = np.arange(len(blocks)), np.array(blocks, dtype=np.int16)
    return Piece(0, ids, np.zeros(len(ids), dtype=np.uint8), np.array(supervised, dtype=bool), blocks)


def test_a_label_inside_a_block_is_dropped_but_not_the_first_after_it():
    batch = collate([[piece([0, 1, 1, 1, 1], [0, 0, 0, -1, -1]), piece([0, 1, 1], [-1, 0, 1])]], 9, pad_id=3)
    assert drawn(batch.labels[0], NO_TARGET) == ". . . 3 4 . 1 2 ."
    assert batch.block_ids[0].tolist() == [0, 0, 0, -1, -1, -1, 1, 2, -1]


def test_a_torn_block_raises():
    with pytest.raises(ValueError, match="not one contiguous run"):
        collate([[piece([0, 0, 0, 1], [0, -1, 0, -1])]], 4, pad_id=3)


def test_labels_that_could_be_read_raise():
    batch = collate([[piece([0, 0, 1], [0, 0, -1])]], 4, pad_id=3)
    for position in (0, 1, 3):
        wrong = batch._replace(labels=batch.labels.clone())
        wrong.labels[0, position] = 1
        with pytest.raises(ValueError, match=f"position {position} could be read"):
            check_labels(wrong)
    with pytest.raises(ValueError, match="position 0"):
        collate([[piece([1, 1], [-1, -1])]], 2, pad_id=3)


@pytest.mark.parametrize(
    ("kind", "prompt_mask", "supervise"),
    [
        ("sft", "history", "answers"),
        ("sft", "prefix", "all"),
        ("sft", "segment", "all"),
        ("sft", "causal", "suffix"),
        ("pretrain", "history", None),
        ("pretrain", "segment", None),
        ("pretrain", "prefix", "all"),
        ("pretrain", "causal", "answers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind, prompt_mask, supervise):
    with pytest.raises(UserError, match="prompt_mask"):
        BatchSettings(prompt_mask=prompt_mask, supervise=supervise).resolved(kind)


def test_best_fit_is_for_texts(tmp_path):
    with pytest.raises(UserError, match="best_fit is for texts"):
        BatchSettings(packing="best_fit").resolved("sft")
    stream = stream_of(tmp_path, [20, 9, 14, 3], "pretrain", max_seq_len=16, packing="best_fit")
    batches = list(stream.batches(epoch=0, rows_per_step=2))
    assert all(batch.ids.shape == (2, 16) for batch in batches)
    seen = [i for batch in batches for i in batch.ids[batch.document_ids >= 0].tolist()]
    assert sorted(seen) == list(range(46))


def test_a_row_too_short_for_a_chat_is_refused():
    with pytest.raises(UserError, match="at least 16 tokens, got 8"):
        BatchSettings(max_seq_len=8)


def test_help_does_not_import_torch():
    code = """
import sys
from scripts import prepare_data, train_tokenizer
for module in (prepare_data, train_tokenizer):
    sys.argv = ["x", "--help"]
    try:
        module.main()
    except SystemExit as exit_:
        assert exit_.code == 0
heavy = {"torch", "transformers", "datasets", "accelerate", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
