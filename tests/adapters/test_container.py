"""Opening files that may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages.adapters.container import read_container
from stages.contracts.errors import AdapterError


def refusal(path: Path) -> str:
    """Return the message with which `path` is refused."""
    with pytest.raises(AdapterError) as caught:
        read_container(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_tensors_and_metadata_come_as_stored(tmp_path: Path) -> None:
    """Nothing is converted on the way."""
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2, dtype=torch.bfloat16)}, path, {"key": "text"})
    container = read_container(path)
    assert torch.equal(container.tensors["x"], torch.ones(2, dtype=torch.bfloat16))
    assert container.metadata == {"key": "text"}


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path, kept: int) -> None:
    """A download cut short in length, header or data is named with its size."""
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"x": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(path)
    assert ("is truncated" if kept else "is empty") in message
    assert "Copy or download the file again" in message


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt", "pth", "PT"])
def test_a_pickle_is_refused_before_it_is_opened(tmp_path: Path, suffix: str) -> None:
    """Pickles run code: the name alone is enough to refuse, the file need not exist."""
    assert "is a pickle file" in refusal(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_another_name_is_recognised(tmp_path: Path, zipped: bool) -> None:
    """torch.save, new format or old, stays a pickle whatever it is called."""
    path = tmp_path / "a.safetensors"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "is a pickle under another name" in message
    assert "never opened" in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>please log in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0this is no header", "no safetensors file"),
        (b"\xff" * 100, "no safetensors file"),
    ],
)
def test_other_files_are_refused_by_what_they_are(
    tmp_path: Path, content: bytes, what: str
) -> None:
    """Common accidents of downloading are told apart."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert what in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """A wrong path is said to be one."""
    assert "does not exist" in refusal(tmp_path / "a.safetensors")
    assert "is a folder" in refusal(tmp_path)
