"""The loss on data that is not trained on."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import math

import numpy as np
import pytest
import torch
from training_runs import conversations, data, init, sentences

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.conversation import Rendered
from dataset.documents import documents_of
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from model.checkpoint import load_checkpoint
from tests.serving import small_tokenizer, write_lines
from trainer.validation import TextBytes, _question, measure


def test_a_question_that_no_header_begins_is_shown_from_its_first_token():
    tokenizer = small_tokenizer()
    ids = np.array([*tokenizer.encode("Hi\nthere"), tokenizer.im_end_id])
    assert _question(Rendered(ids, np.zeros(len(ids), np.uint8)), tokenizer) == "there"


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_the_likelihood_is_that_of_the_targets_and_their_text(data, init, kind):
    store, model = TokenStore(data / kind), load_checkpoint(init).model
    stream = BatchStream(documents_of([store], BatchSettings(max_seq_len=256, packing="none")))
    likelihood = measure(model, stream.batches(0, rows_per_step=4), TextBytes(store.tokenizer))

    nats = 0.0
    for batch in stream.batches(0, rows_per_step=1):
        log_probabilities = model(batch.ids, batch.layout)[0].log_softmax(-1)
        nats -= sum(
            log_probabilities[t - 1, label].item() for t, label in enumerate(batch.labels[0]) if label >= 0
        )
    answers = [m["content"] for c in conversations() for m in c["conversations"] if m["role"] == "assistant"]
    text = "".join(sentences() if kind == "pretrain" else answers)
    assert likelihood.text_bytes == len(text.encode())
    assert likelihood.targets == store.manifest["targets"]
    assert likelihood.nats == pytest.approx(nats, rel=1e-5)
    assert likelihood.nats_per_token == pytest.approx(nats / likelihood.targets, rel=1e-5)
    assert likelihood.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


CHATS = [
    [
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "reasoning_content": "Plus.", "content": "7\n"},
    ],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "<think>法国?\n"},
        {"role": "assistant", "content": "\n巴黎"},
        {"role": "user", "content": "user\nAnd?"},
        {"role": "assistant", "content": "A.", "reasoning_content": "\n x\n"},
    ],
    [
        {"role": "user", "content": "Call"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "a", "arguments": {}}] * 2},
        {"role": "tool", "content": "5\n"},
        {"role": "assistant", "content": "Now\n", "tool_calls": [{"name": "b", "arguments": {}}]},
    ],
]


@pytest.mark.parametrize("packing", ["pack", "none"])
@pytest.mark.parametrize("supervise", ["answers", "last", "all"])
def test_bytes_are_those_of_what_a_person_wrote_in_thoughts_calls_and_contents(tmp_path, supervise, packing):
    small_tokenizer().save(tmp_path / "tokenizer")
    data = write_lines(tmp_path / "chats.jsonl", *({"messages": chat} for chat in CHATS))
    write_store(PreparationSettings("sft", (data,), str(tmp_path / "tokenizer"), str(tmp_path / "store")))
    store = TokenStore(tmp_path / "store")
    stream = BatchStream(documents_of([store], BatchSettings(512, packing=packing, supervise=supervise)))
    calls = {"a": '{"name": "a", "arguments": {}}' * 2, "b": '{"name": "b", "arguments": {}}'}
    written = {  # by hand: answers but the last, last answers, what is asked
        "answers": ["\n巴黎", calls["a"]],
        "last": ["Plus.", "7\n", "A.", "\n x\n", "Now\n", calls["b"]],
        "all": ["3+4?", "Be brief.\n", "<think>法国?\n", "user\nAnd?", "Call", "5\n"],
    }
    wanted = {"answers": ("answers", "last"), "last": ("last",), "all": ("answers", "last", "all")}[supervise]
    text = "".join(each for part in wanted for each in written[part])
    sizes = TextBytes(store.tokenizer)
    assert sum(map(sizes.count, stream.batches(0, rows_per_step=2))) == len(text.encode())
    if supervise == "answers":
        assert store.manifest["target_bytes"] == len(text.encode())
