"""What a chat says about itself: what an answer cost, how full the context is, what the mask looks like."""

from eval.chat import ChatSession, ReplyStatistics, TextSession
from eval.plots import describe_blocks, draw_mask, model_panels
from model.strategies import STRATEGIES

WIDEST_PICTURE_TOKENS = 60


def describe_reply(reply: ReplyStatistics) -> str:
    """Return what an answer cost on one line."""
    speed = f"{reply.tokens} tokens, {reply.tokens_per_second:.0f} tokens/s"
    prefill = f"prefill {reply.prefilled_tokens} new + {reply.reused_tokens} reused tokens"
    return f"[{speed}, {prefill} in {reply.prefill_seconds * 1000:.0f} ms, {reply.finish_reason}]"


def describe_probabilities(session: TextSession) -> str:
    """Return each token of the last answer with its log-probability in nats, where they were asked for."""
    completion = session.last.completion
    if not completion.log_probabilities:
        return ""
    tokens = map(session.served.tokenizer.token_text, completion.ids)
    pairs = zip(tokens, completion.log_probabilities, strict=True)
    mean = sum(completion.log_probabilities) / len(completion.ids)
    return f"{' '.join(f'{token}[{score:.2f}]' for token, score in pairs)}, {mean:.3f} nats per token"


def describe_forgotten(session: ChatSession) -> str:
    """Return what the last question pushed out of the context; nothing if it did not."""
    dropped = session.dropped_turns
    return f"the context is full: the oldest turns were forgotten ({dropped})" if dropped else ""


def describe_context(session: ChatSession) -> str:
    """Return how full the context is, and what a new turn reuses under the mask."""
    capacity, used = session.served.model.config.max_position_embeddings, len(session.layout()[0])
    survives = STRATEGIES[session.served.prompt_mask].survives_turns
    reuse = "is reused each turn" if survives else "is prefilled again each turn from where its blocks change"
    return f"{len(session.turns)} turns, {used} of {capacity} tokens of context, which {reuse}"


def describe_mask(session: ChatSession) -> str:
    """Return the blocks of the conversation in words and, where it is short, its mask as a picture."""
    served, (ids, layout) = session.served, session.layout()
    words = f"prompt_mask {served.prompt_mask}, {len(ids)} tokens: {describe_blocks(layout)}"
    if not 0 < len(ids) <= WIDEST_PICTURE_TOKENS:
        return words
    labels = [served.tokenizer.token_text(i) for i in ids.tolist()]
    panels = model_panels(served.prompt_mask, layout, served.model.config)
    return "\n".join([words, *(f"{panel.title}\n{draw_mask(panel.mask, labels)}" for panel in panels)])
