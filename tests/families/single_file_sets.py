"""The embedded model as a set of single files in FLUX's original key names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.contracts.params import SingleFilesParams
from stages.families.architecture import read_architecture
from stages.families.single_file_keys import SWAPPED, autoencoder_keys, transformer_keys

FILES = {
    "transformer": "flux1-nano.safetensors",
    "autoencoder": "ae.safetensors",
    "text_encoder": "clip_nano.safetensors",
    "text_encoder_2": "t5nano_fp32.safetensors",
}


def export_single_files(model: Path, folder: Path) -> SingleFilesParams:
    """Write the weights of a diffusers folder as single files, and return their names.

    As in the files that people have: CLIP under `text_model.`, T5's embedding there twice.
    """
    folder.mkdir()
    weights = component_tensors(model)
    transformer = weights["transformer"]
    for name in filter(SWAPPED.fullmatch, list(transformer)):
        scale, shift = transformer[name].chunk(2)
        transformer[name] = torch.cat([shift, scale])
    clip = {f"text_model.{name}": tensor for name, tensor in weights["text_encoder"].items()}
    clip["text_model.embeddings.position_ids"] = torch.zeros(1, 77)
    t5 = weights["text_encoder_2"]
    t5["encoder.embed_tokens.weight"] = t5["shared.weight"].clone()
    keys = transformer_keys(read_architecture(model))
    save_file(fused(transformer, keys), folder / FILES["transformer"])
    vae = weights["vae"]
    save_file(fused(vae, autoencoder_keys(vae)), folder / FILES["autoencoder"])
    save_file(clip, folder / FILES["text_encoder"])
    save_file(t5, folder / FILES["text_encoder_2"])
    paths = {role: str(folder / name) for role, name in FILES.items()}
    return SingleFilesParams(**paths, converted=str(folder / "converted"))


def component_tensors(model: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return all tensors of a diffusers folder by component and name."""
    found = {
        path.parent.name: load_file(path)
        for path in sorted(model.glob("*/*.safetensors"))
        if path.parent.name != "captioner"
    }
    assert sorted(found) == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    return found


def settings_only(model: Path, folder: Path) -> Path:
    """Return a copy of a diffusers folder without its weights."""
    ignored = shutil.ignore_patterns("captioner", "*.safetensors")
    return Path(shutil.copytree(model, folder, ignore=ignored))


def fused(
    tensors: Mapping[str, torch.Tensor], keys: Mapping[str, tuple[str, ...]]
) -> dict[str, torch.Tensor]:
    """Return the original file's tensors: each of them ours, one below the other."""
    return {key: torch.cat([tensors[part] for part in parts]) for key, parts in keys.items()}
