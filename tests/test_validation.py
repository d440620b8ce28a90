"""The loss on data that is not trained on."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import math

import pytest
import torch
from training_runs import conversations, data, init, sentences

from dataset.batches import BatchStream
from dataset.settings import BatchSettings
from dataset.token_store import TokenStore
from model.checkpoint import load_checkpoint
from trainer.validation import bytes_of_tokens, measure


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_the_likelihood_is_that_of_the_targets_and_their_text(data, init, kind):
    store, model = TokenStore(data / kind), load_checkpoint(init).model
    stream = BatchStream([store], BatchSettings(max_seq_len=256, packing="none"))
    likelihood = measure(model, stream.batches(0, rows_per_step=4), bytes_of_tokens(store.tokenizer))

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
