"""The report as one HTML file that needs no network, and the block map as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from stages.contracts.params import Params
from stages.reporting.block_map import MapStyle, draw_block_map, wide_columns
from stages.reporting.dataset import show_dataset
from stages.reporting.evidence import Evidence
from stages.reporting.gallery import HeatmapLook, hang_gallery
from stages.reporting.overview import tell_overview
from stages.reporting.palette import DARK, LIGHT
from stages.reporting.provenance import trace_provenance
from stages.reporting.ranking import rank_blocks
from stages.reporting.slimming import tell_slimming
from stages.reporting.snippet import diffusers_snippet
from stages.reporting.templating import FONTS, asset_text, font_uri, render, script_hash
from stages.reporting.training import tell_training
from stages.reporting.words import interval

_NARROW_COLUMNS: Final = 8
_VEIL_STEPS: Final = 17
_GLOW: Final = 0.6  # below 1: small differences are seen, too
_KNEE: Final = 0.7


@dataclass(frozen=True)
class Page:
    """The report and the map of its blocks."""

    html: str
    block_map: str


def write_page(evidence: Evidence, params: Params, look: HeatmapLook) -> Page:
    """Return the whole report; equal evidence and params give equal text."""
    longest_px = params.report.thumbnail_px
    confidence = params.attribute.confidence
    columns = wide_columns(evidence.blocks)

    def block_map(columns: int, *, alone: bool, prefix: str) -> Markup:
        style = MapStyle(columns, alone, prefix)
        return draw_block_map(evidence.blocks, confidence, params.report.title, style)

    script = asset_text("page.js")
    html = render(
        "page.html",
        style=asset_text("style.css"),
        script=script,
        script_hash=script_hash(script),
        fonts={name: font_uri(name) for name in FONTS},
        light=LIGHT,
        dark=DARK,
        alone=False,
        params=params,
        overview=tell_overview(evidence, params),
        map_wide=block_map(columns, alone=False, prefix="wide"),
        map_narrow=block_map(_NARROW_COLUMNS, alone=False, prefix="narrow"),
        gallery=hang_gallery(evidence, look, longest_px, confidence),
        look=look,
        ramp=_ramp_tables(look),
        ranking=rank_blocks(evidence),
        interval=interval,
        snippet=diffusers_snippet(evidence.weights, params),
        slimming=tell_slimming(evidence, params.slim, params.prompts.held_out, longest_px),
        training=tell_training(evidence, params.encode.sample_prompts, longest_px),
        dataset=show_dataset(evidence, longest_px),
        provenance=trace_provenance(evidence, params),
    )
    return Page(str(html), str(block_map(columns, alone=True, prefix="map")))


def veil_opacities(at: float) -> list[float]:
    """Return the opacity of a heat map by difference, from none to the scale's top.

    `at` 0 is the picture alone, 0.7 colours what changed and leaves the rest clear, 1 is the bare
    map. page.js moves along the same curve.
    """
    glows = [(step / (_VEIL_STEPS - 1)) ** _GLOW for step in range(_VEIL_STEPS)]
    if at <= _KNEE:
        return [at / _KNEE * glow for glow in glows]
    return [glow + (at - _KNEE) / (1.0 - _KNEE) * (1.0 - glow) for glow in glows]


def _ramp_tables(look: HeatmapLook) -> dict[str, str]:
    """Return the colour ramp as SVG tableValues, one text per channel, and as a CSS gradient."""
    tables = {
        name: " ".join(f"{value / 255:.3f}" for value in look.ramp[:, channel])
        for channel, name in enumerate(("red", "green", "blue"))
    }
    veil = " ".join(f"{value:.3f}" for value in veil_opacities(look.opacity))
    stops = [f"rgb({red} {green} {blue})" for red, green, blue in look.ramp.tolist()]
    return {**tables, "veil": veil, "gradient": f"linear-gradient(to right, {', '.join(stops)})"}
