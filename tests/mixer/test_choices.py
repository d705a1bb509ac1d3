"""Strengths by name."""

from pathlib import Path

from mixer.choices import as_patterns, bands, presets, read_recommended, read_shares
from stages.contracts.blocks import BASE, BlockId, numbered_blocks
from stages.contracts.params import load_params
from stages.families.chosen_blocks import names_block

BLOCKS = (*numbered_blocks(3, 4), BASE)
ROOT = Path(__file__).parents[2]


def test_bands_are_the_stacks_and_the_groups_of_the_params() -> None:
    """A group without a block of this LoRA is no choice."""
    params = load_params(ROOT / "params.yaml").render
    groups = {"edge": ["double.0", "single.3"], "inputs": ["base"], "absent": ["single.9-12"]}
    found = bands(params.model_copy(update={"groups": groups}), BLOCKS)
    assert list(found) == ["double", "single", "edge", "inputs"]
    assert [str(block) for block in found["edge"]] == ["double.0", "single.3"]
    assert found["inputs"] == (BASE,)
    assert found["double"] == BLOCKS[:3]


def test_presets_say_something_of_every_block() -> None:
    """The recommended set is one of them where slim has found one."""
    found = presets(BLOCKS, None)
    assert list(found) == ["all", "none", "double only", "single only"]
    assert {sum(choice.values()) for choice in found.values()} == {8.0, 0.0, 3.0, 4.0}
    assert all(choice.keys() == set(BLOCKS) for choice in found.values())
    recommended = dict.fromkeys(BLOCKS, 0.5)
    assert presets(BLOCKS, recommended)["recommended"] is recommended


def test_runs_of_equal_strength_are_one_pattern() -> None:
    """What is off is not named, and the patterns mean the same blocks again."""
    strengths = dict(zip(BLOCKS, [1.0, 1.0, 0.5, 0.5, 0.0, 0.7, 0.7, 1.2], strict=True))
    patterns = as_patterns(strengths, BLOCKS)
    assert patterns == {
        "double.0-1": 1.0,
        "double.2": 0.5,
        "single.0": 0.5,
        "single.2-3": 0.7,
        "base": 1.2,
    }
    for block in BLOCKS[:-1]:
        named = [
            value for key, value in patterns.items() if key != "base" and names_block([key], block)
        ]
        assert named == [strengths[block]] * (strengths[block] > 0.0)
    assert as_patterns(dict.fromkeys(BLOCKS, 0.0), BLOCKS) == {}


def test_tables_of_another_lora_say_nothing(project: Path) -> None:
    """Shares and strengths count for exactly the blocks that they are about."""
    blocks = numbered_blocks(2, 3)
    shares = read_shares(project / "data/attribute/shares.csv", blocks)
    assert shares is not None
    assert shares[BlockId.parse("double.0")] == 0.3
    recommended = read_recommended(project / "data/slim/strengths.csv", blocks)
    assert recommended is not None
    assert recommended[BlockId.parse("double.1")] == 1.2
    assert read_shares(project / "data/attribute/shares.csv", BLOCKS) is None
    assert read_recommended(project / "missing.csv", blocks) is None
