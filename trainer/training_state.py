"""What a training remembers beside its model, so that it goes on as if it had never stopped."""

import json
import random
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.transformer import LanguageModel
from trainer.optimizer import Optimizers
from trainer.sharding import is_sharded, load_sharded, save_sharded

SHARDED = "optimizer"
"""folder that takes the place of `optimizer.pt` where the model is sharded"""


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
    processes: int = 1
    """that began the training"""
    nats_since_log: float = 0.0
    targets_since_log: int = 0

    def count(self, rows: int, tokens: int, targets: int, nats: float | None) -> None:
        """Count one optimizer step; `nats` is None where its update was skipped."""
        self.step, self.row = self.step + 1, self.row + rows
        self.tokens, self.targets = self.tokens + tokens, self.targets + targets
        if nats is None:
            self.skipped_steps, self.skipped_in_a_row = self.skipped_steps + 1, self.skipped_in_a_row + 1
        else:
            self.skipped_in_a_row = 0
            self.nats_since_log, self.targets_since_log = (
                self.nats_since_log + nats,
                self.targets_since_log + targets,
            )


def save_shared_state(folder: Path, progress: Progress, facts: dict[str, Any]) -> None:
    """Write what all processes share; `facts` are what a resumed run must agree with."""
    (folder / "progress.json").write_text(json.dumps(asdict(progress), indent=2))
    (folder / "settings.json").write_text(json.dumps(facts, indent=2))


def load_shared_state(folder: Path) -> Progress:
    """Return the progress."""
    values = json.loads((folder / "progress.json").read_text())
    return Progress(**{field.name: values[field.name] for field in fields(Progress)})


def save_optimizers(folder: Path, model: LanguageModel, optimizers: Optimizers, is_main: bool) -> None:
    """Write the optimizers' state: the main process alone, or each process its part of a sharded model's."""
    if is_sharded(model):
        save_sharded(folder / SHARDED, model, optimizers.members)
    elif is_main:
        write_tensors(optimizers.state_dict(), folder / "optimizer.pt")


def load_optimizers(folder: Path, model: LanguageModel, optimizers: Optimizers) -> None:
    """Restore the optimizers, whether they or what was saved is sharded or not."""
    if (folder / SHARDED).is_dir():
        load_sharded(folder / SHARDED, model, optimizers.members)
    else:
        state = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        optimizers.load_state_dict(state)


def save_random_state(folder: Path, rank: int) -> None:
    """Write the state of every random generator of this process."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    write_tensors(state | {"cuda": torch.cuda.get_rng_state_all()}, folder / f"random-{rank}.pt")


def load_random_state(folder: Path, rank: int) -> None:
    """Restore the generators; a process or a GPU that was not there at the save keeps its own."""
    file = folder / f"random-{rank}.pt"
    if not file.exists():
        return
    # weights_only=False: our own file, training/ is never taken from strangers
    state = torch.load(file, weights_only=False, map_location="cpu")
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def write_tensors(values: object, file: Path) -> None:
    """Write with `torch.save`; raises the `OSError` of a full disk, which torch hides behind its own."""
    try:
        with open(file, "wb") as stream:
            torch.save(values, stream)
    except RuntimeError as error:
        if isinstance(cause := error.__context__, OSError):
            raise OSError(cause.errno, cause.strerror, str(file)) from error
        raise
