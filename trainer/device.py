"""Where a training computes, in which precision, and why; the only place that asks.

Also what the machine gives: its peak of arithmetic, and memory that is kept.
"""

import ctypes
import functools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from torch import nn

from dataset.printing import printable
from model.errors import UserError
from model.systems import native_bfloat16, own_bytes, resource
from trainer.settings import TrainSettings

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""what launchers call the dtype of matrix products"""
TENSOR_CORES = (7, 0)
"""compute capability from which GPUs multiply float16 many times faster than float32"""
EXPECTED = {
    "fsdp_version": "2",
    "fsdp_offload_params": "false",
    "fsdp_activation_checkpointing": "false",
    "fsdp_activation_checkpointing_offload": "false",
    "fsdp_auto_wrap_policy": "transformer_based_wrap",
    "fsdp_transformer_cls_to_wrap": "decoderlayer",
    "fsdp_forward_prefetch": "false",
    "fsdp_ignored_modules": "none",
}
"""what a launcher may ask for, besides `fsdp_reshard_after_forward` and how to load and save"""
MEGABYTE = 1_000_000
SIDES = {"cpu": (256, 1024, 2048)}
LARGE_SIDES = (4096, 8192)
"""sides of the square matrices that are multiplied to find the peak; accelerators want large ones"""
REPETITIONS = 4
MOST_SECONDS = 0.5
"""larger matrices are left out where they would take longer; smaller ones show the peak there as well"""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""names of malloc.h"""


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products, and the reason in words."""

    dtype: torch.dtype
    reason: str


@dataclass(frozen=True)
class Sharding:
    """How a model is cut up."""

    reshard_after_forward: bool = True
    """gather a layer again for its backward pass, instead of keeping it from the forward pass on"""


@dataclass(frozen=True)
class Device:
    """What this process computes with."""

    accelerator: Accelerator
    dtype: torch.dtype
    sharding: Sharding | None
    """None where each process keeps the whole model"""
    description: str

    @property
    def rank(self) -> int:
        """Number of this process, from 0, which is the main one."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes

    @contextmanager
    def without_exchange(self, model: nn.Module) -> Iterator[None]:
        """Let backward passes add to the gradients of this process and send nothing."""
        if self.sharding is None:
            with self.accelerator.no_sync(model):
                yield
            return
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def summed(self, *numbers: float) -> list[float]:
        """Add numbers up over all processes."""
        if self.world == 1:
            return list(numbers)
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # which MPS lacks
        return self.accelerator.reduce(torch.tensor(numbers, dtype=exact, device=device), "sum").tolist()


def find_device(settings: TrainSettings) -> Device:
    """Set up accelerate for this process; raises `UserError` for settings that contradict the launcher's."""
    uses_cpu = is_cpu_asked() or not torch.accelerator.is_available()
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = choose_precision(settings.dtype, launcher_precision, native_precision(uses_cpu))
    sharding = find_sharding(settings.sharding)
    if (compiler := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        raise UserError(f"expected dynamo_backend no from the launcher, got {compiler}; use --compile")
    if uses_cpu:
        keep_freed_memory()
    tracker = None if settings.tracker == "none" else _checked_tracker(settings.tracker, settings.out)
    try:
        accelerator = Accelerator(
            cpu=uses_cpu,
            mixed_precision="no",  # `compute_in` does it: that is of the process, and no float16 on CPUs
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            log_with=tracker,
            project_dir=settings.out,
        )
    except ValueError as error:  # what it reads, it reads by int() and the like
        raise UserError(f"accelerate cannot read its environment variables: {error}") from None
    _check_processes(accelerator.num_processes, sharding is not None, uses_cpu)
    description = _describe(accelerator, precision) + (", sharded by FSDP2" if sharding else "")
    return Device(accelerator, precision.dtype, sharding, description)


def find_sharding(setting: str) -> Sharding | None:
    """Reconcile --sharding with the launcher; None keeps models whole.

    What that was told of FSDP is taken out of the environment: accelerate learns of it no more. Raises
    `UserError` for what contradicts --sharding or is not done here.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() != "true":
        return Sharding() if setting == "fsdp" else None
    if setting == "none":
        raise UserError("--sharding none contradicts the FSDP of the launcher; drop one of them")
    asked = {"fsdp_version": "1"} | {name.lower(): value.lower() for name, value in os.environ.items()}
    for name, expected in EXPECTED.items():
        if (value := asked.get(name, expected)) != expected:
            hint = "; use --gradient_checkpointing instead" if "checkpointing" in name else ""
            raise UserError(f"expected {name} {expected} from the launcher, got {value}{hint}")
    if (reshard := asked.get("fsdp_reshard_after_forward", "true")) not in ("true", "false"):
        raise UserError(f"expected fsdp_reshard_after_forward true or false, got {reshard}")
    return Sharding(reshard == "true")


def is_cpu_asked() -> bool:
    """Say whether the launcher was told to compute on the CPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "t", "yes", "y", "on", "1")


