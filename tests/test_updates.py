"""One optimizer step of the loop beside the same step by autograd alone, and what tells weights apart."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

from dataclasses import replace

import pytest
import torch
from training_runs import data, init, sft
from two_processes import first_batch, prepare, settings_for

from dataset.tokenizer import Tokenizer
from model.checkpoint import load_checkpoint, save_checkpoint
from trainer.inputs import start_from
from trainer.settings import OptimizerSettings

LARGEST_NORM = 1e-3
"""far below that of any gradient here"""


def test_an_update_follows_the_clipped_gradient_of_the_mean_over_targets(data, init, tmp_path):
    limits = OptimizerSettings(name="adamw", max_gradient_norm=LARGEST_NORM)
    settings = settings_for(data, init, tmp_path / "run", batch_size=8, gradient_accumulation=1)
    training = prepare(replace(settings, optimizer=limits))
    batch, model = first_batch(training), load_checkpoint(init).model
    assert batch.num_real > 2 * batch.num_targets, "a mean over tokens would be another one"
    gradient_norm = training._update(batch)

    (model(batch.ids, batch.layout, batch.labels) / batch.num_targets).backward()
    norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters())
    assert gradient_norm == pytest.approx(float(norm), rel=1e-5)
    remembered = training.optimizers.state()
    for name, parameter in model.named_parameters():
        expected = (1 - limits.beta1) * parameter.grad * LARGEST_NORM / norm
        assert (remembered[f"exp_avg/{name}"] - expected).norm() <= 1e-5 * expected.norm(), name


def test_weights_have_the_same_fingerprint_exactly_where_they_are_equal(data, init, tmp_path):
    tokenizer, checkpoint = Tokenizer.load(data / "tokenizer"), load_checkpoint(init)
    tokenizer.save(tmp_path / "other")
    with torch.no_grad():
        checkpoint.model.model.norm.weight[0] += 1e-6
    save_checkpoint(tmp_path / "other", checkpoint.model, tokenizer.stop_ids)
    first, again, other = (
        start_from(str(path), None, tokenizer, 0).fingerprint for path in (init, init, tmp_path / "other")
    )
    assert first == again != other
