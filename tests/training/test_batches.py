"""Order and draws of the training samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from stages.encoding.encoded import Latents, Picture, View
from stages.families.noise import keyed_generator
from stages.training.batches import (
    Draw,
    Sample,
    choose_latents,
    draw_sample,
    posterior_sample,
    samples_of_step,
    token_weights,
)
from stages.training.noise_levels import NoiseLevels
from tests.training.conftest import make_picture, make_text

SIGMOID = NoiseLevels("sigmoid", 0.0, 1.0)
EMPTY = make_text("")
PICTURES = {name: make_picture(name) for name in "ab"}


def draw(epoch: int = 0, name: str = "a", seed: int = 1, dropout: float = 0.0) -> Draw:
    """Return the draws of one use of a picture."""
    return draw_sample(PICTURES[name], EMPTY, epoch, seed, levels=SIGMOID, dropout=dropout)


def test_every_epoch_uses_every_picture_once() -> None:
    """Without replacement: no picture is seen twice before all were seen once."""
    samples = [s for step in range(1, 15) for s in samples_of_step(step, 2, [1] * 7, seed=3)]
    for epoch in range(4):
        assert sorted(s.picture for s in samples if s.use == epoch) == list(range(7))
    orders = {tuple(s.picture for s in samples if s.use == epoch) for epoch in range(4)}
    assert len(orders) == 4, "each epoch has an order of its own"


@pytest.mark.parametrize("batch", [1, 3, 4, 6])
def test_batch_size_cuts_the_same_list(batch: int) -> None:
    """Another batch size gives the same samples in the same order."""
    whole = [s for step in range(1, 13) for s in samples_of_step(step, 1, [1] * 5, seed=0)]
    cut = [
        s
        for step in range(1, 12 // batch + 1)
        for s in samples_of_step(step, batch, [1] * 5, seed=0)
    ]
    assert cut == whole


def test_repeats_are_shares() -> None:
    """A picture with repeats 3 is used three times as often, each time with draws of its own."""
    samples = [s for step in range(1, 11) for s in samples_of_step(step, 3, [1, 3, 2], seed=5)]
    for epoch in range(5):
        uses = [s.picture for s in samples[6 * epoch : 6 * epoch + 6]]
        assert Counter(uses) == {0: 1, 1: 3, 2: 2}
    assert len(set(samples)) == len(samples), "no use of a picture comes twice"
    assert sorted(s.use for s in samples if s.picture == 1) == list(range(15))


def test_repeats_of_one_change_nothing() -> None:
    """The order of a set without repeats, as it was before there were any."""
    expected = torch.randperm(6, generator=keyed_generator(7, "order", 0)).tolist()
    assert [s.picture for s in samples_of_step(1, 6, [1] * 6, seed=7)] == expected
    assert {s.use for s in samples_of_step(3, 6, [1] * 6, seed=7)} == {2}


def test_seed_decides_the_order() -> None:
    """Two seeds train in two orders."""
    assert samples_of_step(1, 9, [1] * 9, seed=0) != samples_of_step(1, 9, [1] * 9, seed=1)


def test_draws_are_a_function_of_their_key() -> None:
    """The same use of a picture has the same draws whenever and with whatever it is drawn."""
    one, two = draw(), draw()
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.clean, two.clean)
    assert one.sigma == two.sigma


@pytest.mark.parametrize("other", [{"epoch": 1}, {"name": "b"}, {"seed": 2}])
def test_draws_differ_between_epochs_pictures_and_seeds(other: dict[str, int | str]) -> None:
    """No two uses of pictures share noise or noise level."""
    one, two = draw(), draw(**other)  # type: ignore[arg-type]
    assert not torch.equal(one.noise, two.noise)
    assert one.sigma != two.sigma


def test_streams_are_independent() -> None:
    """The posterior's draw is not the noise: else clean and noisy latents would be correlated."""
    sample, picture = draw(), make_picture("a")
    normal = (sample.clean - picture.latents.mean) / picture.latents.std
    assert not torch.allclose(normal, sample.noise, atol=1e-3)


def test_posterior_sample_is_mean_plus_std_times_normal() -> None:
    """With a spread of zero the latents are the mean."""
    latents = Latents(torch.ones(1, 2, 2), torch.full((1, 2, 2), 2.0))
    assert torch.equal(
        posterior_sample(latents, torch.full((1, 2, 2), 3.0)), torch.full((1, 2, 2), 7.0)
    )


def test_noise_levels_follow_the_distribution() -> None:
    """Sigmoid of a normal: median 0.5, and 68.3 % between sigmoid(-1) and sigmoid(1)."""
    sigmas = torch.tensor([draw(epoch=epoch).sigma for epoch in range(2000)])
    assert abs(sigmas.median().item() - 0.5) < 0.03
    inside = ((sigmas > 0.2689) & (sigmas < 0.7311)).float().mean().item()
    assert abs(inside - 0.683) < 0.03


def test_uniform_noise_levels() -> None:
    """The other choice is uniform in 0 to 1."""
    levels = [
        draw_sample(
            PICTURES["a"], EMPTY, epoch, 1, levels=NoiseLevels("uniform", 0.0, 1.0), dropout=0.0
        ).sigma
        for epoch in range(1000)
    ]
    tenths = Counter(int(level * 10) for level in levels)
    assert sorted(tenths) == list(range(10))
    assert min(tenths.values()) > 60