def _check_processes(number: int, shards: bool, uses_cpu: bool) -> None:
    """Raise `UserError` unless all processes that were meant are there."""
    if number != (world := int(os.environ.get("WORLD_SIZE", 1))):
        wanted = f"expected WORLD_SIZE={world} processes, accelerate sees {number}"
        raise UserError(f"{wanted}; start them with accelerate launch or torchrun")
    # On CPUs accelerate launch sets the address for several processes, and starts one.
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if number == 1 and is_launched and uses_cpu and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes on CPUs and started one; use torchrun or "
            "configs/accelerate/two_cpu_processes.yaml, see docs/scale.md"
        )
    if number == 1 and shards:
        raise UserError("sharding by FSDP2 needs two or more processes, got 1; start more, or do without it")


def choose_precision(dtype: str, launcher_precision: str, native: Precision) -> Precision:
    """Reconcile --dtype, the launcher's mixed precision, and what the machine multiplies natively."""
    if launcher_precision not in PRECISIONS:
        wanted = f"expected one of {', '.join(PRECISIONS)} as the launcher's mixed precision"
        raise UserError(f"{wanted}, got {launcher_precision}")
    asked = PRECISIONS[launcher_precision]
    if dtype == "auto":
        return Precision(asked, "by --mixed_precision of the launcher") if asked else native
    if asked not in (None, chosen := getattr(torch, dtype)):
        both = f"--dtype {dtype} contradicts --mixed_precision {launcher_precision} of the launcher"
        raise UserError(f"{both}; drop one of them")
    return Precision(chosen, "by --dtype")


def native_precision(uses_cpu: bool) -> Precision:
    """Return what a machine multiplies fastest: bfloat16, float16 on older GPUs, or float32."""
    if unit := native_bfloat16(uses_cpu):
        return Precision(torch.bfloat16, f"{unit} multiplies it natively")
    if not uses_cpu and torch.cuda.is_available() and torch.cuda.get_device_capability() >= TENSOR_CORES:
        return Precision(torch.float16, "this GPU multiplies it natively, not bfloat16; the loss is scaled")
    return Precision(torch.float32, "nothing here multiplies bfloat16 natively")


def _describe(accelerator: Accelerator, precision: Precision) -> str:
    kind, count = accelerator.device.type, accelerator.num_processes
    place = torch.cuda.get_device_name() if kind == "cuda" else kind
    if kind == "cpu":
        place += f" with {torch.get_num_threads()} of {os.cpu_count()} threads"
    processes = f"{count} processes, each on " if count > 1 else ""
    return f"{processes}{place}, {str(precision.dtype).removeprefix('torch.')} ({precision.reason})"


def _checked_tracker(name: str, out: str) -> str:
    """Return the tracker for accelerate; one that would ask for a key works offline where there is none."""
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"--tracker: expected none or one of {', '.join(LOGGER_TYPE_TO_CLASS)}, got {name}")
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {name} is not installed; install it with pip, or use --tracker none")
    if name != "tensorboard" and printable(place := os.path.realpath(out)) != place:  # others print it raw
        raise UserError(f"--tracker {name}: expected --out without control characters, got {place}")
    if name == "wandb" and not (os.environ.get("WANDB_API_KEY") or _is_logged_in_to_wandb()):
        os.environ.setdefault("WANDB_MODE", "offline")
    if name == "swanlab" and not (os.environ.get("SWANLAB_API_KEY") or _is_logged_in_to_swanlab()):
        os.environ.setdefault("SWANLAB_MODE", "offline")
    return name


def _is_logged_in_to_wandb() -> bool:
    """Say whether `wandb login` has left a key where wandb looks for it."""
    from requests.utils import get_netrc_auth  # which wandb brings

    return get_netrc_auth(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")) is not None


def _is_logged_in_to_swanlab() -> bool:
    """Say whether `swanlab login` has left a key where swanlab looks for it."""
    at_home = os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab"
    return any((Path(folder) / ".netrc").is_file() for folder in (".swanlab", at_home))


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of square matrix products at their best, measured once."""
    best = 0.0
    generator = torch.Generator(device)  # leaves the training's own random numbers alone
    for side in SIDES.get(device.type, LARGE_SIDES):
        if best and REPETITIONS * 2 * side**3 / best > MOST_SECONDS:
            break
        a, b = (torch.rand(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
        for _ in range(REPETITIONS):
            finish(device)
            began = time.perf_counter()
            torch.mm(a, b)
            finish(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def peak_megabytes(device: torch.device) -> float:
    """Return the most memory that this process has held: of the device, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    if device.type == "mps":  # which keeps no maximum, but gives little back
        return torch.mps.driver_allocated_memory() / MEGABYTE
    if held := own_bytes("VmHWM"):  # where getrusage begins with what the process held that started this one
        return held / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, for the tensors of the next step.

    By itself it gives large pieces back, and the system clears every page of the next ones, which takes long
    where tensors are large. Does nothing where the library is not GNU's.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    torch.get_device_module(device).synchronize()
