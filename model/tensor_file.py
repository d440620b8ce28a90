"""Files of tensors: safetensors alone, so that opening a stranger's runs nothing that lies in it."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import UserError


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors, and words about them; raises `OSError` where the disk does not take them."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{file} cannot be written: {error}") from error


def open_tensors(file: Path) -> safe_open:
    """Open a file for reading; raises `UserError` for one that is missing, damaged or cut short."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}); the file is damaged or cut short") from error
