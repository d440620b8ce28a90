"""What a pair of processes does for `test_scale.py`: trainings by DDP and by FSDP2, on CPUs through gloo."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from forked_runs import MOST_SECONDS, SERVER, write_to
from torch.distributed import TCPStore
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dataset.batches import Batch
from dataset.token_store import open_stores
from trainer.device import Sharding, find_device
from trainer.inputs import make_inputs, start_from
from trainer.loop import Training
from trainer.placement import whole
from trainer.settings import OptimizerSettings, ScheduleSettings, SftSettings
from trainer.setup import set_up
from trainer.stopping import StopRequest


def settings_for(data: Path, init: Path, out: Path, optimizer: str = "adamw", **others) -> SftSettings:
    """Steps of 8 ragged rows, in 2 processes of 2 rows and 2 micro-batches; adamw's runs are validated."""
    small = {"max_steps": 3, "batch_size": 2, "gradient_accumulation": 2, "packing": "none"}
    small |= {
        "samples": 1,
        "sample_tokens": 6,
        "max_seq_len": 96,
        "schedule": ScheduleSettings(warmup_steps=1),
        "log_every_steps": 1,
    }
    store = (str(data / "sft"),)
    places = {"data": store, "init": str(init), "out": str(out)}
    measured = {"validation": store if optimizer == "adamw" else (), "validate_every_steps": 2}
    chosen = {"optimizer": OptimizerSettings(name=optimizer), "dtype": "float32"}
    return SftSettings(**places, **{**small, **measured, **chosen, **others})


def prepare(settings: SftSettings) -> Training:
    """A training that has not begun."""
    device = find_device(settings)
    stores = open_stores(settings.data)
    start = start_from(settings.init, settings.prompt_mask, stores[0].tokenizer, 0)
    return Training(set_up(make_inputs(settings, "sft", stores, start), device, settings))


def first_batch(training: Training) -> Batch:
    """This process's part of the first step."""
    device, rows = training.device, training.setup.rows_per_step
    return next(training.setup.inputs.stream.batches(0, 0, rows, device.rank, device.world))


def gradients(training: Training) -> dict[str, torch.Tensor]:
    """The gradients of the first step, before clipping."""
    batch = first_batch(training)
    (targets,) = training.device.summed(batch.num_targets)
    training._backward(batch, scale=training.device.world / targets)
    return {name: whole(p.grad) for name, p in training.setup.inputs.start.model.named_parameters()}


class Counting(TorchDispatchMode):
    """Counts how often gradients are added up, or added up and shared out, over processes."""

    sums = (torch.ops.c10d.allreduce_, torch.ops.c10d._reduce_scatter_base_)
    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation.overloadpacket in self.sums
        return operation(*args, **(kwargs or {}))


def exchanges(training: Training) -> int:
    """How often processes exchange gradients in a step."""
    gradients(training)  # DDP lays out its buckets
    training.optimizers.zero_grad()
    with Counting() as counting:
        training._backward(first_batch(training), scale=1.0)
    return counting.count


def run(settings: SftSettings) -> Training:
    """Train, from the last save on if there is one."""
    training = prepare(settings)
    with training.saves.claim():
        training.restore()
        training.run_until(StopRequest(settings.max_minutes).is_asked)
        training.device.accelerator.wait_for_everyone()
    return training


def run_pair(log: Path, work: Callable[..., None], *places: Path) -> None:
    """Start `work` in two processes and wait for them; they meet at a store opened here, on a free port."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pair = [SERVER.Process(target=_work, args=(log, work, rank, store.port, *places)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(MOST_SECONDS)
        process.kill()  # if it is still there
    assert [process.exitcode for process in pair] == [0, 0], log.read_text()


def _work(log: Path, work: Callable[..., None], *places: Path | int) -> None:
    write_to(log)
    work(*places)


def join(rank: int, port: int) -> None:
    """Become one of the two."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in (meeting | place).items()})
    torch.set_num_threads(1)


def train_compiled(rank: int, port: int, data: Path, init: Path, folder: Path) -> None:
    """Train with compiled layers in each of the ways."""
    join(rank, port)
    for name, how in (("whole", {}), ("sharded", {"sharding": "fsdp", "gradient_checkpointing": True})):
        run(settings_for(data, init, folder / f"compiled_{name}", compile="always", **how))


def train_in_every_way(
    rank: int, port: int, data: Path, init: Path, experts: Path, folder: Path, begun: Path
) -> None:
    """Leave gradients and trainings; `begun` is a run of one process that is to be continued here."""
    join(rank, port)

    def settings(name: str, **others: object) -> SftSettings:
        return settings_for(data, init, folder / name, **others)

    def keep(name: str, training: Training, **others: object) -> None:
        found = gradients(training)
        parameters = training.setup.inputs.start.model.parameters()
        here = [p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters]
        if rank == 0:
            torch.save({"gradients": found, "numbers_here": sum(here)} | others, folder / f"{name}.pt")

    sharded, once = {"sharding": "fsdp"}, {"batch_size": 4, "gradient_accumulation": 1}
    for name, how in (("whole", {}), ("sharded", sharded)):
        counts = [exchanges(prepare(settings("unused", **how, **spread))) for spread in ({}, once)]
        keep(name, prepare(settings("unused", **how)), exchanges=counts)
        keep(f"{name}_recomputed", prepare(settings("unused", **how, gradient_checkpointing=True)))
        for optimizer in ("adamw", "muon"):
            run(settings(f"{name}_{optimizer}", optimizer=optimizer, **how))
        run(settings_for(data, experts, folder / f"{name}_experts", "muon", **how))
    run(settings("broken", optimizer="muon", **sharded, max_minutes=1e-9))
    if rank == 0:
        shutil.copytree(folder / "broken", folder / "left")
    run(settings("broken", optimizer="muon", **sharded))
    run(replace(settings("one", optimizer="muon", **sharded), out=str(begun)))
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    os.environ.update(asked)
    training = prepare(settings("unused"))
    assert training.device.sharding == Sharding(reshard_after_forward=False)
    keep("by_launcher", training)
    os.environ.update(asked)
    run(settings("by_launcher"))
