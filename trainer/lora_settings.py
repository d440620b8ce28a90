"""What a training of adapters can be told."""

from dataclasses import dataclass, fields

from model.errors import UserError


@dataclass(frozen=True)
class LoraSettings:
    """Train thin factors beside frozen weights (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

    rank: int | None = None
    """train two factors of this rank beside each matrix, whose weights stay as --init has them; null: train
    the weights"""
    alpha: int | None = None
    """the product of two factors counts alpha / rank times; default: twice the rank"""
    dropout: float | None = None
    """share of the inputs of factors that a step leaves out at random; default: none"""
    target_modules: tuple[str, ...] | None = None
    """linear layers that get factors, by the ends of their names: q_proj v_proj; default: all in the layers,
    of a mixture of experts those of attention"""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if self.rank is None and getattr(self, name) is not None:
                raise UserError(f"--lora.{name}: expected --lora.rank with it, got none")
        for name in ("rank", "alpha"):
            if (value := getattr(self, name)) is not None and not 0 < value < 2**20:
                raise UserError(f"--lora.{name}: expected a number above 0, got {value}")
        if not 0 <= (self.dropout or 0) < 1:
            raise UserError(f"--lora.dropout: expected 0 or more and below 1, got {self.dropout}")
