"""What disks and other processes do to a training, in one line that says how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed import DistError

from model.errors import UserError
from trainer.run_dir import RunDirectory
from trainer.sharding import whole


@contextmanager
def explaining(run_dir: RunDirectory) -> Iterator[None]:
    """Raise `UserError` for a full or read-only disk and for processes that are gone."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error}; {run_dir.last_save}") from error
    except RuntimeError as error:
        if not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"another process of this training is gone (it has said why if it could); {run_dir.last_save}"
        ) from error


def has_finite_weights(model: nn.Module) -> bool:
    """Say whether every parameter is finite; where they are shared out, every process must ask."""
    return all(bool(whole(parameter.isfinite().all())) for parameter in model.parameters())