def test_caption_dropout_replaces_the_stated_share() -> None:
    """With dropout p, a share p of the samples has the empty caption, the rest their own."""
    own = PICTURES["a"].text
    texts = [draw(epoch=epoch, dropout=0.25).text.pooled for epoch in range(1000)]
    dropped = sum(torch.equal(text, EMPTY.pooled) for text in texts)
    assert abs(dropped / 1000 - 0.25) < 0.04
    assert dropped + sum(torch.equal(text, own.pooled) for text in texts) == 1000
    assert torch.equal(draw(dropout=1.0).text.tokens, EMPTY.tokens)


def test_regularisation_takes_its_share_whatever_its_number() -> None:
    """Evenly spread, in epochs of its own; the others keep their order."""

    def samples(batch: int, regularisation: int) -> list[Sample]:
        return [
            sample
            for step in range(1, 24 // batch + 1)
            for sample in samples_of_step(
                step, batch, [1] * 3, 5, regularisation=[1] * regularisation, share=0.25
            )
        ]

    one, many = samples(1, 2), samples(1, 50)
    assert [s.regularisation for s in one] == [False, False, False, True] * 6
    assert [s.regularisation for s in many] == [s.regularisation for s in one]
    assert samples(4, 2) == one, "the batch size cuts the same list"
    own = [s for s in one if not s.regularisation]
    assert own == [s for step in range(1, 19) for s in samples_of_step(step, 1, [1] * 3, 5)]
    others = [(s.use, s.picture) for s in one if s.regularisation]
    assert sorted(others) == [(use, place) for use in range(3) for place in range(2)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_regularisation_share_is_met(share: float) -> None:
    """To within one sample, at any length."""
    found = [
        sample.regularisation
        for step in range(1, 101)
        for sample in samples_of_step(step, 1, [1], 0, regularisation=[1, 2], share=share)
    ]
    assert abs(sum(found) - 100 * share) < 1


def test_no_regularisation_pictures_no_share() -> None:
    """The list is that of a set without them, whatever the share."""
    assert samples_of_step(2, 5, [1, 2], 3, share=0.5) == samples_of_step(2, 5, [1, 2], 3)


def sized(mirrored: bool) -> Picture:
    """Return a picture at three sizes, each of a constant of its own; mirrored ones negative."""

    def latents(value: float, side: int) -> Latents:
        return Latents(torch.full((8, side, side), value), torch.zeros(8, side, side))

    views = [
        View(latents(size, int(size)), latents(-size, int(size)) if mirrored else None)
        for size in (2.0, 4.0, 6.0)
    ]
    return replace(
        PICTURES["a"],
        latents=views[0].latents,
        mirrored=views[0].mirrored,
        further=tuple(views[1:]),
    )


def test_every_size_comes_once_in_a_round() -> None:
    """Three uses take the three sizes; the order differs from round to round and is keyed."""
    picture = sized(mirrored=False)
    sides = [choose_latents(picture, use, 1).mean.shape[-1] for use in range(60)]
    rounds = [tuple(sides[start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(sizes) == [2, 4, 6] for sizes in rounds)
    assert len(set(rounds)) == 6, "all orders occur"
    assert [choose_latents(picture, use, 1).mean.shape[-1] for use in range(60)] == sides
    assert [choose_latents(picture, use, 2).mean.shape[-1] for use in range(60)] != sides


def test_half_of_the_uses_are_mirrored() -> None:
    """Where there is a mirrored picture, at every size; a picture without one never is."""
    means = [choose_latents(sized(mirrored=True), use, 1).mean.mean().item() for use in range(600)]
    assert abs(sum(mean < 0 for mean in means) / 600 - 0.5) < 0.06
    assert {abs(mean) for mean in means if mean < 0} == {2.0, 4.0, 6.0}
    assert all(choose_latents(sized(mirrored=False), use, 1).mean.mean() > 0 for use in range(60))


def test_one_size_draws_as_before() -> None:
    """A picture of one size has the latents it has, and no draw is spent on choosing."""
    assert choose_latents(PICTURES["a"], 5, 1) is PICTURES["a"].latents


def test_token_weights_do_not_depend_on_the_masks_area() -> None:
    """Their mean is 1; transparent to opaque is floor to 1; row by row, as tokens are packed."""
    shape = (8, 4, 4)
    small = Latents(torch.zeros(shape), torch.ones(shape), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    weights = token_weights(small, 0.25)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.25, 0.25, 0.25]) / 0.4375)
    for opaque in (0.0, 1.0):
        plain = replace(small, mask=torch.full((2, 2), opaque))
        whole = token_weights(plain, 0.1)
        assert whole is not None
        torch.testing.assert_close(whole, torch.ones(4))
    assert token_weights(small, None) is None, "masks do not count unless asked to"
    assert token_weights(PICTURES["a"].latents, 0.25) is None


def test_output_is_preserved_on_the_stated_share() -> None:
    """Only where there is a caption without the trigger; no draw changes another one."""
    plain = make_text("plain")
    picture = replace(PICTURES["a"], plain_text=plain)

    def drawn(use: int, share: float) -> Draw:
        return draw_sample(picture, EMPTY, use, 1, levels=SIGMOID, dropout=0.0, preserved=share)

    kept = sum(drawn(use, 0.3).plain_text is plain for use in range(600))
    assert abs(kept / 600 - 0.3) < 0.05
    assert all(drawn(use, 1.0).plain_text is plain for use in range(20))
    assert all(drawn(use, 0.0).plain_text is None for use in range(20))
    assert torch.equal(drawn(3, 1.0).noise, draw(epoch=3).noise)
    assert drawn(3, 1.0).sigma == draw(epoch=3).sigma
