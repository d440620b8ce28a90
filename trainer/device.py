"""Where a training computes, in which precision, and why; the only place that asks."""

import os
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from model.errors import UserError
from model.serving import native_bfloat16
from trainer.machine import keep_freed_memory
from trainer.settings import TrainSettings
from trainer.sharding import fsdp_plugin, is_sharding_asked


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products, and the reason in words."""

    dtype: torch.dtype
    reason: str


@dataclass(frozen=True)
class Device:
    """What this process computes with."""

    accelerator: Accelerator
    dtype: torch.dtype
    shards: bool
    """whether each process keeps a part of the model only"""
    description: str


def find_device(settings: TrainSettings) -> Device:
    """Set up accelerate for this process; raises `UserError` for settings that contradict the launcher's."""
    is_cpu_asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    uses_cpu = is_cpu_asked or not torch.accelerator.is_available()
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = choose_precision(settings.dtype, launcher_precision, native_bfloat16(uses_cpu))
    shards = is_sharding_asked(settings.sharding)
    if uses_cpu:
        keep_freed_memory()
    AcceleratorState._reset_state()  # it keeps the precision of the last training of this process
    accelerator = Accelerator(
        cpu=uses_cpu,
        fsdp_plugin=fsdp_plugin() if shards and not uses_cpu else None,
        mixed_precision="bf16" if precision.dtype == torch.bfloat16 else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        log_with=_checked_tracker(settings.tracker),
        project_dir=settings.out,
    )
    _check_processes(accelerator.num_processes, shards, uses_cpu)
    description = _describe(accelerator, precision) + (", sharded by FSDP2" if shards else "")
    return Device(accelerator, precision.dtype, shards, description)


def _check_processes(number: int, shards: bool, uses_cpu: bool) -> None:
    """Raise `UserError` unless all processes that were meant are there."""
    if number != (world := int(os.environ.get("WORLD_SIZE", 1))):
        raise UserError(
            f"expected WORLD_SIZE={world} processes, accelerate sees {number}; "
            "start them with accelerate launch or torchrun"
        )
    # On CPUs accelerate launch sets the address for several processes, and starts one.
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if number == 1 and is_launched and uses_cpu and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes on CPUs and started one; use torchrun or "
            "configs/accelerate/two_cpu_processes.yaml, see docs/scale.md"
        )
    if number == 1 and shards:
        raise UserError("sharding by FSDP2 needs two or more processes, got 1; start more, or do without it")


def choose_precision(dtype: str, launcher_precision: str, native: str | None) -> Precision:
    """Reconcile --dtype, the launcher's mixed precision, and the unit that multiplies bfloat16, if any."""
    if launcher_precision not in ("no", "bf16"):
        raise UserError(f"expected mixed precision bf16 or no from the launcher, got {launcher_precision}")
    if launcher_precision == "bf16" and dtype == "float32":
        raise UserError(
            "--dtype float32 contradicts --mixed_precision bf16 of the launcher; drop one of them"
        )
    if dtype != "auto":
        return Precision(getattr(torch, dtype), "by --dtype")
    if launcher_precision == "bf16":
        return Precision(torch.bfloat16, "by --mixed_precision of the launcher")
    if native:
        return Precision(torch.bfloat16, f"{native} multiplies it natively")
    return Precision(torch.float32, "nothing here multiplies bfloat16 natively")


def _describe(accelerator: Accelerator, precision: Precision) -> str:
    kind, count = accelerator.device.type, accelerator.num_processes
    place = torch.cuda.get_device_name() if kind == "cuda" else kind
    if kind == "cpu":
        place += f" with {torch.get_num_threads()} of {os.cpu_count()} threads"
    processes = f"{count} processes, each on " if count > 1 else ""
    return f"{processes}{place}, {str(precision.dtype).removeprefix('torch.')} ({precision.reason})"


def _checked_tracker(name: str) -> str | None:
    """Return the tracker for accelerate; wandb works offline where there is no key: it raises otherwise."""
    if name == "none":
        return None
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"--tracker: expected none or one of {', '.join(LOGGER_TYPE_TO_CLASS)}, got {name}")
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {name} is not installed; install it with pip, or use --tracker none")
    if name == "wandb" and not (os.environ.get("WANDB_API_KEY") or _is_logged_in_to_wandb()):
        os.environ.setdefault("WANDB_MODE", "offline")
    return name


def _is_logged_in_to_wandb() -> bool:
    """Say whether `wandb login` has left a key where wandb looks for it."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    files = [file for file in map(os.path.expanduser, names) if os.path.isfile(file)]
    try:
        return any(host in netrc(file).hosts for file in files)
    except (NetrcParseError, OSError):
        return False
