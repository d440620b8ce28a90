"""Pairs of a chosen and a rejected answer: how they are read, stored, and laid into rows."""

import json

import numpy as np
import pytest
from drawn_stores import drawn, stream_of

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.chat_form import Message
from dataset.documents import documents_of
from dataset.formats import format_of, parse_messages
from dataset.messages import LeftOutError, RecordError
from dataset.preferences import parse_pair
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from dataset.tokenizer import train_tokenizer
from dataset.unread_keys import unread_keys
from model.errors import UserError
from model.loss import NO_TARGET
from model.masks import visible_mask

TOKENIZER = train_tokenizer(["a\nb"], 300)  # nearly every byte is a token
ASKED, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Green."))
)
PROMPT = Message("user", "Sky?")
PAIR = ([PROMPT, Message("assistant", "Blue.")], [PROMPT, Message("assistant", "Green.")])
FORMS = [
    {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {
        "prompt": "Sky?",
        "chosen": [ASKED, GOOD],
        "rejected": [ASKED, BAD],
        "score_chosen": 8,
        "score_rejected": 2,
    },
    {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    {"chosen": "Sky? Blue.", "rejected": "Sky? Green."},
    {"chosen": "Sky?\nBlue.", "rejected": "Sky?\nGreen."},
    {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."},
    {
        "conversations": [{"from": "human", "value": "Sky?"}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Green."},
    },
    {"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."},
    {"messages": [ASKED, GOOD], "rejected_response": "Green.", "score_rejected": 0.0},
    {"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD], "chosen": None, "rejected": None},
    {"messages": [ASKED, GOOD], "rejected_messages": [BAD]},
    {"prompt": "Sky?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_rejected": 1},
    {"prompt": "\n\nHuman: Sky?\n\nAssistant:", "chosen": " Blue.", "rejected": " Green."},
    {"prompt": json.dumps([ASKED]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
    {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD], sort_keys=True)},
]


@pytest.mark.parametrize("record", FORMS)
def test_pairs_are_read_as_people_write_them(record):
    assert parse_pair(record) == PAIR and parse_messages(record, preference="chosen") == PAIR[0]
    assert not {key for key in unread_keys(record, "preference") if "score" not in key}


def test_answers_before_a_pair_parts_carry_no_loss_and_those_after_it_do():
    before, more = [ASKED, GOOD], [ASKED, BAD]
    good, bad = parse_pair({"prompt": [*before, ASKED], "chosen": [GOOD, *more], "rejected": [BAD]})
    assert [message.is_trained for message in good if message.role == "assistant"] == [False, True, True]
    assert [message.is_trained for message in bad if message.role == "assistant"] == [False, True]


def test_flags_of_loss_beside_a_pair_and_in_what_its_sides_share_are_heard():
    for side in parse_pair(FORMS[0] | {"train": False}):
        assert not any(message.is_trained for message in side if message.role == "assistant")
    sides = [[ASKED, GOOD | flag, ASKED, answer] for flag, answer in (({"weight": 0}, GOOD), ({}, BAD))]
    for side in parse_pair(dict(zip(("chosen", "rejected"), sides, strict=True))):
        assert [message.is_trained for message in side if message.role == "assistant"] == [False, True]


@pytest.mark.parametrize(
    "record, error, reason",
    [
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."}, LeftOutError, "neither answer"),
        (FORMS[2] | {"score_rejected": 8}, LeftOutError, "neither answer of a pair is better"),
        (
            {"chosen": [ASKED, GOOD], "rejected": [ASKED | {"content": "Sea?"}, BAD]},
            RecordError,
            "same prompt",
        ),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED]}, RecordError, "no answer"),
        ({"prompt": "Sky?", "completion": "Blue.", "label": True}, RecordError, "no pair of answers"),
        (
            {"prompt": "Sky?", "chosen": "Blue.", "rejected": None},
            RecordError,
            "chosen without rejected; exp",
        ),
        ({"messages": [ASKED, GOOD], "chosen": None, "rejected": "x"}, RecordError, "rejected without cho"),
        (
            {"messages": [ASKED, GOOD], "rejected_messages": [ASKED | {"content": "Sea?"}, BAD]},
            RecordError,
            "same prompt",
        ),
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": " "}, RecordError, "rejected is empty"),
        ({"chosen": "Blue.", "rejected": "Black."}, RecordError, "no prompt"),
        (
            {"chosen": repr([ASKED, GOOD]), "rejected": repr([ASKED, BAD])},
            RecordError,
            "are not JSON; .* cho",
        ),
        ({"chosen": "It is so.", "rejected": "It is not.", "asked": "Is it?"}, RecordError, "no prompt"),
    ],
)
def test_what_is_no_pair_says_why(record, error, reason):
    with pytest.raises(RecordError, match=reason) as caught:
        parse_pair(record)
    assert type(caught.value) is error


def test_both_chats_of_ms_swift_share_system_message_and_tools_that_stand_beside_them():
    record = {"system": "Be brief.", "tools": [{"name": "look"}], "rejected_tools": [{"name": "look"}]}
    record |= {"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}
    good, bad = parse_pair(record)
    assert good[:-1] == bad[:-1] and good[0].content == "Be brief." and len(good[0].tools) == 1
    assert unread_keys(record, format_of(record)) == set()
    assert unread_keys(record | {"rejected_tools": [{"name": "go"}]}, "preference") == {"rejected_tools"}
    assert parse_messages(record, preference="chosen") == good


@pytest.mark.parametrize("half, other", [("chosen", "rejected"), ("rejected", "chosen")])
def test_half_a_pair_is_no_chat_and_is_told_as_half_a_pair(half, other):
    with pytest.raises(RecordError, match=f"{half} without {other}; expected two answers to one prompt"):
        parse_messages({"prompt": "Sky?", half: "Blue.", other: None})


@pytest.fixture
def prepare(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")

    def prepare(*records, **settings):
        file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        places = ((str(file),), str(tmp_path / "tokenizer"), str(out))
        return write_store(PreparationSettings("preference", *places, num_workers=1, **settings))[0]

    return prepare


def test_kept_and_rejected_pairs_are_the_lines_of_a_file(prepare, tmp_path):
    tie = FORMS[0] | {"rejected": [GOOD]}
    other = FORMS[0] | {"prompt": [ASKED | {"content": "And the sea?"}]}
    manifest = prepare(FORMS[0], tie, {"prompt": 3}, other, max_reject_fraction=0.5)
    assert manifest["documents"] / 2 + sum(manifest["rejects"].values()) == manifest["records"] == 4
    assert manifest["rejects"]["neither answer of a pair is better"] == 1
    store = TokenStore(tmp_path / "out")
    said = [TOKENIZER.decode(each.ids[each.trained]).removesuffix("<|im_end|>") for each in store]
    assert said == ["Blue.", "Green."] * 2
    with pytest.raises(UserError, match="preference chosen changes nothing of preference data"):
        prepare(FORMS[0], preference="chosen")


def test_a_pair_is_kept_apart_or_stored_twice_as_one(prepare, tmp_path):
    records = [FORMS[0] | {"prompt": [ASKED | {"content": f"Sky {n}?"}]} for n in range(40)]
    prepare(*records, validation_fraction=0.4, weights=(2.0,))
    for folder, copies in (("out", 2), ("out/validation", 1)):
        said = [TOKENIZER.decode(each.ids) for each in TokenStore(tmp_path / folder)]
        asked = [text.partition("Blue.")[0].partition("Green.")[0] for text in said]
        assert 2 * copies < len(asked) < 160 and asked[::2] == asked[1::2]
        assert all(asked.count(text) == 2 * copies for text in asked)


def test_a_store_of_half_a_pair_is_damaged(tmp_path):
    with pytest.raises(UserError, match="is damaged"):
        stream_of(tmp_path, ["Uuaan", "Uuan", "Uuan"], "preference")


def test_the_question_of_a_pair_is_no_target(tmp_path):
    with pytest.raises(UserError, match="supervise all .* on preference data; choose answers or last"):
        stream_of(tmp_path, ["Uuaan", "Uuan"], "preference", max_seq_len=18, supervise="all")


def test_both_sides_of_a_pair_lie_in_one_row_and_do_not_see_each_other(tmp_path):
    pairs = ["SsUuaan", "SsUuan", "Uuxn" + "Uuan", "Uuxn" + "Uuaan"]
    stream = stream_of(tmp_path, pairs, "preference", max_seq_len=18, prompt_mask="prefix")
    rows = {int(batch.ids[0, 0]): batch for batch in stream.batches(0)}
    assert drawn(rows[0].document_ids[0], -1) == "0 0 0 0 0 0 0 1 1 1 1 1 1 . . . . ."
    assert drawn(rows[0].block_ids[0], -1) == "0 0 0 0 . . . 1 1 1 1 . . . . . . ."
    assert drawn(rows[0].labels[0], NO_TARGET) == ". . . . 4 5 . . . . . 11 . . . . . ."
    assert drawn(rows[13].labels[0], NO_TARGET) == ". . . . . . 19 . . . . . . . 27 28 . ."
    mask = visible_mask(rows[0].layout)[0]
    assert not mask[7:13, :7].any() and not mask[:7, 7:13].any()
    figures = stream.describe()
    assert (figures["documents"], figures["rows"], figures["tokens"]) == (2, 2, 13 + 17)


@pytest.mark.parametrize("longer", [0, 1])
def test_a_pair_that_is_too_long_keeps_one_prompt_and_both_answers_or_goes(prepare, tmp_path, longer):
    long = {"prompt": "abcdefghijklmnopqrstuvwxyz" * 2, "chosen": "ja", "rejected": "nay"}
    long |= {("chosen", "rejected")[longer]: "well, well, well"}
    short = {"prompt": "a", "chosen": "b", "rejected": "c"}
    prepare(long, short)

    def rows(limit):
        stream = BatchStream(documents_of([TokenStore(tmp_path / "out")], BatchSettings(max_seq_len=limit)))
        pieces = [piece for row in range(len(stream.plan(0))) for piece in stream.pieces(0, row)]
        return {p.document: (p.ids, p.ids[p.supervised]) for p in pieces}, stream.describe()

    whole, num_kept, num_cut = rows(400)[0], 0, 0
    size = len(whole[0][0]) + len(whole[1][0])
    for limit in range(48, size + 1, 6):
        left, figures = rows(limit)
        assert {2, 3} <= left.keys() and figures["documents"] == 1 + (0 in left)
        assert figures["answers_too_long"] == figures["documents_left_out"] == (0 not in left)
        if 0 in left:
            (good, good_answer), (bad, bad_answer) = left[0], left[1]
            assert np.array_equal(good_answer, whole[0][1]) and np.array_equal(bad_answer, whole[1][1])
            texts = [TOKENIZER.decode(ids) for ids in (good, bad)]
            prompts = [text.partition("<|im_start|>assistant")[0] for text in texts]
            assert prompts[0] == prompts[1] and "z<|im_end|>" in prompts[0]
            assert min(limit, size) - 8 <= len(good) + len(bad) <= limit
            num_kept, num_cut = num_kept + 1, num_cut + ("…" in prompts[0])
            assert figures["documents_shortened"] == (len(good) + len(bad) < size)
    assert num_kept > num_cut > 5
