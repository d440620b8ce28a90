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
from trainer.settings import DpoSettings

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
    """How little a model prefers good answers to bad ones, compared to what it was.

    A reward is `beta` times the log-ratio of an answer to the first model, which is kept, frozen. Rows hold
    both answers of their pairs (`dataset/documents.py`), so that any split of a step into rows has the same
    terms.
    """

    is_of_text = False

    def __init__(self, model: LanguageModel, settings: DpoSettings, device: Device) -> None:
        """Keep a model as it is before it is placed and trains; from here on it tells each target's nats."""
        self._settings = settings
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
        ratios = log_likelihoods(model, batch) - before  # (P, 2)
        loss = LOSSES[self._settings.loss](ratios, batch, self._settings)
        rewards = self._settings.beta * ratios.detach()
        wins = (rewards[:, 0] > rewards[:, 1]).sum()
        return torch.stack((loss, *rewards.sum(dim=0), wins.to(loss)))


def dpo_loss(ratios: Tensor, batch: Batch, settings: DpoSettings) -> Tensor:
    """Return the loss of log-ratios (P, 2), summed over pairs: Rafailov et al. 2023, equation 7.

    arXiv 2305.18290; smoothed labels as in Mitchell 2023, "A note on DPO with noisy preferences".
    """
    margins, smoothing = settings.beta * (ratios[:, 0] - ratios[:, 1]), settings.label_smoothing
    right, wrong = F.logsigmoid(margins).sum(), F.logsigmoid(-margins).sum()
    return (smoothing - 1) * right - smoothing * wrong


def ipo_loss(ratios: Tensor, batch: Batch, settings: DpoSettings) -> Tensor:
    """Return the same of IPO: Azar et al. 2023 (arXiv 2310.12036), equation 17.

    Log-ratios are those of a token, in the mean over an answer, as in TRL, whose authors asked the paper's.
    """
    means = ratios / by_answer(ratios.new_ones(batch.num_targets), batch).clamp(min=1)
    return (means[:, 0] - means[:, 1] - 1 / (2 * settings.beta)).square().sum()


LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss}
Objective = CrossEntropy | Preference
NATS = CrossEntropy()


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
    return by_answer(-model(batch.ids, batch.layout, batch.labels), batch)


def by_answer(values: Tensor, batch: Batch) -> Tensor:
    """Return values of all targets (N,), summed over each answer, the good one of a pair first, (P, 2)."""
    counts = batch.document_ids.amax(dim=1) + 1  # documents of each row
    documents = (counts.cumsum(dim=0) - counts)[:, None] + batch.document_ids  # counted through the batch
    sums = values.new_zeros(int(counts.sum()))
    return sums.index_add(0, documents[:, 1:][batch.labels[:, 1:] != NO_TARGET], values).view(-1, 2)


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
