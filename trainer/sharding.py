"""How weights, gradients and optimizer state lie on the processes: whole on each (DDP), or cut up (FSDP2).

Cut up (Zhao et al. 2023, arXiv 2304.11277), each parameter is a `DTensor` of which a process holds some rows.
On GPUs accelerate does the cutting; it knows no FSDP on CPUs, where `fully_shard` is called here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from model.errors import UserError
from model.transformer import DecoderLayer, LanguageModel


def is_sharding_asked(setting: str) -> bool:
    """Reconcile --sharding with the launcher; raises `UserError` for what contradicts it or is not FSDP2."""
    if not _is_set("ACCELERATE_USE_FSDP"):
        return setting == "fsdp"
    if setting == "none":
        raise UserError("--sharding none contradicts the FSDP of the launcher; drop one of them")
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise UserError(f"expected fsdp_version 2 from the launcher, got {version}")
    if _is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError("expected no fsdp_activation_checkpointing; use --gradient_checkpointing instead")
    return True


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"


def fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """Describe the cutting to accelerate; what is not given here comes from the launcher's configuration.

    Weights are exchanged as they are, in float32, and autocast decides what is computed in bfloat16, as
    without sharding: accelerate's own policy would round the loss itself to bfloat16.
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        mixed_precision_policy=MixedPrecisionPolicy(),
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[DecoderLayer.__name__],
        cpu_ram_efficient_loading=False,
    )


def distribute(model: LanguageModel, accelerator: Accelerator, shards: bool) -> nn.Module:
    """Put a model, equal on all processes, on their devices; `model` itself is cut up if it `shards`."""
    if not shards:
        return accelerator.prepare(model)
    model = accelerator.prepare_model(model, evaluation_mode=True)  # on its device, without DDP
    if accelerator.is_fsdp2:
        unused = torch.optim.SGD(model.parameters())  # accelerate takes no model alone
        return accelerator.prepare(model, unused)[0]
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Say whether a model is cut up."""
    return isinstance(model, FSDPModule)


@contextmanager
def without_exchange(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Let backward passes add to the gradients of this process and send nothing."""
    if not is_sharded(model):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; each of them has to call this."""
    return tensor.full_tensor() if is_cut_up(tensor) else tensor


def is_cut_up(tensor: Tensor) -> bool:
    """Say whether a process holds some rows of a tensor only."""
    return isinstance(tensor, DTensor)


def own_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Return what this process holds of a tensor, and the number of its first row; writing to it counts."""
    if not is_cut_up(tensor):
        return tensor, 0
    assert tensor.placements == (Shard(0),), "FSDP2 cuts along the first dimension"
    mesh = tensor.device_mesh
    _, first_row = Shard.local_shard_size_and_offset(len(tensor), mesh.size(), mesh.get_local_rank())
    return tensor.to_local(), first_row


def cut_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, if `parameter` is cut up and of the same shape."""
    if not is_cut_up(parameter) or tensor.shape != parameter.shape:
        return tensor
    # No source rank: every process has the whole tensor already.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_model(model: LanguageModel) -> LanguageModel | None:
    """Return a model that is not cut up: the main process has it, the others None; all have to call this."""
    if not is_sharded(model):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not weights:  # torch gathers on the main process only
        return None
    with torch.device("meta"):
        result = LanguageModel(model.config)
    result.load_state_dict(weights, assign=True)
    result.model.register_triangle()  # no checkpoint holds it
    return result


def load_weights(model: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Copy whole weights, which every process has, into a model that may be cut up."""
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
