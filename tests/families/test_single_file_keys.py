"""The original key names are those that diffusers' own converters read, at FLUX.1's depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders import single_file_utils

from stages.families.architecture import Architecture
from stages.families.single_file_keys import autoencoder_keys, text_encoder_keys, transformer_keys
from stages.families.single_file_plan import Piece, match_tensors
from stages.runtime.tensors import TensorForm

FLUX = Architecture(
    double_blocks=19, single_blocks=38, width=3072, latent_channels=16, guidance=True
)


def applied(piece: Piece, checkpoint: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the tensor that a piece describes."""
    rows = [checkpoint[piece.key][start:end] for start, end in piece.rows]
    return torch.cat(rows).reshape(piece.form.shape)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_transformer_of_flux_dev_is_split_as_by_diffusers(prefix: str) -> None:
    """All 780 keys of FLUX.1-dev, with its own number of rows, to the bit.

    One column stands for all, because conversion never looks at columns: 13 MB in place of 24 GB.
    """
    with torch.device("meta"):
        state = FluxTransformer2DModel(guidance_embeds=True).state_dict()
    expected = {name: (tensor.shape[0], 1)[: tensor.dim()] for name, tensor in state.items()}
    keys = transformer_keys(FLUX)
    assert (len(expected), len(keys)) == (1160, 780)
    generator = torch.Generator().manual_seed(0)
    checkpoint = {}
    for key, parts in keys.items():
        rows = sum(expected[part][0] for part in parts)
        shape = (rows, *expected[parts[0]][1:])
        checkpoint[prefix + key] = torch.rand(shape, generator=generator)
    forms = {key: TensorForm("F32", tuple(t.shape)) for key, t in checkpoint.items()}
    plan, problems = match_tensors("transformer", Path("flux1-dev"), forms, expected, FLUX)
    assert not problems
    ours = {name: applied(piece, checkpoint) for name, piece in plan.items()}
    theirs = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    assert ours.keys() == theirs.keys() == expected.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_autoencoder_with_attention_is_read_as_by_diffusers() -> None:
    """FLUX's kind: two resnets a block, attention in the middle, no quantising convolutions."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    state = model.state_dict()
    keys = autoencoder_keys(state)
    assert len(keys) == len(state) == 244
    assert "decoder.up.3.upsample.conv.weight" in keys
    checkpoint = {}
    for key, (name,) in keys.items():
        tensor = state[name]
        is_convolution = ".attn_1." in key and tensor.dim() == 2
        checkpoint[key] = tensor[:, :, None, None] if is_convolution else tensor
    theirs = single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), model.config)
    assert theirs.keys() == state.keys()
    forms = {key: TensorForm("F32", tuple(tensor.shape)) for key, tensor in checkpoint.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    plan, problems = match_tensors("vae", Path("ae"), forms, shapes, FLUX)
    assert not problems
    for name, tensor in theirs.items():
        assert torch.equal(applied(plan[name], checkpoint), tensor), name
        assert torch.equal(state[name], tensor), name


def test_unguided_model_has_no_guidance_keys() -> None:
    """FLUX.1-schnell's file lacks them, and is whole without."""
    unguided = Architecture(
        double_blocks=1, single_blocks=1, width=8, latent_channels=4, guidance=False
    )
    assert not [key for key in transformer_keys(unguided) if "guidance" in key]


def test_other_autoencoders_are_no_flux() -> None:
    """A name that no rule knows is an error, not a guess."""
    with pytest.raises(ValueError, match=r"tensor called 'encoder\.stem\.weight'"):
        autoencoder_keys(["encoder.stem.weight"])


def test_text_encoders_keep_their_names() -> None:
    """Their original files were written by transformers."""
    assert text_encoder_keys(["shared.weight"]) == {"shared.weight": ("shared.weight",)}
