"""What an answer can be told about its tokens; knows no torch, so help texts load fast."""

from dataclasses import dataclass

from model.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop; raises `UserError` for values that make no sense."""

    max_new_tokens: int = 256
    """most tokens to generate"""
    temperature: float = 0.0
    """divides the logits; 0 takes the most probable token"""
    top_k: int | None = None
    """keep only this many most probable tokens"""
    top_p: float = 1.0
    """keep the most probable tokens that reach this much probability together"""
    min_p: float = 0.0
    """keep tokens of at least this share of the most probable one's probability"""
    repetition_penalty: float = 1.0
    """above 1 makes tokens that stand in prompt or answer less likely"""
    seed: int = 0
    """of the random choice; the same seed gives the same answer, whatever else is in the batch"""
    log_probabilities: bool = False
    """also return the model's log-probability of each token, before any of the above"""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_new_tokens", 0, None),
            ("temperature", 0, 1e6),
            ("top_k", 1, None),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("repetition_penalty", 1e-6, 1e6),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= (value if high is None else high):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise UserError(f"{name} must be {bound}, got {value}")
