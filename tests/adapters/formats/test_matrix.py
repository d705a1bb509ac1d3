"""Every format that we read, times every format that we write, times the four cases."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.kohya_file import write_kohya
from stages.adapters.module import Adapter
from stages.families.architecture import block_of
from tests.adapters.conftest import CASES
from tests.adapters.formats.foreign_files import FORMATS, write_foreign

WRITERS: dict[str, Callable[[Path, Adapter], None]] = {
    "diffusers": write_adapter,
    "kohya": write_kohya,
}
MATRIX = [
    (name, case) for name in FORMATS for case in CASES if (name, case) != ("XLabs", "base only")
]
DOCS = Path(__file__).parents[3] / "docs" / "adapters.md"


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return Delta W of every module that is a plain LoRA."""
    return {module: pair.delta() for module, pair in adapter.modules.items()}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Fail unless Delta W is the same in every module, to float32 rounding."""
    assert found.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "case"), MATRIX)
def test_a_format_is_read_and_written_in_every_other(
    name: str, case: str, shapes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """Delta W of every module is what the file says, and the same after each of our writers."""
    foreign = write_foreign(FORMATS[name], case, shapes)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors", {"note": "kept"})
    read = read_adapter(tmp_path / "a.safetensors")
    close(deltas(read), foreign.deltas)
    assert read.metadata["note"] == "kept"
    for title, write in WRITERS.items():
        path = tmp_path / f"{title}.safetensors"
        write(path, read)
        again = read_adapter(path)
        found = deltas(again)
        # XLabs has no MLP in single blocks, which kohya's linear1 holds: there it is zero.
        for module in found.keys() - foreign.deltas.keys():
            assert not found.pop(module).any(), module
        close(found, foreign.deltas)
        assert again.blocks == read.blocks
        assert again.metadata["note"] == "kept"


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_keeps_ranks_where_layers_had_their_own_a(
    case: str, shapes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """Kohya's fused ranks add up; taken apart again, every module has the rank it came with."""
    foreign = write_foreign(FORMATS["diffusers, ai-toolkit"], case, shapes)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    source = read_adapter(tmp_path / "a.safetensors")
    write_kohya(tmp_path / "b.safetensors", source)
    back = read_adapter(tmp_path / "b.safetensors")
    assert {m: p.rank for m, p in back.modules.items()} == {
        m: p.rank for m, p in source.modules.items()
    }
    write_adapter(tmp_path / "one.safetensors", source)
    write_adapter(tmp_path / "two.safetensors", back)
    one, two = (
        safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one), "not one bit changes"


def test_one_a_for_fused_layers_stays_one(
    shapes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """Kohya's own fused LoRA goes to diffusers and back without growing."""
    foreign = write_foreign(FORMATS["kohya sd-scripts"], "full", shapes)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    write_adapter(tmp_path / "b.safetensors", read_adapter(tmp_path / "a.safetensors"))
    write_kohya(tmp_path / "c.safetensors", read_adapter(tmp_path / "b.safetensors"))
    back = safetensors.torch.load_file(tmp_path / "c.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == {
        name: tuple(tensor.shape) for name, tensor in foreign.tensors.items()
    }


def test_equal_adapters_are_equal_bytes_in_kohyas_format(
    shapes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """Order of modules leaves no trace."""
    foreign = write_foreign(FORMATS["OneTrainer"], "full", shapes)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    one = read_adapter(tmp_path / "a.safetensors")
    other = Adapter(dict(reversed(one.modules.items())), one.metadata)
    write_kohya(tmp_path / "one", one)
    write_kohya(tmp_path / "other", other)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_docs_have_this_very_matrix() -> None:
    """The table in docs/adapters.md has a row per format and a column per case, no more."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (?:read as|.+ \| (?:yes|–) \|)", line)
    ]
    assert rows[0] == ["read as", *CASES]
    assert {row[0]: row[1:] for row in rows[1:]} == {
        name: ["yes" if (name, case) in MATRIX else "–" for case in CASES] for name in FORMATS
    }


def test_blocks_are_those_of_the_case(shapes: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    """A file without block 0 does not shift the others, whatever spells it."""
    for name in FORMATS:
        foreign = write_foreign(FORMATS[name], "without block 0", shapes)
        safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
        blocks = read_adapter(tmp_path / "a.safetensors").blocks
        assert set(blocks) == {block_of(module) for module in foreign.deltas}
        assert "double.0" not in map(str, blocks)
