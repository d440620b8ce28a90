"""What a training has consumed: arithmetic, and digests that prove what two trainings have in common."""

import math
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from torch import Tensor, nn

from dataset.batches import Batch
from model.errors import UserError
from model.files import is_number


@dataclass(frozen=True)
class Ledger:
    """The sums of a training so far; a resumed one goes on with those of its last save.

    Rows and targets are those of the first process: they are comparable between trainings on as many.
    """

    initial_weights: str = ""
    """digest of the weights before the first step; empty where a version began that kept no sums"""
    rows: str = ""
    """digest of the tokens of all batches, in their order; blocks and documents do not count"""
    targets: str = ""
    """digest of which of these tokens carried loss"""
    flops: float = 0.0
    """operations that the model needed for forward and backward passes, of all processes"""

    def then(self, batch: Batch, flops: float) -> "Ledger":
        """Return the sums after the batch of one more step."""
        rows, targets = _chained(self.rows, batch.ids), _chained(self.targets, batch.labels)
        return Ledger(self.initial_weights, rows, targets, self.flops + flops)

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says of it; nothing of sums that do not reach back to the first step."""
        if not self.initial_weights:
            return {}
        proof = asdict(self)
        return {"flops": proof.pop("flops"), "proof": proof}


def read_ledger(value: Any) -> Ledger:
    """Return what a save tells, if it is not of an earlier version; raises `UserError` if it is damaged."""
    if value is None:
        return Ledger()
    sound = {
        float: lambda number: is_number(number) and 0 <= number < math.inf,
        str: lambda text: isinstance(text, str),
    }
    if not isinstance(value, dict) or not all(sound[f.type](value.get(f.name)) for f in fields(Ledger)):
        raise UserError(f"progress.json: ledger must hold digests and flops, got {value!r:.40}")
    return Ledger(**{field.name: value[field.name] for field in fields(Ledger)})


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change when a weight of a model on the CPU does."""
    digest = sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def _chained(previous: str, tensor: Tensor) -> str:
    return sha256(previous.encode() + tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
