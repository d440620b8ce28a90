"""The choice of precision, and its reason."""

import pytest
import torch

from model.errors import UserError
from trainer.device import choose_precision


@pytest.mark.parametrize(
    "dtype, launcher, native, expected, reason",
    [
        ("auto", "no", None, torch.float32, "nothing here multiplies bfloat16 natively"),
        ("auto", "no", "amx_bf16", torch.bfloat16, "amx_bf16 multiplies it natively"),
        ("auto", "bf16", None, torch.bfloat16, "by --mixed_precision of the launcher"),
        ("float32", "no", "amx_bf16", torch.float32, "by --dtype"),
        ("bfloat16", "no", None, torch.bfloat16, "by --dtype"),
        ("bfloat16", "bf16", None, torch.bfloat16, "by --dtype"),
    ],
)
def test_the_dtype_follows_the_user_then_the_launcher_then_the_hardware(
    dtype, launcher, native, expected, reason
):
    precision = choose_precision(dtype, launcher, native)
    assert (precision.dtype, precision.reason) == (expected, reason)


def test_a_dtype_against_the_launcher_is_refused():
    with pytest.raises(UserError, match="--dtype float32 contradicts --mixed_precision bf16"):
        choose_precision("float32", "bf16", None)


@pytest.mark.parametrize("launcher", ["fp16", "fp8"])
def test_half_precision_with_a_small_range_is_refused(launcher):
    with pytest.raises(
        UserError, match=f"expected mixed precision bf16 or no from the launcher, got {launcher}"
    ):
        choose_precision("auto", launcher, None)
