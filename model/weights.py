"""Weights on disk: safetensors, whole or in shards, held against what is expected before they are read.

A header is small and true (the library checks it against the file), a `config.json` may say anything. Another
project's `.pth` is read as tensors alone: nothing is ever unpickled.
"""

import math
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from model.errors import UserError
from model.files import open_tensors, read_object

DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MOST_FAULTS = 8
Shapes = Mapping[str, tuple[int, ...]]


class WeightFiles:
    """The weights of a model directory: their shapes at once, their values when asked for."""

    def __init__(self, path: Path, skipped: str = "$^") -> None:
        """Read the headers, but not of names that match `skipped`.

        Raises `UserError` for files that are missing, damaged or of another kind.
        """
        self.path, self.shapes, self._file_of = path, {}, {}
        for file in _files(path):
            for name, (dtype, shape) in _header(file).items():
                if re.search(skipped, name):
                    continue
                if dtype not in DTYPES:
                    fault = f"{name} holds values that are no weights"
                    raise UserError(f"{fault} ({dtype}, not {', '.join(DTYPES)})")
                if 0 in shape:  # of which a header of a few bytes may tell 2^60
                    raise UserError(f"{name} holds no values (shape {shape}); copy the model again")
                if name in self.shapes:
                    raise UserError(f"{name} is in {self._file_of[name].name} and in {file.name}")
                self.shapes[name], self._file_of[name] = shape, file

    def read(self) -> dict[str, Tensor]:
        """Return all tensors in float32; raises `UserError` where they do not fit into memory."""
        check_memory(self.shapes, self.path)
        tensors: dict[str, Tensor] = {}
        for file in dict.fromkeys(self._file_of.values()):
            with open_tensors(file) as opened:
                names = [name for name, of in self._file_of.items() if of == file]
                tensors |= {name: as_weight(name, opened.get_tensor(name)) for name in names}
        return tensors


def num_layers(shapes: Shapes, beginning: str = "model.layers.") -> int:
    """Return how many layers the names of weights with this beginning count."""
    numbers = {name.removeprefix(beginning).split(".")[0] for name in shapes if name.startswith(beginning)}
    return sum(map(str.isdecimal, numbers))  # not the largest: it may be any


def read_pth(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a `.pth` file in float32, without what torch compilation puts before names.

    Raises `UserError` for a file that holds anything else; no code in it is run.
    """
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    except Exception as error:  # of pickles, archives and their contents; the advice in it is not ours
        raise UserError(f"{file} is not a file of tensors alone ({type(error).__name__})") from None
    if not isinstance(values, dict) or not all(map(_is_plain, values.values())):
        raise UserError(f"{file}: expected names and tensors, got other values; save the model's state alone")
    tensors = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in values.items()}
    if len(tensors) < len(values):
        raise UserError(f"{file}: a name stands twice, once with _orig_mod. before it; save one of both")
    return {name: as_weight(name, tensor) for name, tensor in tensors.items()}


def _is_plain(value: object) -> bool:
    """Say whether a value is a tensor with all of its numbers: neither sparse, nested nor a mere shape."""
    is_laid_out = isinstance(value, Tensor) and value.layout is torch.strided
    return is_laid_out and not (value.is_nested or value.is_meta)


def as_weight(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in float32; raises `UserError` for integers and for numbers that are not finite."""
    if not tensor.is_floating_point() or tensor.itemsize < 2 or not bool(tensor.isfinite().all()):
        raise UserError(f"{name} holds values that are no weights ({tensor.dtype}, all must be finite)")
    return tensor.float()


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change when a weight of a model on the CPU does."""
    digest = sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def check_shapes(expected: Shapes, got: Shapes, path: Path) -> None:
    """Raise `UserError` that lists the tensors which are missing, unknown or misshapen."""
    faults = [f"missing {name}" for name in expected.keys() - got.keys()]
    faults += [f"unknown {name}" for name in got.keys() - expected.keys()]
    faults += [
        f"{name} has shape {got[name]}, expected {expected[name]}"
        for name in expected.keys() & got.keys()
        if got[name] != expected[name]
    ]
    if faults:
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        listed = "; ".join(sorted(faults)[:MOST_FAULTS])
        raise UserError(f"{path} does not fit its configuration: {listed}{more}")


def check_memory(shapes: Shapes, path: Path) -> None:
    """Raise `UserError` where weights of these shapes do not fit into memory as float32."""
    needed, free = 4 * sum(map(math.prod, shapes.values())), _free_memory()
    if needed > free:
        fault = f"{path} needs {needed / 1e9:,.1f} GB of memory as float32 but {free / 1e9:,.1f} GB are free"
        raise UserError(f"{fault}; close other programs or use a larger machine")


def _free_memory() -> int:
    """Return the bytes that can still be had; where the system does not say, all that the machine has."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _files(path: Path) -> list[Path]:
    """Return `model.safetensors`, or the numbered shards of `transformers`, those of its index if there."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    files = sorted(path.glob("model-*-of-*.safetensors"))
    if index.is_file():
        shards = read_object(index, "copy the model again").get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else [None]
        if not all(isinstance(name, str) and name and Path(name).name == name for name in names):
            raise UserError(f"{index}: weight_map must name a file of this folder for each tensor")
        files = [path / name for name in sorted(set(names))]
    if not files:
        raise UserError(f"{path} holds no model.safetensors; expected a model directory")
    return files


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return kind and shape of each tensor."""
    with open_tensors(file) as opened:
        parts = {name: opened.get_slice(name) for name in opened.offset_keys()}
    return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
