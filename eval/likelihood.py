"""The likelihood that a model gives to prepared text, under the mask that it is served with."""

from collections.abc import Callable, Iterator

from dataset.batches import Batch, BatchStream
from dataset.settings import BatchSettings
from dataset.token_store import TokenStore
from eval.served_model import ServedModel
from trainer.validation import Likelihood, bytes_of_tokens, measure


def store_likelihood(
    served: ServedModel,
    store: TokenStore,
    max_seq_len: int,
    rows: int,
    report: Callable[[int], None] = lambda targets: None,
) -> Likelihood:
    """Return the likelihood of a token store's targets, those that a training with the same mask would have.

    Rows hold at most `max_seq_len` tokens; `rows` of them are computed at a time, then `report` gets the
    number of their targets. Raises `UserError` for a store that does not go with the mask.
    """
    settings = BatchSettings(max_seq_len=max_seq_len, prompt_mask=served.prompt_mask)
    stream = BatchStream([store], settings)

    def reported() -> Iterator[Batch]:
        for batch in stream.batches(epoch=0, rows_per_step=rows):
            yield batch
            report(batch.num_targets)

    return measure(served.model, reported(), bytes_of_tokens(served.tokenizer))
