"""What a training remembers beside its model, so that it goes on as if it had never stopped: what it has
consumed, random numbers, and the optimizers' state.

training/  progress.json  settings.json    of the whole job
           process-0.safetensors …         of each process: its random generators, and what it keeps of the
                                           optimizers' state: all, its rows of sharded tensors, or nothing

JSON and safetensors alone: going on in a directory from a stranger runs nothing that lies in it.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from dataset.batches import Batch
from model.errors import UserError
from model.files import open_tensors, write_tensors
from model.typed_json import read_as
from trainer.optimizer import Optimizers, next_scale
from trainer.placement import is_cut_up, own_rows

FORMER = ("optimizer.pt", "optimizer")
"""what an earlier version wrote instead; to read it could run code that lies in it"""
LAYOUT = {"processes": int, "first_rows": dict[str, int]}
"""what the file of a process says of itself and its tensors"""


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


@dataclass
class Progress:
    """Where a training stands after an optimizer step; numbers are those of the whole job."""

    step: int = 0
    epoch: int = 0
    row: int = 0
    """rows of this epoch that are consumed"""
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    """steps without an update, because loss or gradient were not finite"""
    skipped_in_a_row: int = 0
    """without those where a gradient only left the range of float16"""
    loss_scale: float = 1.0
    steps_at_scale: int = 0
    processes: int = 1
    """that began the training"""
    nats_since_log: float = 0.0
    targets_since_log: int = 0
    """terms of the loss, which are targets, or pairs of answers"""
    sums_since_log: list[float] = field(default_factory=list)
    """what else is told of that many terms"""
    ledger: Ledger = Ledger()

    def consume(self, batch: Batch, rows: int, tokens: int, targets: int, flops: float) -> None:
        """Count what goes into an optimizer step: numbers of all processes, the batch of this one."""
        self.step, self.row = self.step + 1, self.row + rows
        self.tokens, self.targets = self.tokens + tokens, self.targets + targets
        self.ledger = self.ledger.then(batch, flops)

    def conclude(self, sums: list[float] | None, terms: int, is_skipped: bool) -> None:
        """Count how it went; `sums`, nats first, are None where it failed and no update was made."""
        self.skipped_steps += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if sums is None else 0
        if sums is not None:
            self.nats_since_log += sums[0]
            self.targets_since_log += terms
            self.sums_since_log = added(self.sums_since_log, sums[1:])

    def clear_log(self) -> None:
        """Begin with what the next line of the log tells."""
        self.nats_since_log, self.targets_since_log, self.sums_since_log = 0.0, 0, []

    def adapt_scale(self, is_finite: bool) -> None:
        """Move the loss scale of float16 after a step."""
        self.loss_scale, self.steps_at_scale = next_scale(self.loss_scale, self.steps_at_scale, is_finite)


def added(sums: list[float], others: list[float]) -> list[float]:
    """Return the sums of two lists, number by number; an empty one counts as zeros."""
    return [one + other for one, other in zip_longest(sums, others, fillvalue=0.0)]


def save_shared_state(folder: Path, progress: Progress, facts: dict[str, Any]) -> None:
    """Write what all processes share; `facts` are what a resumed run must agree with."""
    (folder / "progress.json").write_text(json.dumps(asdict(progress), indent=2))
    (folder / "settings.json").write_text(json.dumps(facts, indent=2))


def read_progress(values: dict[str, Any]) -> Progress:
    """Return the progress that `progress.json` tells of; raises `ValueError` where it is damaged."""
    later = {"ledger?": Ledger, "sums_since_log?": list[float]}  # an earlier version kept neither
    form = {each.name: each.type for each in fields(Progress) if f"{each.name}?" not in later}
    told = read_as(form | later, values, "progress.json")
    ledger, sums = told.get("ledger") or Ledger(), told.get("sums_since_log") or []
    progress = Progress(**{name: told[name] for name in form}, sums_since_log=sums, ledger=ledger)
    if len(sums) not in (0, 3):  # none but those of pairs of answers
        raise ValueError(f"progress.json: expected 3 sums_since_log or none, got {len(sums)}")
    if progress.loss_scale < 1 or min(progress.seconds, progress.nats_since_log, ledger.flops) < 0:
        raise ValueError("progress.json: expected a loss_scale of 1 or more, and no number below 0")
    return progress


def _chained(previous: str, tensor: Tensor) -> str:
    return sha256(previous.encode() + tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def save_process_state(folder: Path, accelerator: Accelerator, optimizers: Optimizers) -> None:
    """Write what this process keeps; raises `OSError` where the disk does not take it."""
    tensors = {f"random/{kind}": module.get_rng_state() for kind, module in _generators(accelerator).items()}
    first_rows = {}
    for name, tensor in optimizers.state().items():
        if is_cut_up(tensor) or accelerator.is_main_process:
            tensors[name], first_rows[name] = own_rows(tensor)
    layout = {"processes": accelerator.num_processes, "first_rows": first_rows}
    write_tensors(_file(folder, accelerator.process_index), tensors, {"layout": json.dumps(layout)})


def load_process_state(folder: Path, accelerator: Accelerator, optimizers: Optimizers) -> None:
    """Go on with what was saved by any number of processes, sharded or not.

    A process or a GPU that was not there at the save keeps its random numbers. Raises `UserError` where the
    files are damaged.
    """
    saved = _Saved(folder)
    if saved.names:  # else an earlier version has taken no step yet
        wanted = optimizers.state()
        if saved.names != wanted.keys():
            raise UserError(f"{folder} is not the state of this model's optimizer")
        for name, tensor in wanted.items():
            saved.fill(name, tensor)
    if accelerator.process_index < len(saved.files):
        _load_random_state(saved.files[accelerator.process_index], accelerator)


class _Saved:
    """The optimizers' state as some number of processes have left it."""

    def __init__(self, folder: Path) -> None:
        """Open the files; raises `UserError` unless all are there and tell the same."""
        processes, _ = _layout(open_tensors(_file(folder, 0)), folder)
        self._folder, self.files, self._parts = folder, [], defaultdict(list)
        for rank in range(processes):
            self.files.append(file := open_tensors(_file(folder, rank)))
            number, first_rows = _layout(file, folder)
            if number != processes:
                raise UserError(f"{folder} holds files of different saves")
            for name, first_row in first_rows.items():
                self._parts[name].append((first_row, file.get_slice(name)))
        self.names = self._parts.keys()

    def fill(self, name: str, tensor: Tensor) -> None:
        """Write into a tensor, or into the rows of it that this process holds; a number is one row."""
        own, begin = own_rows(tensor)
        shape, reached, found = [*tensor.shape], 0, []
        for first, part in sorted(self._parts[name], key=lambda entry: entry[0]):
            size = part.get_shape()
            if (part.get_dtype(), first, size[1:], len(size)) != ("F32", reached, shape[1:], len(shape)):
                break
            reached += size[0] if size else 1
            if size:  # no row of the part, where none is of this process
                found.append(part[max(begin - first, 0) : max(begin + len(own) - first, 0)])
            else:
                found.append(part[...])
        if len(found) < len(self._parts[name]) or reached != (shape[0] if shape else 1):
            raise UserError(f"{self._folder}: {name} is not of shape {tuple(shape)}")
        own.copy_(torch.cat(found) if shape else found[0])


