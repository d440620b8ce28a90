"""How a model lies and runs on the processes: compiled or not, whole on each (DDP), or cut up (FSDP2).

Cut up (Zhao et al. 2023, arXiv 2304.11277), each parameter is a `DTensor` of which a process holds some rows.
The cutting is done here on every kind of device; accelerate, which would do it on GPUs alone, knows nothing
of it. On one process, nothing is imported for it, which would take seconds.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from dataset.batches import Batch
from model.architectures import model_without_memory
from model.backends import keep_documents_uncompiled
from model.config import WITH_ENCODER, ModelConfig
from model.errors import UserError
from model.moe import keep_experts_uncompiled
from model.systems import compiler_fault
from model.transformer import LanguageModel
from model.work import weights_of_products, work
from trainer.device import Device, Sharding
from trainer.settings import TrainSettings

WORTHWHILE_FLOPS = 2e13
"""arithmetic of a training from which compiling on a CPU, about half a minute, is soon made up for"""


@dataclass(frozen=True)
class Compilation:
    """The decision, and the reason in words."""

    is_on: bool
    reason: str


def place(
    model: LanguageModel, settings: TrainSettings, device: Device, most_tokens: int, former: bool | None
) -> tuple[nn.Module, Compilation]:
    """Return a model as it trains: compiled, in its precision, on the devices of all processes, maybe cut up.

    The training takes `most_tokens`; `former` says whether the part of it that came before was compiled.
    """
    weights = sum(map(weights_of_products, model.model.stacks))
    accelerator, flops = device.accelerator, 6.0 * weights * most_tokens
    compilation = choose_compilation(settings.compile, accelerator.device, flops, former)
    if compilation.is_on:
        compile_layers(model, lengths_vary=settings.packing == "none")
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    compute_in(device.dtype, model, accelerator.device)
    return distribute(model, accelerator, device.sharding), compilation


def compute_in(dtype: torch.dtype, model: nn.Module, device: torch.device) -> None:
    """Let a model multiply in another dtype than that of its weights, wherever it is called."""
    if dtype != torch.float32:
        model.forward = convert_outputs_to_fp32(torch.autocast(device.type, dtype)(model.forward))


def compile_layers(model: LanguageModel, lengths_vary: bool) -> None:
    """Let the layers run compiled in training; the names of parameters stay.

    Lengths that vary are symbols from the first batch on: were they to become so later, the course of a
    training would depend on where it was interrupted. Those of what an encoder reads always vary.
    """
    lengths_vary = lengths_vary or model.config.architecture in WITH_ENCODER
    keep_documents_uncompiled()
    keep_experts_uncompiled()
    for layer in chain(*model.model.stacks):
        layer.forward = _with_gradients(torch.compile(layer.forward, dynamic=lengths_vary), layer.forward)


def _with_gradients(compiled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what runs compiled in training; without gradients, shapes are too many to compile for."""
    return lambda *inputs: (compiled if torch.is_grad_enabled() else plain)(*inputs)


def choose_compilation(
    choice: str, device: torch.device, flops: float, former: bool | None = None
) -> Compilation:
    """Reconcile --compile with the `flops` of the training, with what is installed, and with a former part.

    Raises `UserError` where compiling is demanded and cannot be done.
    """
    if choice == "never":
        return Compilation(False, "no, by --compile never")
    if choice == "auto" and former is False:
        return Compilation(False, "no, as the run began")
    if choice == "auto" and former is None and device.type == "cpu" and flops < WORTHWHILE_FLOPS:
        return Compilation(False, "no, too short a training to make up for it; --compile always does it")
    if (fault := compiler_fault(device)) is None:
        return Compilation(True, "each layer, which takes the first step about half a minute")
    if choice == "always":
        raise UserError(f"--compile always: nothing can be compiled here ({fault}); install g++, or use auto")
    return Compilation(False, f"no, nothing can be compiled here ({fault}); install g++ for faster steps")


def model_flops(config: ModelConfig, batch: Batch, num_factors: int = 0) -> int:
    """Return the arithmetic that forward and backward of a batch need, whatever more is computed.

    Two operations for each weight of a product and token, and twice that backward; the output layer for
    targets only; for each pair of a query and a key that it sees causally, 4 * head_dim * heads, and twice
    that backward. Padding and recomputation count nothing (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B). Where only `num_factors` weights of adapters train, others need no gradient of their own.
    """
    products, pairs = work(_shapes_of(config), batch.layout)
    products += config.hidden_size * config.vocab_size * batch.num_targets
    if num_factors:
        products = (4 * products + 6 * num_factors * batch.num_real) // 6
    return 6 * products + 12 * config.num_attention_heads * config.head_dim * pairs


_shapes_of = functools.cache(lambda config: model_without_memory(config).model)


def distribute(model: LanguageModel, accelerator: Accelerator, sharding: Sharding | None) -> nn.Module:
    """Put a model, equal on all processes, on their devices; with `sharding`, `model` itself is cut up.

    So that no device has to hold the whole, `fully_shard` moves one layer after the other.
    """
    if sharding is None and accelerator.num_processes == 1:  # accelerate would import torch's compiler first
        return model.to(accelerator.device)
    if sharding is None:
        return accelerator.prepare(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in chain(*model.model.stacks):
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
    return fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; each of them has to call this."""
    return tensor.full_tensor() if is_cut_up(tensor) else tensor


def is_cut_up(tensor: Tensor) -> bool:
    """Say whether a process holds some rows of a tensor only."""
    return hasattr(tensor, "placements")  # as DTensors alone have


def _is_sharded(model: nn.Module) -> bool:
    """Say so of what `fully_shard` has cut up, also while some of its tensors are gathered."""
    return hasattr(model, "unshard")


def own_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Return what this process holds of a tensor, and the number of its first row; writing to it counts."""
    if not is_cut_up(tensor):
        return tensor, 0
    from torch.distributed.tensor import Shard

    assert tensor.placements == (Shard(0),), "FSDP2 cuts along the first dimension"
    mesh = tensor.device_mesh
    _, first_row = Shard.local_shard_size_and_offset(len(tensor), mesh.size(), mesh.get_local_rank())
    return tensor.to_local(), first_row


def cut_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, if `parameter` is cut up and of the same shape."""
    if not is_cut_up(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # No source rank: every process has the whole tensor already.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_model(model: LanguageModel) -> LanguageModel | None:
    """Return a model that is not cut up: the main process has it, the others None; all have to call this."""
    if not _is_sharded(model):
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not weights:  # torch gathers on the main process only
        return None
    result = model_without_memory(model.config)
    result.load_state_dict(weights, assign=True)
    result.model.register_triangle()  # no checkpoint holds it
    return result


def load_weights(model: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Copy whole weights, which every process has, into a model that may be cut up."""
    if not _is_sharded(model):
        model.load_state_dict(weights)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
