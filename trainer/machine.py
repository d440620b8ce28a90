"""How well a training uses its machine: its arithmetic beside the peak, and memory that it keeps."""

import ctypes
import functools
import sys
import time

import torch
from torch import nn

from dataset.batches import Batch
from model.config import ModelConfig
from model.systems import resource
from model.transformer import LanguageModel

MEGABYTE = 1_000_000
SIDES = {"cpu": (256, 1024, 2048)}
LARGE_SIDES = (4096, 8192)
"""sides of the square matrices that are multiplied to find the peak; accelerators want large ones"""
REPETITIONS = 4
MOST_SECONDS = 0.5
"""larger matrices are left out where they would take longer; smaller ones show the peak there as well"""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""names of malloc.h"""


def model_flops(config: ModelConfig, batch: Batch) -> int:
    """Return the arithmetic that forward and backward of a batch need, whatever more is computed.

    Two operations for each weight of a product and token, and twice that backward; the output layer for
    targets only; for each pair of a query and a key that it sees causally, 4 * head_dim * heads, and twice
    that backward. Padding and recomputation count nothing (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B).
    """
    real = batch.document_ids >= 0
    seen = batch.position_ids[real] + 1
    pairs = sum(int(seen.clamp(max=window or 2**40).sum()) for window in config.layer_windows)
    output = config.hidden_size * config.vocab_size
    products = weights_of_products(config) * batch.num_real + output * batch.num_targets
    return 6 * products + 12 * config.num_attention_heads * config.head_dim * pairs


@functools.cache
def weights_of_products(config: ModelConfig) -> int:
    """Return the number of weights that every token is multiplied with: those of the layers' matrices.

    They are counted in a model without memory, so that it does not matter what a layer is made of.
    """
    with torch.device("meta"):
        layers = LanguageModel(config).model.layers
    return sum(part.weight.numel() for part in layers.modules() if isinstance(part, nn.Linear))


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
