"""Lets a machine look to its processes as if it multiplied bfloat16 natively, or as if it did not."""

import os

import torch

CHOICE = "SIGHTLINE_TESTS_BFLOAT16"
"""environment variable by which forked trainings do the same: native, absent, or not set for what is there"""


def force_units() -> None:
    """Replace what torch says of the processor, if a choice was made; it multiplies bfloat16 either way."""
    if choice := os.environ.get(CHOICE):
        units = {"amx_bf16": choice == "native"}
        torch.cpu.get_capabilities = lambda: units
