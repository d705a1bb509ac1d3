"""How much another program may send, keep and ask for; every number that docs/mcp.md states."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

REQUEST_BYTES: Final = 64 * MIB
"""An HTTP request as a whole; base64 needs four bytes for three."""

FILE_BYTES: Final = 32 * MIB
"""One picture."""

CALL_BYTES: Final = 40 * MIB
"""All files of one call, decoded."""

CALL_FILES: Final = 200
DATASET_FILES: Final = 2000
DATASET_BYTES: Final = 4 * GIB
CAPTION_BYTES: Final = 16 * KIB
PICTURE_PIXELS: Final = 100_000_000

CHUNK_BYTES: Final = 8 * MIB
"""One piece of a LoRA on its way here."""

ADAPTER_BYTES: Final = 4 * GIB
OPEN_UPLOADS: Final = 8

HEADER_BYTES: Final = 16 * MIB
"""The header of a safetensors file; that of a LoRA with 500 modules has 100 kB."""

CONFIG_BYTES: Final = 64 * KIB
CONFIG_DEPTH: Final = 16
"""Mappings and lists inside one another; ours have 4."""

ENTRIES: Final = 1000
"""Datasets, configs or LoRAs of the inbox."""

FREE_BYTES: Final = GIB
"""What stays free on the disk of the inbox."""

DOWNLOAD_BYTES: Final = 512 * KIB
"""One piece of a LoRA on its way out: with base64 it stays under the 1 MiB that clients of the
official SDK take in one event."""

LOG_LINES: Final = 200
LOG_CHARACTERS: Final = 200_000
JOBS: Final = 200
