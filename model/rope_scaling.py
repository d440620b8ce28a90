"""How rotary positions reach over a longer context: the record of it; `model/layers.py` computes it."""

from dataclasses import dataclass
from typing import Literal

from model.errors import UserError
from model.typed_json import read_as

_SCALING_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": ((), ()),
    "llama3": (("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (("original_max_position_embeddings",), ("beta_fast", "beta_slow", "attention_factor")),
}
"""what each way to scale rotary positions asks for beside its factor, and what it may be told"""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are spread over a longer context, in the words of `transformers`.

    Raises `UserError` for what is missing, and for what its type does not take.
    """

    rope_type: Literal["linear", "llama3", "yarn"]
    """linear slows all wavelengths (Chen et al. 2023, arXiv 2306.15595), the others the long ones
    (Dubey et al. 2024, arXiv 2407.21783; Peng et al. 2023, arXiv 2309.00071)"""
    factor: float
    """how many times longer the context becomes"""
    original_max_position_embeddings: int | None = None
    """tokens of the context before"""
    low_freq_factor: float | None = None
    """wavelengths that fit less often into that context are slowed by the factor (llama3)"""
    high_freq_factor: float | None = None
    """those that fit more often are not (llama3)"""
    beta_fast: float | None = None
    """turns in that context from which on a wavelength is not slowed; null for 32 (yarn)"""
    beta_slow: float | None = None
    """turns up to which it is slowed by the factor; null for 1 (yarn)"""
    attention_factor: float | None = None
    """what queries and keys are multiplied by; null for 0.1 ln(factor) + 1 (yarn)"""

    def __post_init__(self) -> None:
        needed, allowed = _SCALING_KEYS[self.rope_type]
        given = {key: value for key, value in vars(self).items() if value is not None and key != "rope_type"}
        for key, value in given.items():
            if not 0 < value < 2**40:
                raise UserError(f"rope_scaling: {key} must be greater than 0 and below 2^40, got {value}")
        low, high = self.low_freq_factor, self.high_freq_factor
        missing = {*needed} - given.keys()
        excess = given.keys() - {"factor", *needed, *allowed}
        is_empty_band = not missing and self.rope_type == "llama3" and low >= high
        if missing or excess or is_empty_band or self.factor < 1:
            expected = ", ".join(("factor of at least 1", *needed))
            raise UserError(f"rope_scaling {self.rope_type}: expected {expected}, got {given}")


def longer(text: str, context: int) -> RopeScaling:
    """Return what `yarn:4` asks for, after training on texts of up to `context` tokens.

    Raises `UserError` for other words.
    """
    rope_type, _, factor = text.partition(":")
    is_number = factor.replace(".", "", 1).isdecimal()
    words = {"rope_type": rope_type, "factor": float(factor) if is_number else factor}
    if rope_type != "linear":
        words["original_max_position_embeddings"] = context
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope_type == "llama3" else {}
    try:
        return read_as(RopeScaling, words | bounds, "it")
    except ValueError as error:
        raise UserError(f"--model.rope_scaling {text}: {error}") from None
