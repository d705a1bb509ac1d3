"""Heat maps tell where a block acts, on a scale that allows comparing blocks."""

from __future__ import annotations

import numpy as np
import pytest

from stages.contracts.params import EvaluateParams
from stages.imaging.heatmap import (
    COLOUR_MAPS,
    SMALLEST_DRAWN_PX,
    HeatmapStyle,
    Scale,
    colour_ramp,
    colourise,
    difference,
    draw_heatmap,
    draw_scale,
    format_error,
    overlay,
    own_scale,
    peak,
    scale_levels,
    shared_scale,
)

STYLE = HeatmapStyle("inferno", 0.6, text=True)


def picture(level: int, side: int = 16) -> np.ndarray:
    """Return a grey picture."""
    return np.full((side, side, 3), level, dtype=np.uint8)


def test_difference_has_no_sign_and_averages_channels() -> None:
    """Darker counts like brighter, and one channel of three counts a third."""
    other = picture(100)
    other[0, 0] = (70, 100, 100)
    gap = difference(picture(100), other)
    assert gap.dtype == np.float32
    assert gap[0, 0] == pytest.approx(10.0)
    assert np.array_equal(gap, difference(other, picture(100)))
    with pytest.raises(ValueError, match="different size"):
        difference(picture(0), picture(0, 8))


def test_one_scale_for_all_shows_the_stronger_block_brighter() -> None:
    """Scaled one by one, a block that does nothing looks like one that does everything."""
    weak, strong = difference(picture(0), picture(4)), difference(picture(0), picture(80))
    scale = shared_scale([peak(weak), peak(strong)])
    assert scale == Scale(80.0, shared=True)
    assert scale_levels(weak, scale).max() < 20
    assert scale_levels(strong, scale).min() == 255
    assert scale_levels(weak, own_scale(peak(weak))).min() == 255


def test_scale_ignores_a_few_wild_pixels_and_never_stretches_rounding() -> None:
    """One hot pixel must not darken all maps; a difference of half a level is no effect."""
    wild = np.zeros((100, 100), dtype=np.float32)
    wild[0, 0] = 255.0
    assert peak(wild) == 0.0
    assert shared_scale([0.0]).top == own_scale(0.4).top == 1.0
    with pytest.raises(ValueError, match="at least one picture"):
        shared_scale([])


def test_all_params_colour_maps_exist() -> None:
    """A name that params accept and OpenCV lacks would fail after an hour of rendering."""
    allowed = EvaluateParams.model_fields["colour_map"].annotation.__args__  # type: ignore[union-attr]
    assert set(allowed) == set(COLOUR_MAPS)
    for name in COLOUR_MAPS:
        ramp = colour_ramp(name, 9)
        assert ramp.shape == (9, 3)
        assert not np.array_equal(ramp[0], ramp[-1])


def test_inferno_goes_from_black_to_bright_in_rgb_order() -> None:
    """OpenCV gives BGR: swapped channels would turn inferno blue."""
    ramp = colour_ramp("inferno", 3).astype(int)
    assert ramp[0].sum() < 10
    assert ramp[1][0] > ramp[1][2]
    assert np.array_equal(
        colourise(np.zeros((2, 2), np.float32), Scale(5.0, True), "inferno")[0, 0],
        ramp[0].astype(np.uint8),
    )


def test_opacity_mixes_picture_and_map() -> None:
    """0 is the picture alone, 1 the map alone."""
    gap = difference(picture(0), picture(50))
    scale = Scale(50.0, shared=True)
    bare = colourise(gap, scale, "inferno")
    assert np.array_equal(
        overlay(picture(50), gap, scale, HeatmapStyle("inferno", 0.0, text=True)), picture(50)
    )
    assert np.array_equal(
        overlay(picture(50), gap, scale, HeatmapStyle("inferno", 1.0, text=True)), bare
    )


@pytest.mark.parametrize("side", [16, 128, 300])
def test_drawn_maps_are_large_enough_to_read(side: int) -> None:
    """The embedded model's 128 pixels leave no room for letters."""
    drawn = draw_heatmap(
        "full", picture(90, side), picture(30, side), Scale(60.0, shared=True), STYLE
    )
    height, width, _ = drawn.shape
    assert width >= SMALLEST_DRAWN_PX
    assert width % side == 0
    assert height > width
    assert drawn[8:30, 8:60].max() == 255, "the MSE is written in the corner"


def test_words_are_left_out_on_request() -> None:
    """Without words the corners show the map alone; the scale beneath stays."""
    scale, bare = Scale(60.0, shared=True), HeatmapStyle("inferno", 1.0, text=False)
    plain = draw_heatmap("only:double.3", picture(90), picture(30), scale, bare)
    written = draw_heatmap("only:double.3", picture(90), picture(30), scale, STYLE)
    map_alone = colourise(difference(picture(90), picture(30)), scale, "inferno")
    assert np.array_equal(np.unique(plain[:256].reshape(-1, 3), axis=0), map_alone[:1, 0])
    assert (written[:30] == 255).any()
    assert (written[200:256] == 255).any()
    assert plain.shape == written.shape


def test_drawing_twice_gives_the_same_pixels() -> None:
    """DVC compares bytes."""
    scale = Scale(60.0, shared=False)
    once, twice = (draw_heatmap("full", picture(90), picture(30), scale, STYLE) for _ in range(2))
    assert np.array_equal(once, twice)


def test_scale_strip_shows_the_colours_from_left_to_right() -> None:
    """The legend is the map's own ramp."""
    strip = draw_scale(400, 40, Scale(60.0, shared=True), "inferno")
    middle = strip[20].astype(int).sum(axis=1)
    assert strip.shape == (40, 400, 3)
    assert middle[300] > middle[200] > middle[100]


@pytest.mark.parametrize(
    ("error", "text"),
    [(0.0, "0"), (0.0421, "0.042"), (3.14, "3.1"), (280.4, "280"), (12400, "12,400")],
)
def test_errors_are_short_at_any_size(error: float, text: str) -> None:
    """MSEs range over six orders of magnitude."""
    assert format_error(error) == text
