"""Files that are written whole or not at all, and what is said where they cannot be."""

import errno
import os

import pytest
import torch

from model import files


def test_a_file_that_the_disk_does_not_take_is_named_as_the_user_knows_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("former")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` raises it, without a name
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"), files.replacing(path):
        raise full
    with (
        pytest.raises(OSError, match=rf"No such file or directory: '{path}'"),
        files.replacing(path) as partial,
    ):
        partial.read_text()
    with (
        pytest.raises(OSError, match=rf"No such file or directory: '{tmp_path / 'other'}'"),
        files.replacing(path),
    ):
        (tmp_path / "other").read_text()
    assert path.read_text() == "former"


def test_words_about_tensors_that_the_disk_does_not_take_stay(tmp_path, monkeypatch):
    def refuse(*_):
        raise files.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with (
        pytest.raises(OSError, match="cannot be written: I/O error: No space left on device"),
        files.replacing(tmp_path / "model.safetensors") as partial,
    ):
        files.write_tensors(partial, {"a": torch.zeros(1)}, {})
