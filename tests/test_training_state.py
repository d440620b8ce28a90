"""What a training has consumed, and the proof that trainings which differ in a setting share the rest."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import signal
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from training_runs import after_step, data, init, pretrain, run_trainer, sft

from dataset.batch_settings import BatchSettings
from dataset.batches import Batch, BatchStream
from dataset.documents import documents_of
from dataset.token_store import TokenStore
from model.checkpoint import load_checkpoint
from trainer.placement import model_flops
from trainer.training_state import Ledger

STEPS = ("--max_steps", 4, "--save_every_steps", 2)


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_rows_and_targets_are_chained_digests_of_ids_and_labels_alone():
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[-100, 6, -100]])
    layouts = ([[0, 0, 0]], [[0, 1, 2]], [[-1, -1, -1]]), ([[0, 0, 1]], [[0, 1, 0]], [[0, 0, -1]])
    ledgers = []
    for layout in layouts:
        batch = Batch(ids, labels, *map(torch.tensor, layout))
        ledgers.append(Ledger("w").then(batch, 10).then(batch, 5))
    first = sha256(b"".join(n.to_bytes(8, "little") for n in (5, 6, 7))).hexdigest()[:16]
    chained = sha256(first.encode() + b"".join(n.to_bytes(8, "little") for n in (5, 6, 7)))
    assert ledgers[0] == ledgers[1]
    assert (ledgers[0].initial_weights, ledgers[0].rows) == ("w", chained.hexdigest()[:16])
    assert ledgers[0].flops == 15 and ledgers[0].targets != ledgers[0].rows


def test_masks_and_learning_rates_change_no_proof_of_fine_tuning_and_seeds_do(sft, tmp_path):
    arms = {
        "causal": ("--prompt_mask", "causal"),
        "prefix": ("--prompt_mask", "prefix"),
        "segment": ("--prompt_mask", "segment"),
        "slow": ("--optimizer.learning_rate", 1e-5),
        "last": ("--supervise", "last"),
        "seed": ("--seed", 1),
    }
    for name, flags in arms.items():
        sft(tmp_path / name, *STEPS, "--max_seq_len", 192, *flags)  # room for second answers
    proofs = {name: summary(tmp_path / name)["proof"] for name in arms}
    assert proofs["causal"] == proofs["prefix"] == proofs["segment"] == proofs["slow"]
    differing = {
        name: {key for key, digest in proofs[name].items() if digest != proofs["causal"][key]}
        for name in ("last", "seed")
    }
    assert differing == {"last": {"targets"}, "seed": {"rows", "targets"}}


def test_another_seed_of_pretraining_changes_weights_rows_and_targets(pretrain, tmp_path):
    for seed in (0, 1):
        pretrain(tmp_path / str(seed), *STEPS, "--seed", seed)
    one, two = (summary(tmp_path / str(seed))["proof"] for seed in (0, 1))
    assert all(one[key] != two[key] for key in ("initial_weights", "rows", "targets"))


def test_a_stopped_and_continued_training_has_the_sums_of_a_whole_one(pretrain, tmp_path):
    pretrain(tmp_path / "whole", *STEPS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        after_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(tmp_path / "stopped", *STEPS)
    half = summary(tmp_path / "stopped")
    pretrain(tmp_path / "stopped", *STEPS)
    whole, stopped = (summary(tmp_path / name) for name in ("whole", "stopped"))
    assert [whole[key] for key in ("proof", "flops")] == [stopped[key] for key in ("proof", "flops")]
    assert half["flops"] < whole["flops"] and half["proof"]["rows"] != whole["proof"]["rows"]


def test_the_summary_tells_arithmetic_speed_and_memory(pretrain, data, tmp_path):
    pretrain(tmp_path / "run", "--max_steps", 3)
    told, config = summary(tmp_path / "run"), load_checkpoint(tmp_path / "run").model.config
    stream = BatchStream(documents_of([TokenStore(data / "pretrain")], BatchSettings(48)))
    batches = [batch for _, batch in zip(range(3), stream.batches(0, 0, 4), strict=False)]
    assert told["flops"] == sum(model_flops(config, batch) for batch in batches)
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / told["seconds"], rel=0.01)
    assert told["memory_megabytes"] > 50


def test_a_training_that_an_earlier_version_began_goes_on_without_a_proof(pretrain, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        after_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(tmp_path, *STEPS)
    file = tmp_path / "checkpoints/step-00000002/training/progress.json"
    progress = json.loads(file.read_text())
    del progress["ledger"]
    file.write_text(json.dumps(progress))
    pretrain(tmp_path, *STEPS)
    assert summary(tmp_path)["finished"] and not summary(tmp_path).keys() & {"proof", "flops"}
