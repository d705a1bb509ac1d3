"""The chosen blocks in the words of other programs."""

import re

import numpy as np
import yaml

from stages.contracts.blocks import BASE, numbered_blocks
from stages.families.architecture import Architecture, block_of, lora_modules
from stages.families.chosen_blocks import choose_blocks
from stages.slimming.exports import index_ranges, inspire_vector, retraining_files

FLUX = Architecture(
    double_blocks=19, single_blocks=38, width=3072, latent_channels=16, guidance=True
)
KEPT = {"double.0", "double.1", "double.2", "double.7", "single.1", "single.36", "single.37"}
STRENGTHS = np.array([1.25 if str(block) in KEPT else 0.0 for block in FLUX.blocks])
FILES = retraining_files(FLUX.blocks, STRENGTHS)


def test_ranges_are_as_short_as_they_can_be() -> None:
    """Neighbours are joined, a block by itself stays one number."""
    assert index_ranges(numbered_blocks(3, 0), "double") == ["0-2"]
    assert index_ranges(numbered_blocks(3, 0), "single") == []
    assert index_ranges([FLUX.blocks[place] for place in (0, 2, 3)], "double") == ["0", "2-3"]


def test_our_own_settings_name_the_same_blocks() -> None:
    """`train.blocks` reads them back."""
    patterns = yaml.safe_load(FILES["params.yaml"])["train"]["blocks"]
    chosen, problems = choose_blocks(patterns, FLUX.blocks, "train.blocks")
    assert {str(block) for block in chosen} == KEPT
    assert problems == []


def test_ai_toolkit_finds_exactly_these_layers() -> None:
    """A layer is trained if its name contains a part: those of the kept blocks, no others.

    Block 1 must not mean 10 to 19, nor a double block the single one of that number.
    """
    parts = yaml.safe_load(FILES["ai-toolkit.yaml"])["network"]["network_kwargs"]
    for module in lora_modules(FLUX, "all"):
        name = f"transformer.{module}"
        found = any(part in name for part in parts["only_if_contains"])
        assert found == (str(block_of(module)) in KEPT), name


def test_kohya_gets_one_flag() -> None:
    """Two `--network_args` would be one: the second replaces the first."""
    assert FILES["kohya.txt"].count("--network_args") == 1
    values = dict(re.findall(r'"train_(double|single)_block_indices=([^"]*)"', FILES["kohya.txt"]))
    assert values == {"double": "0-2,7", "single": "1,36-37"}
    nothing = np.array([1.0] + [0.0] * (len(FLUX.blocks) - 1))
    assert (
        '"train_single_block_indices=none"' in retraining_files(FLUX.blocks, nothing)["kohya.txt"]
    )


def test_a_kept_base_is_not_dropped_in_silence() -> None:
    """No trainer's settings can name it, and each says so; they read as before besides."""
    files = retraining_files((*FLUX.blocks, BASE), np.array([*STRENGTHS, 1.0]))
    for name in ("params.yaml", "ai-toolkit.yaml", "kohya.txt"):
        note, _, rest = files[name].partition("\n")
        assert note.startswith("# base is kept, too")
        assert rest == FILES[name]


def test_base_alone_does_not_mean_every_block() -> None:
    """An empty list would train all blocks: there is none, and the files say why."""
    strengths = np.array([0.0] * len(FLUX.blocks) + [1.0])
    files = retraining_files((*FLUX.blocks, BASE), strengths)
    for name in ("params.yaml", "ai-toolkit.yaml"):
        assert yaml.safe_load(files[name]) is None
        assert files[name].startswith("# Only base is kept")
    assert files["kohya.txt"].count("=none") == 2


def test_the_vector_has_58_values() -> None:
    """Base first, then every block of the full file in order, with its strength."""
    values = FILES["inspire.txt"].strip().split(",")
    assert len(values) == 58
    assert [float(value) for value in values] == [1.0, *STRENGTHS]
    with_base = (*FLUX.blocks, BASE)
    assert inspire_vector(with_base, np.array([*STRENGTHS, 0.5])).startswith("0.5,1.25,")


def test_a_sparse_file_has_a_shorter_vector() -> None:
    """Values belong to the blocks that a file has, in order: absent ones have none."""
    present = FLUX.blocks[5:8]
    assert inspire_vector(present, np.array([1.0, 0.0, 1.0])) == "1,1,0,1\n"
