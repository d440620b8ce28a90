"""The likelihood that a model gives to prepared text, under the mask that it is served with."""

from collections.abc import Callable, Iterator

from dataset.batch_settings import BatchSettings
from dataset.batches import Batch, BatchStream
from dataset.token_store import TokenStore
from eval.served_model import ServedModel
from trainer.validation import Likelihood, TextBytes, left_out, measure


def store_likelihood(
    served: ServedModel,
    store: TokenStore,
    settings: BatchSettings,
    rows: int,
    report: Callable[[int], None] = lambda targets: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Likelihood:
    """Return the likelihood of a token store's targets, those that a training with these settings would have.

    `rows` rows are computed at a time, then `report` gets the number of their targets, and `tell` what is
    too long to be measured. Raises `UserError` for a store that does not go with the settings.
    """
    stream = BatchStream([store], settings)
    if words := left_out(stream):
        tell(f"{store.path}: {words}; rows have {stream.settings.max_seq_len} tokens")

    def reported() -> Iterator[Batch]:
        for batch in stream.batches(epoch=0, rows_per_step=rows):
            yield batch
            report(batch.num_targets)

    return measure(served.model, reported(), TextBytes(served.tokenizer))
