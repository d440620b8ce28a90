"""What real text must come out as: the public samples beside the project, skipped where they are absent."""

import json
from itertools import islice
from pathlib import Path

import pytest

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.conversation import Renderer, render
from dataset.documents import documents_of
from dataset.formats import parse_messages
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from dataset.tokenizer import train_tokenizer
from dataset.truncation import truncate
from tests.conftest import STRATEGIES, tiny_model
from trainer.validation import TextBytes, measure

SAMPLES = Path(__file__).parents[2] / "shared" / "data"
FILES = {
    "babi_train": 14_000,
    "pretrain_en": 3_712,
    "pretrain_zh": 10_903,
    "reading_en_dev": 3_809,
    "reading_zh_dev": 1_002,
    "reading_zh_train": 4_500,
    "sft_en": 9_674,
    "sft_zh": 12_347,
}
pytestmark = pytest.mark.skipif(
    not SAMPLES.exists(), reason="the public samples beside the project are absent"
)


def but_these_long(values, *long):
    return [pytest.param(each, marks=pytest.mark.long) if each in long else each for each in values]


def records(name):
    with open(SAMPLES / f"{name}.jsonl", encoding="utf-8") as file:
        yield from map(json.loads, file)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function from a sample's name to its whole store, made once."""
    folder = tmp_path_factory.mktemp("samples")
    texts = [
        json.dumps(record, ensure_ascii=False) for name in FILES for record in islice(records(name), 100)
    ]
    train_tokenizer(texts, 2000).save(folder / "tokenizer")

    def store_of(name):
        if not (folder / name).exists():
            kind = "pretrain" if name.startswith("pretrain") else "sft"
            data = (str(SAMPLES / f"{name}.jsonl"),)
            write_store(PreparationSettings(kind, data, str(folder / "tokenizer"), str(folder / name)))
        return TokenStore(folder / name)

    return store_of


def texts_and_answers(record):
    """All texts of a record and those that are learnt, found without the code under test."""
    if "text" in record:
        return [record["text"]], [record["text"]]
    if "conversations" in record:
        turns = record["conversations"]
        return [t["content"] for t in turns], [t["content"] for t in turns if t["role"] == "assistant"]
    answer = record["answers"][0]
    return [record["context"] + "\n\n" + record["question"], answer], [answer]


@pytest.mark.parametrize("name", but_these_long(FILES, *set(FILES) - {"reading_zh_dev", "reading_en_dev"}))
def test_the_counts_are_those_of_the_file(prepared, name):
    store = prepared(name)
    tokenizer, manifest = store.tokenizer, store.manifest
    num_bytes = target_bytes = number = num_blank = 0
    for number, record in enumerate(records(name), start=1):
        texts, answers = texts_and_answers(record)
        if not record.get("question", "?").strip():
            num_blank += 1
            continue
        num_bytes += sum(len(text.encode()) for text in texts)
        target_bytes += sum(len(text.encode()) for text in answers)
        if number % 50 == 0:
            document, learnt = store[number - 1 - num_blank], [tokenizer.encode(text) for text in answers]
            count = len(document) if "text" in record else sum(len(ids) + 1 for ids in learnt)
            assert document.targets.sum() == count
            assert all(text in tokenizer.decode(document.ids) for text in texts)
    assert manifest["records"] == number == FILES[name]
    assert manifest["documents"] == len(store) == number - num_blank
    assert manifest["rejects"] == ({"question is empty": num_blank} if num_blank else {})
    assert manifest["bytes"] == num_bytes and manifest["target_bytes"] == target_bytes
    assert manifest["tokens"] == store.lengths.sum() == sum(len(part.ids) for part in store.parts(10**6))


@pytest.mark.parametrize("name", ["sft_zh", "sft_en"])
def test_rendered_ids_equal_those_of_the_template(prepared, name):
    from transformers import AutoTokenizer

    tokenizer = prepared(name).tokenizer
    theirs = AutoTokenizer.from_pretrained(prepared(name).tokenizer_path)
    for record in islice(records(name), 0, None, 40):
        turns = record["conversations"]
        if all(turn["content"] == turn["content"].lstrip() for turn in turns):
            expected = theirs.apply_chat_template(turns, return_dict=True)["input_ids"]
            assert render(parse_messages(record), tokenizer).ids.tolist() == expected


def test_chats_fill_packed_rows(prepared):
    figures = BatchStream(documents_of([prepared("sft_zh")], BatchSettings(max_seq_len=512))).describe()
    assert figures["real_share"] >= 0.97 and figures["rows_without_target"] == 0
    assert figures["documents"] + figures["documents_left_out"] == FILES["sft_zh"]


@pytest.mark.parametrize(("limit", "least"), [(512, 990), (256, 950)])
def test_no_reading_record_is_kept_whose_answer_was_cut_out_of_its_context(prepared, limit, least):
    store = prepared("reading_zh_dev")
    tokenizer, renderer = store.tokenizer, Renderer(store.tokenizer)
    kept = 0
    asked = (record for record in records("reading_zh_dev") if record["question"].strip())
    for number, record in enumerate(asked):
        rendered, *lost = truncate(store[number], limit, renderer)
        if rendered is None:
            assert sum(lost) == 1
            continue
        kept, prompt = kept + 1, tokenizer.decode(rendered.ids[: rendered.targets.argmax()])
        before, question, _ = prompt.rpartition("\n\n" + record["question"])
        answer = record["answers"][0]
        assert question and len(rendered) <= limit and "\ufffd" not in prompt
        assert answer in before or answer not in record["context"]
    assert kept >= least


@pytest.fixture(scope="module")
def few_chats(prepared, tmp_path_factory):
    """The store of every two-hundredth chat."""
    folder = tmp_path_factory.mktemp("few")
    lines = (json.dumps(record) + "\n" for record in islice(records("sft_zh"), 0, None, 200))
    (folder / "few.jsonl").write_text("".join(lines))
    tokenizer = str(prepared("sft_zh").tokenizer_path)
    write_store(PreparationSettings("sft", (str(folder / "few.jsonl"),), tokenizer, str(folder / "store")))
    return TokenStore(folder / "store")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_packed_padded_and_single_rows_give_one_loss(few_chats, strategy):
    model = tiny_model(vocab_size=few_chats.tokenizer.vocab_size, max_position_embeddings=512)
    sizes = TextBytes(few_chats.tokenizer)
    losses = []
    for packing, rows in (("pack", 4), ("none", 8), ("none", 1)):
        settings = BatchSettings(max_seq_len=512, prompt_mask=strategy, packing=packing)
        losses.append(
            measure(
                model, BatchStream(documents_of([few_chats], settings)).batches(0, rows_per_step=rows), sizes
            )
        )
    assert len({(loss.targets, loss.text_bytes) for loss in losses}) == 1 and losses[0].targets > 3000
    for loss in losses[1:]:
        assert loss.nats_per_token == pytest.approx(losses[0].nats_per_token, rel=0, abs=1e-10)
