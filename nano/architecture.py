"""The shapes of every part of nano-flux: FLUX.1-dev's own classes and block counts, small."""

from typing import Final

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

WIDTH: Final = 64
LATENT_CHANNELS: Final = 8
TEXT_TOKENS: Final = 32  # what T5 is given: the longest sentence with two new words fits
CLIP_TOKENS: Final = 77  # FLUX.1's own


def build_autoencoder(scaling_factor: float = 1.0, shift_factor: float = 0.0) -> AutoencoderKL:
    """An untrained AutoencoderKL: 8 x 8 pixels become one latent position of 8 channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_transformer(double_blocks: int, single_blocks: int) -> FluxTransformer2DModel:
    """An untrained FluxTransformer2DModel of width 64; FLUX.1 has 19 double and 38 single blocks.

    The axes of the rotary embedding keep FLUX.1's proportions (16 : 56 : 56) in a head of 16.
    """
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=16,
        num_attention_heads=WIDTH // 16,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def build_clip(vocabulary_size: int, begin: int, end: int) -> CLIPTextModel:
    """An untrained CLIP text encoder; `begin` and `end` are token numbers, `end` also pads."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=WIDTH // 16,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def build_t5(vocabulary_size: int) -> T5EncoderModel:
    """An untrained T5 encoder of the gated kind that FLUX.1 uses."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=WIDTH,
            d_kv=16,
            d_ff=4 * WIDTH,
            num_layers=2,
            num_heads=WIDTH // 16,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=False,
        )
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's scheduler; source: scheduler/scheduler_config.json of its repository."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
