"""Order and draws of the training samples."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from stages.families.noise import keyed_generator
from stages.training.batches import Draw, draw_sample, posterior_sample, samples_of_step
from stages.training.encoded import Latents
from tests.training.conftest import make_picture, make_text

EMPTY = make_text("")
PICTURES = {name: make_picture(name) for name in "ab"}


def draw(epoch: int = 0, name: str = "a", seed: int = 1, dropout: float = 0.0) -> Draw:
    """Return the draws of one use of a picture."""
    return draw_sample(PICTURES[name], EMPTY, epoch, seed, timesteps="sigmoid", dropout=dropout)


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
        draw_sample(PICTURES["a"], EMPTY, epoch, 1, timesteps="uniform", dropout=0.0).sigma
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
