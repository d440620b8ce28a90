"""What a step of a training minimises: a sum over terms, which the loop divides by their number in the step.

Cross-entropy has a term for each target; the loss of preferences one for each pair of answers.
"""

from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dataset.batches import Batch
from model.layers import soft_cap
from model.loss import MOST_STATES, NO_TARGET
from model.masks import Layout
from model.transformer import LanguageModel
from trainer.device import Device
from trainer.placement import compute_in, distribute
from trainer.settings import DpoSettings, TrainSettings

LOGITS_AT_ONCE = 2**24


class CrossEntropy:
    """The nats of all targets."""

    is_of_text = True
    """whether its terms are targets, which stand for text"""

    def count(self, batch: Batch) -> int:
        """Return how many terms the loss of a batch has."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch, summed over its terms, and then what else is to be summed, (1 + k,)."""
        return model(batch.ids, batch.layout, batch.labels)[None]


class Preference:
    """How little a model prefers good answers to bad ones, compared to what it was (DPO).

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7; smoothed labels as in Mitchell 2023, "A note on DPO
    with noisy preferences". A reward is `beta` times the log-ratio of an answer to the first model, which is
    kept, frozen. Rows hold both answers of their pairs (`dataset/documents.py`), so that any split of a step
    into rows has the same terms.
    """

    is_of_text = False

    def __init__(self, model: LanguageModel, settings: DpoSettings, device: Device) -> None:
        """Keep a model as it is before it is placed and trains; from here on it tells each target's nats."""
        self._beta, self._smoothing = settings.beta, settings.label_smoothing
        reference = deepcopy(model).requires_grad_(False).eval()
        for each in (model, reference):
            each.forward = partial(nats_of_targets, each)
        kind = device.accelerator.device
        compute_in(device.dtype, reference, kind)
        is_whole = device.sharding is None
        self._reference = (
            reference.to(kind) if is_whole else distribute(reference, device.accelerator, device.sharding)
        )

    def count(self, batch: Batch) -> int:
        """Return how many pairs a batch has."""
        return int((batch.document_ids.amax(dim=1) + 1).sum()) // 2

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch, the rewards of good and of bad answers, and how many good ones win."""
        with torch.no_grad():
            before = log_likelihoods(self._reference, batch)
        rewards = self._beta * (log_likelihoods(model, batch) - before)  # (P, 2)
        margins = rewards[:, 0] - rewards[:, 1]
        right, wrong = F.logsigmoid(margins).sum(), F.logsigmoid(-margins).sum()
        loss = (self._smoothing - 1) * right - self._smoothing * wrong
        return torch.stack((loss, *rewards.detach().sum(dim=0), (margins.detach() > 0).sum().to(loss)))


Objective = CrossEntropy | Preference
NATS = CrossEntropy()


def objective_of(model: LanguageModel, settings: TrainSettings, device: Device) -> Objective:
    """Return what a training minimises; to be asked for before its model is placed."""
    return Preference(model, settings, device) if isinstance(settings, DpoSettings) else NATS


def rewards_of(sums: list[float], pairs: int) -> dict[str, float]:
    """Return the means of what is summed beside a loss of so many pairs, by TRL's names; none of nothing."""
    if not sums or not pairs:
        return {}
    good, bad, wins = (each / pairs for each in sums)
    names = {"chosen": good, "rejected": bad, "accuracies": wins, "margins": good - bad}
    return {f"rewards/{name}": value for name, value in names.items()}


def rewards_in_short(record: dict[str, float]) -> str:
    """Return what a line tells of the rewards in a record, "" where there are none."""
    if "rewards/margins" not in record:
        return ""
    return f" margin {record['rewards/margins']:.2g} right {record['rewards/accuracies']:.0%}"


def log_likelihoods(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-likelihoods of the answers of all pairs, the good one first, (P, 2)."""
    nats = model(batch.ids, batch.layout, batch.labels)  # (N,)
    counts = batch.document_ids.amax(dim=1) + 1  # documents of each row
    documents = (counts.cumsum(dim=0) - counts)[:, None] + batch.document_ids  # counted through the batch
    sums = nats.new_zeros(int(counts.sum()))
    return -sums.index_add(0, documents[:, 1:][batch.labels[:, 1:] != NO_TARGET], nats).view(-1, 2)


def nats_of_targets(model: LanguageModel, ids: Tensor, layout: Layout, labels: Tensor) -> Tensor:
    """Return the nats (N,) of all targets, row by row; `LanguageModel.forward` returns their sum.

    Logits are computed in chunks, and again for the gradient, so that they are never all in memory.
    """
    is_target = labels[:, 1:] != NO_TARGET
    states, targets = model.model(ids, layout)[:, :-1][is_target], labels[:, 1:][is_target]
    weight, cap = model.lm_head.weight, model.config.final_logit_softcapping
    at_once = min(max(1, LOGITS_AT_ONCE // len(weight)), MOST_STATES)
    chunks = zip(states.split(at_once), targets.split(at_once), strict=True)
    part = partial(checkpoint, _nats, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([part(chunk, weight, target, cap) for chunk, target in chunks])


def _nats(states: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    logits = states @ weight.T
    wide = torch.promote_types(torch.float32, logits.dtype)
    return F.cross_entropy(soft_cap(logits.to(wide), cap), targets, reduction="none")
