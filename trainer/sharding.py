"""How weights, gradients and optimizer state lie on the processes: whole on each (DDP), or cut up (FSDP2).

Cut up (Zhao et al. 2023, arXiv 2304.11277), each parameter is a `DTensor` of which a process holds some rows.
The cutting is done here on every kind of device. Accelerate, which would do it on GPUs alone, knows nothing
of it: what its launcher was told of FSDP is taken out of the environment, and applied or refused.
"""

import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from model.errors import UserError
from model.transformer import LanguageModel

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


@dataclass(frozen=True)
class Sharding:
    """How a model is cut up."""

    reshard_after_forward: bool = True
    """gather a layer again for its backward pass, instead of keeping it from the forward pass on"""


def find_sharding(setting: str) -> Sharding | None:
    """Reconcile --sharding with the launcher; None keeps models whole.

    Accelerate learns of it no more. Raises `UserError` for what contradicts --sharding or is not done here.
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


def distribute(model: LanguageModel, accelerator: Accelerator, sharding: Sharding | None) -> nn.Module:
    """Put a model, equal on all processes, on their devices; with `sharding`, `model` itself is cut up.

    So that no device has to hold the whole, `fully_shard` moves one layer after the other.
    """
    if sharding is None:
        return accelerator.prepare(model)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
    return fully_shard(model, mesh=mesh)


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
    if not isinstance(model, FSDPModule):
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
