"""Switch the blocks of a LoRA on and off by hand: `make mixer`.

    python -m mixer [--adapter FILE[=STRENGTH]]... [--out mixes] [--port 7860]

Without --adapter it is the LoRA of split.adapter in params.yaml. Runs until Ctrl-C. docs/mixer.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mixer.server import HOSTS, launch, require_free_port  # before any other import of gradio

# isort: split
from mixer.actions import Session
from mixer.choices import bands, presets, read_recommended, read_shares
from mixer.engine import Mixer
from mixer.page import build_page
from stages.adapters.files import read_adapter
from stages.adapters.stacking import Part
from stages.contracts.errors import AdapterError, BlocklensError, Problem
from stages.contracts.params import load_params
from stages.families.weights import ensure_weights

_log = logging.getLogger("mixer")


def open_session(
    root: Path, adapters: Sequence[str], out: Path, executor: ThreadPoolExecutor
) -> Session:
    """Return the mixer of the project in `root`, loaded.

    Args:
        root: with params.yaml and data/.
        adapters: FILE or FILE=STRENGTH each; none: split.adapter.
        out: where mixes are saved.
        executor: of one thread, which loads the model and runs it.

    Raises:
        BlocklensError: params, weights or a LoRA cannot be used.
    """
    params = load_params(root / "params.yaml")
    own = root / params.split.adapter
    asked = [_parse(text) for text in adapters] or [(own, 1.0)]
    files = tuple(file for file, _ in asked)
    parts = [Part(str(file), read_adapter(file), strength) for file, strength in asked]
    is_of_params = [file.resolve() for file in files] == [own.resolve()]
    known = parts[0].adapter.blocks if is_of_params else ()
    shares = read_shares(root / "data/attribute/shares.csv", known)
    recommended = read_recommended(root / "data/slim/strengths.csv", known)
    folder = ensure_weights(root / "data/fetch/manifest.json")
    mixer = executor.submit(Mixer, params, folder, parts, shares).result()
    return Session(
        mixer,
        executor,
        files,
        root,
        out,
        is_of_params,
        bands(params.render, mixer.blocks),
        presets(mixer.blocks, recommended),
    )


def _parse(text: str) -> tuple[Path, float]:
    """Return the file and strength of `FILE=STRENGTH`, or of `FILE` with strength 1."""
    file, sign, number = text.rpartition("=")
    if not sign:
        return Path(text), 1.0
    try:
        return Path(file), float(number)
    except ValueError as error:
        problem = Problem(text, f"{number!r} is no strength", "Write FILE or FILE=0.6.")
        raise AdapterError("The LoRAs cannot be stacked", [problem]) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m mixer", description=__doc__)
    parser.add_argument("--adapter", action="append", default=[], metavar="FILE[=STRENGTH]")
    parser.add_argument("--out", type=Path, default=Path("mixes"), help="where mixes are saved")
    parser.add_argument("--host", default=HOSTS[0], choices=HOSTS)
    parser.add_argument("--port", type=int, default=7860)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with ThreadPoolExecutor(1) as executor:
        try:
            require_free_port(asked.host, asked.port)
            session = open_session(Path(), asked.adapter, asked.out, executor)
        except BlocklensError as error:
            _log.error("mixer: %s", error)
            sys.exit(1)
        page = build_page(session)
        _log.info("Mixer: %s (Ctrl-C ends it)", launch(page, asked.host, asked.port))
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            page.close(verbose=False)
            executor.submit(session.mixer.close).result()


if __name__ == "__main__":
    main()
