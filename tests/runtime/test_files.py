"""Written bytes depend on content alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stages.runtime.files import git_blob_hash, rounded, sha256_file, write_json, write_whole
from stages.runtime.tensors import TensorForm, stream_safetensors, write_safetensors


def test_safetensors_header_is_sorted_whatever_the_order_of_insertion(tmp_path: Path) -> None:
    """The library alone writes several metadata keys in random order (its issue 584)."""
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}
    metadata = {f"key{number}": str(number) for number in range(20)}
    write_safetensors(tmp_path / "x", tensors, metadata)
    write_safetensors(
        tmp_path / "y", dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    )
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    length = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    header = json.loads((tmp_path / "x").read_bytes()[8 : 8 + length])
    assert list(header) == sorted(header)
    assert length % 8 == 0


def test_safetensors_are_read_back_by_the_library(tmp_path: Path) -> None:
    """Tensors that are views of others keep their own values."""
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": matrix, "transposed": matrix.T, "row": matrix[1]}
    write_safetensors(tmp_path / "x", tensors, {"who": "we"})
    loaded = load_file(tmp_path / "x")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"who": "we"}


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    """A metric that is no number is a fault, not a file that other tools cannot read."""
    write_json(tmp_path / "m.json", {"b": 1, "a": 0.1})
    assert (tmp_path / "m.json").read_text(encoding="utf-8") == '{\n  "a": 0.1,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "m.json", {"a": float("nan")})


def test_rounding_keeps_significant_digits() -> None:
    """Small and large metrics are equally readable."""
    assert rounded(0.000123456789) == 0.000123457
    assert rounded(123456789.0) == 123457000.0


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    """Known value of the empty file."""
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_streamed_safetensors_are_the_same_bytes(tmp_path: Path) -> None:
    """A model too large for the memory is written as a small one is, odd lengths included."""
    tensors = {
        "b": torch.arange(3, dtype=torch.float16),
        "a": torch.arange(5, dtype=torch.bfloat16).reshape(5, 1),
        "c": torch.arange(6.0).reshape(2, 3).T,
        "d": torch.tensor(7.0),
    }
    formats = {"a": "BF16", "b": "F16", "c": "F32", "d": "F32"}
    forms = {name: TensorForm(formats[name], tuple(t.shape)) for name, t in tensors.items()}
    write_safetensors(tmp_path / "x", tensors, {"format": "pt"})
    stream_safetensors(tmp_path / "y", forms, tensors.__getitem__, {"format": "pt"})
    assert load_file(tmp_path / "y").keys() == tensors.keys()
    for name, tensor in load_file(tmp_path / "y").items():
        assert torch.equal(tensor, tensors[name])
    same_width = {name: tensors[name] for name in ("c", "d")}
    write_safetensors(tmp_path / "x", same_width)
    stream_safetensors(tmp_path / "y", {n: forms[n] for n in same_width}, tensors.__getitem__)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_streamed_tensor_of_another_form_is_refused(tmp_path: Path) -> None:
    """The header is written first: what follows must be what it says."""
    with pytest.raises(ValueError, match=r"a is torch.float16 \(2,\), not TensorForm"):
        stream_safetensors(
            tmp_path / "x", {"a": TensorForm("F16", (1, 2))}, lambda _: torch.ones(2).half()
        )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"what is up, doc?", "bd9dbf5aae1a3862dd1526723246b20206e5fc37"),
    ],
)
def test_git_blob_hash_is_the_one_that_git_shows(tmp_path: Path, content: bytes, name: str) -> None:
    """The empty file's well-known name, and the example of Pro Git, 10.2."""
    (tmp_path / "x").write_bytes(content)
    assert git_blob_hash(tmp_path / "x") == name


def test_half_written_file_never_has_the_name(tmp_path: Path) -> None:
    """A writer that dies leaves what was there before."""
    target = tmp_path / "file"
    target.write_text("old")

    def die(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_whole(target, die)
    assert target.read_text() == "old"
