"""A preparation over several machines: tasks encode the sources, and this process makes one store of them.

The store is that of one machine, byte for byte: blocks are the same wherever they are encoded, and come into
it in the order of the sources.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from secrets import token_hex
from typing import Any

from dataset.encoding import Encoded, PreparationSettings
from dataset.preparation import Sources, write_store
from dataset.printing import LINE_EVERY_SECONDS, Bars
from dataset.shares import FAILED, Share, encode_shares, read_share, shares_of
from dataset.sources import size_of
from dataset.tables import HUB, on_hub
from eval.cluster import ClusterSettings, executor_of
from eval.running import LOOK_EVERY_SECONDS
from model.errors import UnfinishedError, UserError
from model.files import beside
from model.systems import num_cores


def write_store_by_tasks(
    settings: PreparationSettings, cluster: ClusterSettings, tasks: int
) -> tuple[dict[str, Any], bool]:
    """Write the store of `write_store`, its sources divided among `tasks` jobs of a cluster.

    What tasks have done stays beside `out` until all is: a task or this process that was killed costs no more
    than the block it was at. Raises what `write_store` does, and `UserError` for a hub name without a split.
    """
    folder = beside(Path(settings.out).resolve(), "shares")
    of_hub = [name for name in settings.data if name.startswith(HUB)]
    if any_split := [name for name in of_hub if not on_hub(name)["split"]]:
        wanted = f"{any_split[0]}: expected a split after it with --cluster, as {any_split[0]}:train"
        raise UserError(f"{wanted}; else only the log of a task would tell which splits are not read")

    def encode(
        settings: PreparationSettings, sources: Sources, request: dict[str, Any], num_done: int
    ) -> Iterator[Encoded]:
        shares = shares_of(folder, sources, request)
        if missing := [share for share in shares if not share.blocks.exists()]:
            _run(settings, missing, cluster, tasks, folder / "jobs" / token_hex(4))
        return islice(chain.from_iterable(map(read_share, shares)), num_done, None)

    written = write_store(settings, encode)
    shutil.rmtree(folder, ignore_errors=True)
    return written


def _run(
    settings: PreparationSettings, shares: list[Share], cluster: ClusterSettings, tasks: int, jobs: Path
) -> None:
    """Have all shares encoded; raises `UnfinishedError` where one is not, when the others are."""
    # The largest come first and are dealt out in turn, so that tasks have about as much to do.
    shares = sorted(shares, key=lambda share: -size_of(share.source))
    executor = executor_of(cluster, jobs, cpus_per_task=settings.num_workers or num_cores())
    dealt = [shares[n::tasks] for n in range(min(tasks, len(shares)))]
    running = executor.map_array(partial(encode_shares, settings), dealt)
    try:
        _wait(running, shares)
    finally:
        for job in running:
            if not job.done():
                job.cancel()
    if failed := [share for share in shares if not share.blocks.exists()]:
        others = f" (and {len(failed) - 1} more sources)" if len(failed) > 1 else ""
        raise UnfinishedError(f"{_words(failed[0], jobs)}{others}; the same command goes on")


def _wait(running: Sequence[Any], shares: Sequence[Share]) -> None:
    """Return when all tasks have ended, and show how they go."""
    sizes = {share: size_of(share.source) for share in shares}
    total = max(1, sum(sizes.values()))
    with closing(Bars(sys.stderr, LINE_EVERY_SECONDS)) as bars:
        while at_work := sum(not job.done() for job in running):
            done = [share for share in shares if share.blocks.exists()]
            words = f"{len(done)} of {len(shares)} sources, {at_work} tasks at work or waiting"
            bars.show("encoding", sum(map(sizes.get, done)), total, words)
            time.sleep(LOOK_EVERY_SECONDS)


def _words(share: Share, jobs: Path) -> str:
    """Return why a share is not whole."""
    file = share.folder / FAILED
    if file.exists():
        return file.read_text(encoding="utf-8", errors="replace").strip()
    return f"{share.source}: its task was killed, of which {jobs} may tell more"
