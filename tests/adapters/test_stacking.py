"""Several LoRAs as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.adapters.dora import DoraPair
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.module import Adapter
from stages.adapters.pair import LoraPair, Origin
from stages.adapters.stacking import Part, stack
from stages.contracts.errors import AdapterError
from stages.families.noise import keyed_normal
from tests.adapters.conftest import plant


@pytest.fixture
def other(shapes: dict[str, tuple[int, int]]) -> Adapter:
    """Another LoRA: alphas that are not the ranks, and layers of the double blocks alone."""
    modules = [name for name in shapes if name.startswith("transformer_blocks.")]
    planted = plant(shapes, modules, scaled=True)
    return replace(
        planted,
        modules={
            name: replace(pair, down=keyed_normal(pair.down.shape, "other", name))
            for name, pair in planted.modules.items()
            if isinstance(pair, LoraPair)
        },
        metadata={"trained_by": "a test", "name": "other"},
    )


def test_delta_w_is_the_weighted_sum(full_adapter: Adapter, other: Adapter, tmp_path: Path) -> None:
    """To float32 rounding, from the file as well; the rank is that of both together."""
    one = stack([Part("a", full_adapter, 0.6), Part("b", other, 0.4)])
    write_adapter(tmp_path / "one.safetensors", one)
    read = read_adapter(tmp_path / "one.safetensors")
    assert read.modules.keys() == full_adapter.modules.keys() > other.modules.keys() > set()
    for name, written in read.modules.items():
        first = full_adapter.modules[name].delta()
        wanted = 0.6 * first
        if name in other.modules:
            second = other.modules[name]
            assert not torch.allclose(second.delta(), first)
            wanted = wanted + 0.4 * second.delta()
            assert written.rank == full_adapter.modules[name].rank + second.rank
        torch.testing.assert_close(written.delta(), wanted, rtol=1e-5, atol=1e-6)
    assert one.metadata == {"trained_by": "a test"}


def test_the_order_changes_nothing_but_rounding(full_adapter: Adapter, other: Adapter) -> None:
    """A sum has no first and no second part, and a part at strength 0 adds nothing."""
    parts = [Part("a", full_adapter, 0.6), Part("b", other, 1.2)]
    forth, back = stack(parts), stack(parts[::-1])
    without = stack([parts[0], Part("b", other, 0.0)])
    for name in forth.modules:
        torch.testing.assert_close(forth.modules[name].delta(), back.modules[name].delta())
        torch.testing.assert_close(
            without.modules[name].delta(), 0.6 * full_adapter.modules[name].delta()
        )


def test_one_lora_stays_what_it_is(full_adapter: Adapter) -> None:
    """Nothing is rewritten where nothing is stacked; at half strength each layer is halved."""
    assert stack([Part("a", full_adapter, 1.0)]) is full_adapter
    half = stack([Part("a", full_adapter, 0.5)])
    for name, pair in half.modules.items():
        assert pair.rank == full_adapter.modules[name].rank
        assert torch.equal(pair.delta(), 0.5 * full_adapter.modules[name].delta())


def test_what_is_no_sum_is_refused(full_adapter: Adapter, other: Adapter) -> None:
    """DoRA where both have something, and layers of another model: both in one message."""
    name, wide = sorted(other.modules)[:2]
    pair = full_adapter.modules[name]
    assert isinstance(pair, LoraPair)
    dora = DoraPair(pair, torch.ones(len(pair.up), 1), Origin("layer", "DoRA", {}))
    odd = replace(full_adapter, modules={**full_adapter.modules, name: dora})
    large = LoraPair(torch.ones(1, 999), torch.ones(888, 1), 1.0)
    wrong = replace(other, modules={**other.modules, wide: large})
    with pytest.raises(AdapterError) as caught:
        stack([Part("odd.safetensors", odd, 1.0), Part("wrong.safetensors", wrong, 0.4)])
    said = str(caught.value)
    assert f"odd.safetensors: is LoKr or DoRA where other LoRAs have something, too: {name}" in said
    assert f"wrong.safetensors: layers of another size than in the LoRAs before it: {wide}" in said
    alone = replace(
        other, modules={key: other.modules[key] for key in other.modules if key != name}
    )
    assert stack([Part("odd", odd, 1.0), Part("b", alone, 0.4)]).modules[name] is dora
