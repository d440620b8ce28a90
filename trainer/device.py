"""Where a training computes, in which precision, and why; the only place that asks."""

import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from model.errors import UserError
from trainer.settings import TrainSettings


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
    description: str


def find_device(settings: TrainSettings) -> Device:
    """Set up accelerate for this process; raises `UserError` for settings that contradict the launcher's."""
    is_cpu_asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    uses_cpu = is_cpu_asked or not torch.accelerator.is_available()
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = choose_precision(settings.dtype, launcher_precision, native_bfloat16(uses_cpu))
    accelerator = Accelerator(
        cpu=uses_cpu,
        mixed_precision="bf16" if precision.dtype == torch.bfloat16 else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        log_with=_checked_tracker(settings.tracker),
        project_dir=settings.out,
    )
    world = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != world:
        raise UserError(
            f"expected WORLD_SIZE={world} processes, accelerate sees {accelerator.num_processes}; "
            "start them with accelerate launch"
        )
    return Device(accelerator, precision.dtype, _describe(accelerator, precision))


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


def native_bfloat16(uses_cpu: bool) -> str | None:
    """Name the unit that multiplies bfloat16 on this machine, None if there is none."""
    if uses_cpu:
        units = torch.cpu.get_capabilities()
        return next((name for name in ("amx_bf16", "avx512_bf16") if units.get(name)), None)
    is_native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cuda.get_device_name() if is_native else None


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
    if name not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {name} is not installed; install it with pip, or use --tracker none")
    if name == "wandb" and not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")
    return name