def _file(folder: Path, rank: int) -> Path:
    return folder / f"process-{rank}.safetensors"


def _layout(file: safe_open, folder: Path) -> tuple[int, dict[str, int]]:
    """Return how many processes wrote such files, and the first row of each part of a tensor in this one."""
    try:
        layout = read_as(LAYOUT, json.loads((file.metadata() or {})["layout"]), "layout")
    except (LookupError, ValueError, RecursionError):
        layout = {"processes": 0}
    if not layout["processes"] or not layout["first_rows"].keys() <= {*file.keys()}:
        raise UserError(f"{folder} holds a file that is not the state of a process")
    return layout["processes"], layout["first_rows"]


def _generators(accelerator: Accelerator) -> dict[str, Any]:
    """Return the modules of torch that hold the random generators of this process, by kind of device."""
    kind = accelerator.device.type
    return {"cpu": torch} | ({} if kind == "cpu" else {kind: torch.get_device_module(kind)})


def _load_random_state(file: safe_open, accelerator: Accelerator) -> None:
    for kind, module in _generators(accelerator).items():
        if (name := f"random/{kind}") not in file.keys():  # noqa: SIM118 - safe_open cannot be iterated
            continue
        state, size = file.get_tensor(name), module.get_rng_state().shape
        try:
            if state.dtype != torch.uint8 or state.shape != size:
                raise RuntimeError(f"{state.dtype} of shape {tuple(state.shape)}")
            module.set_rng_state(state)
        except RuntimeError as error:
            raise UserError(f"{name} is no state of a random generator ({error})") from None
