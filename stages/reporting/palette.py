"""Colours of the block map, for light and for dark surroundings.

One hue whose lightness alone tells the share, so that it reads without colour vision; the hue of
negative shares (rust against teal) differs under every common kind of colour blindness.
"""

from __future__ import annotations

from typing import Final

LIGHT: Final[dict[str, str]] = {
    "s0": "#f0f1ea",
    "s1": "#dcebe4",
    "s2": "#bfe0d5",
    "s3": "#98d0c2",
    "s4": "#6ab9a9",
    "s5": "#1d7b6f",
    "s6": "#12695f",
    "s7": "#09554c",
    "s8": "#053f38",
    "n1": "#f8e0cd",
    "n2": "#eab58d",
    "n3": "#cf8149",
    "ink": "#1b1d22",
    "muted": "#5b5e66",
    "line": "#d5d2c8",
    "paper": "#fbfaf6",
    "ink-deep": "#ffffff",
    "muted-deep": "#eef9f6",
    "muted-middle": "#17302b",
}

DARK: Final[dict[str, str]] = {
    "s0": "#1f242a",
    "s1": "#1b3032",
    "s2": "#19403f",
    "s3": "#1a534f",
    "s4": "#1f6a62",
    "s5": "#3f9f90",
    "s6": "#5cb6a6",
    "s7": "#86cfbf",
    "s8": "#c0efe1",
    "n1": "#38291f",
    "n2": "#6d4526",
    "n3": "#8f5424",
    "ink": "#eceae4",
    "muted": "#a3a7b0",
    "line": "#3a3f49",
    "paper": "#101216",
    "ink-deep": "#0b1412",
    "muted-deep": "#12241f",
    "muted-middle": "#cfe6e0",
}
