"""What a FLUX block's Linear layers act on: the picture's tokens, the prompt's, or both.

A double block has layers of its own for either. A single block sees both in one sequence, the
prompt's tokens first (diffusers, transformer_flux.py, FluxSingleTransformerBlock.forward).
"""

from __future__ import annotations

from typing import Final, Literal

from stages.families.architecture import block_of

Stream = Literal["picture", "text", "both"]
STREAMS: Final[tuple[Stream, ...]] = ("picture", "text", "both")
_TEXT_LAYERS: Final = ("attn.add_", "attn.to_add_out", "ff_context.", "norm1_context.")
_MODULATION: Final = "norm.linear"


def stream_of(module: str) -> Stream | None:
    """Return what a Linear layer acts on; None where it acts on each token of one sequence.

    None is a single block's layer of tokens. Its modulation, and the layers outside of the
    blocks, act on `both` at once.

    Raises:
        ValueError: no FLUX transformer has a Linear layer of that name.
    """
    block = block_of(module)
    if block.stack == "base":
        return "both"
    layer = module.split(".", 2)[2]
    if block.stack == "double":
        return "text" if layer.startswith(_TEXT_LAYERS) else "picture"
    return "both" if layer == _MODULATION else None
