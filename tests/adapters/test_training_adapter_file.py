"""Which file a training adapter is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from stages.adapters.files import write_adapter
from stages.adapters.module import Adapter, LoraPair
from stages.adapters.training_adapter import open_training_adapter
from stages.contracts.errors import AdapterError
from stages.contracts.params import TrainingAdapterParams
from stages.runtime.files import sha256_file

MODULE = "transformer_blocks.0.attn.to_q"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A LoRA of one layer."""
    path = tmp_path / "helper.safetensors"
    write_adapter(path, Adapter({MODULE: LoraPair(torch.ones(2, 4), torch.ones(3, 2), 2.0)}, {}))
    return path


def params(file: Path | str, **change: str | None) -> TrainingAdapterParams:
    """Return params of a file on this machine, changed."""
    document = {"file": str(file), "repository": None, "revision": None, "sha256": None}
    return TrainingAdapterParams(**document | change)


def test_a_file_with_its_hash_is_read(file: Path) -> None:
    """The adapter of the file, whole."""
    assert list(open_training_adapter(params(file, sha256=sha256_file(file))).modules) == [MODULE]


def test_another_file_is_refused(file: Path) -> None:
    """A file that changed after params.yaml was written would train another LoRA."""
    with pytest.raises(AdapterError, match="is another one") as caught:
        open_training_adapter(params(file, sha256="0" * 64))
    assert sha256_file(file) in str(caught.value)


def test_only_a_plain_lora_holds_a_base_model(tmp_path: Path) -> None:
    """Training goes beside two matrices per layer: LoKr and the like are refused by name."""
    parts = {
        "lora_unet_img_in.lokr_w1": torch.ones(2, 2),
        "lora_unet_img_in.lokr_w2": torch.ones(2, 2),
    }
    save_file(parts, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="no plain LoRA in: x_embedder"):
        open_training_adapter(params(tmp_path / "a.safetensors", sha256="0" * 64))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(AdapterError, match=r"absent\.safetensors: does not exist"):
        open_training_adapter(params(tmp_path / "absent.safetensors", sha256="0" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "pinned by its hash: set sha256"),
        ({"repository": "ostris/FLUX.1-schnell-training-adapter"}, "go together"),
        ({"revision": COMMIT, "sha256": "0" * 64}, "go together"),
        ({"repository": "a/b", "revision": "main"}, "revision"),
        ({"sha256": "abc"}, "sha256"),
    ],
)
def test_what_is_not_pinned_is_refused(change: dict[str, str], message: str) -> None:
    """A branch name or a bare path could be another file tomorrow."""
    with pytest.raises(ValidationError, match=message):
        params("pytorch_lora_weights.safetensors", **change)


def test_a_repository_in_the_cache_is_used(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cache holds for the commit is the file; its hash is checked too where given."""
    monkeypatch.setattr("stages.adapters.training_adapter.download", lambda *_: tmp_path)
    pinned = params(file.name, repository="blocklens/helper", revision=COMMIT)
    assert list(open_training_adapter(pinned).modules) == [MODULE]
    with pytest.raises(AdapterError, match="is another one"):
        open_training_adapter(pinned.model_copy(update={"sha256": "1" * 64}))
