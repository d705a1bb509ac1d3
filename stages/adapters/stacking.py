"""Several LoRAs as one: the same change of the model as all of them together, each at a strength.

With A = [A1; A2] and B = [s1 B1, s2 B2] (alpha / rank in B as well) B A = s1 B1 A1 + s2 B2 A2: the
sum's factors are the parts' own, side by side. Nothing is fitted, and the rank is that of all
parts together. LoHa is a product of two matrices, too (pair.py); LoKr and DoRA are none, and can
only stand where no other part has something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, Change
from stages.adapters.pair import LoraPair
from stages.adapters.strengths import with_strengths
from stages.contracts.errors import AdapterError, Problem


@dataclass(frozen=True)
class Part:
    """One LoRA of a stack: its name in messages, the LoRA, and the factor of its Delta W."""

    name: str
    adapter: Adapter
    strength: float


def stack(parts: Sequence[Part]) -> Adapter:
    """Return one adapter whose Delta W is the sum of strength * Delta W of all parts.

    A single part at strength 1 comes back as it is. The metadata is what all parts agree on;
    tensors for text encoders are those of a single part, and of several none.

    Raises:
        AdapterError: a LoKr or DoRA layer is in other parts as well, parts are for models of other
            sizes, or DoRA has another strength than 1; all problems at once.
    """
    if len(parts) == 1 and parts[0].strength == 1.0:
        return parts[0].adapter
    scaled = [
        with_strengths(part.adapter, dict.fromkeys(part.adapter.blocks, part.strength))
        for part in parts
    ]
    held = Counter(module for adapter in scaled for module in adapter.modules)
    shared = {module for module, count in held.items() if count > 1}
    if problems := _problems(parts, shared):
        raise AdapterError("The LoRAs cannot be stacked", problems)
    modules: dict[str, Change] = {}
    for module in sorted(held):
        changes = [each.modules[module] for each in scaled if module in each.modules]
        alone = len(changes) == 1 and (len(parts) == 1 or not isinstance(changes[0], LoraPair))
        modules[module] = changes[0] if alone else _side_by_side(changes)
    fields = [set(adapter.metadata.items()) for adapter in scaled]
    apart = scaled[0].apart if len(scaled) == 1 else {}
    return Adapter(modules, dict(sorted(set.intersection(*fields))) if fields else {}, apart)


def _problems(parts: Sequence[Part], shared: set[str]) -> list[Problem]:
    """Return what cannot be added up, for each part."""
    problems = []
    shapes: dict[str, tuple[int, int]] = {}
    for part in parts:
        changes = {
            name: part.adapter.modules[name] for name in shared & part.adapter.modules.keys()
        }
        odd = [name for name, change in changes.items() if not isinstance(change, LoraPair)]
        if odd:
            what = f"is LoKr or DoRA where other LoRAs have something, too: {list_names(odd)}"
            problems.append(Problem(part.name, what, "Leave it out, or the others."))
        pairs = {name: each for name, each in changes.items() if isinstance(each, LoraPair)}
        other = [name for name, each in pairs.items() if shapes.get(name, each.shape) != each.shape]
        if other:
            what = f"layers of another size than in the LoRAs before it: {list_names(other)}"
            problems.append(Problem(part.name, what, "Stack LoRAs of one base model."))
        shapes |= {name: each.shape for name, each in pairs.items() if name not in shapes}
    return problems


def _side_by_side(changes: Sequence[Change]) -> LoraPair:
    """Return the sum as a plain LoRA, LoHa too: of a fused layer maybe one part is shared."""
    pairs = [change for change in changes if isinstance(change, LoraPair)]
    down = torch.cat([pair.down for pair in pairs])
    up = torch.cat([pair.scale * pair.up for pair in pairs], dim=1)
    return LoraPair(down, up, float(len(down)))
