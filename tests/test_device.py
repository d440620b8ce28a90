"""The choice of precision, and its reason; where a tracker keeps what it is told; what the machine gives."""

import os
import platform
import resource
from multiprocessing.connection import Connection

import pytest
import torch
from forked_runs import SERVER

from model.errors import UserError
from trainer import device
from trainer.device import Precision, choose_precision, keep_freed_memory, native_precision, peak_flops
from trainer.settings import PretrainSettings

NATIVE = Precision(torch.float16, "this machine does")


@pytest.mark.parametrize(
    "dtype, launcher, expected",
    [
        ("auto", "no", NATIVE),
        ("auto", "bf16", Precision(torch.bfloat16, "by --mixed_precision of the launcher")),
        ("auto", "fp16", Precision(torch.float16, "by --mixed_precision of the launcher")),
        ("float32", "no", Precision(torch.float32, "by --dtype")),
        ("bfloat16", "no", Precision(torch.bfloat16, "by --dtype")),
        ("bfloat16", "bf16", Precision(torch.bfloat16, "by --dtype")),
        ("float16", "fp16", Precision(torch.float16, "by --dtype")),
    ],
)
def test_the_dtype_follows_the_user_then_the_launcher_then_the_hardware(dtype, launcher, expected):
    assert choose_precision(dtype, launcher, NATIVE) == expected


@pytest.mark.parametrize(
    "dtype, launcher", [("float32", "bf16"), ("float32", "fp16"), ("bfloat16", "fp16"), ("float16", "bf16")]
)
def test_a_dtype_against_the_launcher_is_refused(dtype, launcher):
    with pytest.raises(UserError, match=f"--dtype {dtype} contradicts --mixed_precision {launcher}"):
        choose_precision(dtype, launcher, NATIVE)


def test_a_compiler_of_the_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(UserError, match="expected dynamo_backend no .* got inductor; use --compile"):
        device.find_device(PretrainSettings(data=("d",), out="o", max_steps=1))


def test_variables_that_accelerate_cannot_read_are_one_line(monkeypatch):
    def reads(**settings):
        int("abc")

    monkeypatch.setattr(device, "Accelerator", reads)
    with pytest.raises(UserError, match="accelerate cannot read its environment variables: invalid literal"):
        device.find_device(PretrainSettings(data=("d",), out="o", max_steps=1))


@pytest.mark.parametrize(
    "word, is_asked", [("1", True), ("True", True), ("yes", True), ("0", False), ("", False)]
)
def test_a_cpu_is_asked_for_in_the_words_of_accelerate(word, is_asked, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", word)
    assert device.is_cpu_asked() == is_asked


def test_a_precision_of_the_launcher_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="expected one of no, bf16, fp16 .* got fp8"):
        choose_precision("auto", "fp8", NATIVE)


@pytest.mark.parametrize("units, dtype", [({"amx_bf16": True}, torch.bfloat16), ({}, torch.float32)])
def test_a_processor_takes_bfloat16_where_it_has_a_unit_for_it(monkeypatch, units, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert native_precision(uses_cpu=True).dtype == dtype


@pytest.mark.parametrize(
    "capability, has_bfloat16, dtype",
    [
        ((9, 0), True, torch.bfloat16),
        ((7, 5), False, torch.float16),  # T4, RTX 20
        ((7, 0), False, torch.float16),  # V100
        ((6, 1), False, torch.float32),  # GTX 10, slower in float16
    ],
)
def test_a_gpu_without_bfloat16_takes_float16_where_it_is_fast(monkeypatch, capability, has_bfloat16, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert native_precision(uses_cpu=False).dtype == dtype


@pytest.mark.parametrize(
    ("written", "is_offline"),
    [
        ("machine api.wandb.ai login user password key", False),
        ("machine example.org login user password key", True),
        ("machine", True),  # damaged
        (None, True),
    ],
)
def test_wandb_is_offline_unless_a_login_left_its_key(monkeypatch, tmp_path, written, is_offline):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # and what is set from here on goes at the end
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if written:
        (tmp_path / "netrc").write_text(written)
    assert device._checked_tracker("wandb", str(tmp_path)) == "wandb"
    with pytest.raises(UserError, match="^--tracker wandb: expected --out without control characters, got /"):
        device._checked_tracker("wandb", str(tmp_path / "\x1b[31m/run"))
    assert os.environ.get("WANDB_MODE") == ("offline" if is_offline else None)


@pytest.mark.parametrize("is_logged_in", [False, True])
def test_swanlab_is_offline_unless_a_login_left_its_key(monkeypatch, tmp_path, is_logged_in):
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(device, "get_available_trackers", lambda: ["swanlab"])
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path))
    if is_logged_in:
        (tmp_path / ".netrc").write_text("machine api.swanlab.cn login user password key")
    assert device._checked_tracker("swanlab", ".") == "swanlab"
    assert os.environ.get("SWANLAB_MODE") == (None if is_logged_in else "offline")


def test_measuring_the_peak_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's library can be told to keep memory")
def test_freed_memory_is_kept_for_the_tensors_of_later_steps():
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=tell_cleared_pages, args=(theirs,))
    process.start()
    theirs.close()  # an end without an answer is an error
    first, *_, fourth, fifth = ours.recv()
    assert fourth + fifth < 0.5 * first  # twice the first without it


def tell_cleared_pages(pipe: Connection) -> None:
    """Say of each of some steps how many pages the system cleared for it."""
    keep_freed_memory()
    x, found = torch.ones(2**23), []  # 32 MB
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [x + n for n in range(6)]
        del kept
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    pipe.send(found)
