"""Packages that a run needs only for some values of its params."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

OPTIONAL_PACKAGES: Final = MappingProxyType(
    {
        ("model", "quantisation", "int8"): "torchao",
        ("model", "quantisation", "fp8"): "torchao",
        ("model", "quantisation", "nf4"): "bitsandbytes",
        ("train", "optimiser", "adamw8bit"): "bitsandbytes",
    }
)
"""Section, key and value -> the package of extra `gpu` that it needs."""


def packages_used(params: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the optional packages that sections of params.yaml, by name, ask for; sorted."""
    used = {
        package
        for (section, key, value), package in OPTIONAL_PACKAGES.items()
        if params.get(section, {}).get(key) == value
    }
    return tuple(sorted(used))
