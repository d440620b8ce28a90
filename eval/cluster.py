"""Where work goes that one machine need not do alone: jobs of a cluster through submitit."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model.errors import UserError

if TYPE_CHECKING:
    from submitit import AutoExecutor

Cluster = Literal["none", "local", "slurm"]


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Who does the work."""

    cluster: Cluster = "none"
    """submit the work through submitit: to slurm, or to its executor on this machine (local)"""
    partition: str | None = None
    """of slurm"""
    hours_per_cell: float = 12.0
    """after which slurm ends a job, which the same command continues"""

    def __post_init__(self) -> None:
        """Refuse what runs nothing."""
        if self.hours_per_cell <= 0:
            raise UserError(f"--hours_per_cell: expected more than 0, got {self.hours_per_cell:g}")
        if self.partition and self.cluster != "slurm":
            raise UserError("--partition changes nothing without --cluster slurm; leave it out")


def executor_of(settings: ClusterSettings, jobs: Path, **parameters: int) -> "AutoExecutor":
    """Return what submits jobs, whose pickles and logs lie in `jobs`, a new folder: no other's are read.

    Raises `UserError` where submitit, or the cluster, is absent.
    """
    try:
        from submitit import AutoExecutor

        executor = AutoExecutor(jobs, cluster=settings.cluster)
    except ImportError:
        advice = "pip install -r requirements-cluster.txt"
        raise UserError(f"--cluster {settings.cluster} needs submitit; {advice}") from None
    except RuntimeError as error:
        raise UserError(f"--cluster {settings.cluster}: {error}") from None
    slurm = {"slurm_partition": settings.partition} if settings.partition else {}
    executor.update_parameters(timeout_min=int(60 * settings.hours_per_cell), **slurm, **parameters)
    return executor
