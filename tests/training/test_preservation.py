"""What the adapter must leave alone: regularisation pictures, and captions without the trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.adapters.attach import lora_parameters
from stages.encoding.encoded import Encoded
from stages.families.flow import predict_velocity
from stages.training.batches import draw_step, step_samples
from stages.training.loop import Run, train_adapter
from stages.training.lora_forward import shorten_lora_forward
from stages.training.objective import Batch, assemble
from stages.training.preservation import preservation_losses, without_adapter
from stages.training.state import Row
from stages.training.step import take_step
from stages.training.trainee import Trainee, make_trainee
from tests.training.conftest import make_picture, make_text

SHARED = make_text("a robot")


def with_plain_text(data: Encoded) -> Encoded:
    """Return the set, every picture with one caption without the trigger."""
    pictures = tuple(replace(picture, plain_text=SHARED) for picture in data.training)
    return replace(data, training=pictures)


def with_regularisation(data: Encoded, count: int = 3) -> Encoded:
    """Return the set with pictures of what the adapter is to leave alone."""
    others = tuple(make_picture(f"other-{index}") for index in range(count))
    return replace(data, regularisation=others)


def trainee_of(run: Run) -> Trainee:
    """Return the run's trainee at its start."""
    return make_trainee(run.transformer, run.params)


def stir(run: Run) -> None:
    """Give the adapter an effect: B is zero at its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lora_parameters(run.transformer).items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def batch_of(run: Run) -> Batch:
    """Return the batch of the first step."""
    draws = draw_step(run.data, run.params, step_samples(run.data, run.params, 1))
    return assemble(draws, run.transformer.device, run.transformer.dtype)


def velocity(run: Run, batch: Batch) -> torch.Tensor:
    """Return what the model predicts."""
    return predict_velocity(
        run.transformer, batch.noised, batch.sigmas, batch.text, 1.0, batch.grid
    )


@pytest.mark.parametrize("short", [False, True])
def test_model_without_adapter_is_the_base_model(make_run: Callable[..., Run], short: bool) -> None:
    """To the bit, under PEFT's forward and under ours; afterwards the adapter is back."""
    run = make_run()
    if short:
        shorten_lora_forward(run.transformer)
    batch = batch_of(run)
    base = velocity(run, batch)
    stir(run)
    adapted = velocity(run, batch)
    with without_adapter(run.transformer):
        assert torch.equal(velocity(run, batch), base)
    assert torch.equal(velocity(run, batch), adapted)
    assert not torch.equal(adapted, base)


def test_preservation_is_the_distance_to_the_base_model(
    make_run: Callable[..., Run], encoded: Encoded
) -> None:
    """On the same noised pictures, the caption without the trigger; samples without it are left."""
    run = make_run(data=with_plain_text(encoded), change={"output_preservation": 1.0})
    draws = list(draw_step(run.data, run.params, step_samples(run.data, run.params, 1)))
    draws[0] = replace(draws[0], plain_text=None)
    batch = assemble(draws, run.transformer.device, run.transformer.dtype)
    assert preservation_losses(run.transformer, batch, draws, 1.0).tolist() == [0.0]
    plain = assemble(
        [replace(draw, text=SHARED) for draw in draws], run.transformer.device, torch.float32
    )
    base = velocity(run, plain)
    stir(run)
    expected = (velocity(run, plain) - base)[1:].square().mean(dim=(1, 2))
    found = preservation_losses(run.transformer, batch, draws, 1.0)
    torch.testing.assert_close(found, expected)
    first = next(iter(lora_parameters(run.transformer).values()))
    (gradient,) = torch.autograd.grad(found.sum(), first)
    assert gradient.abs().max() > 0
    without = [replace(draw, plain_text=None) for draw in draws]
    assert len(preservation_losses(run.transformer, batch, without, 1.0)) == 0


def test_preservation_adds_to_the_gradient_by_its_weight(
    make_run: Callable[..., Run], encoded: Encoded
) -> None:
    """Gradient of the whole = that of the loss + weight x that of the mean difference."""
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        change = {"output_preservation": weight, "gradient_clip": 1e9, "batch": 3}
        run = make_run(data=with_plain_text(encoded), change=change)
        stir(run)
        trainee = trainee_of(run)
        result = take_step(trainee, run.data, run.params, 1)
        assert (result.preservation_loss is None) == (weight == 0)
        gradients[weight] = {
            name: value.grad.clone()
            for name, value in trainee.parameters.items()
            if value.grad is not None
        }
    assert gradients[0.0].keys() == gradients[3.0].keys()
    for name, plain in gradients[0.0].items():
        once, thrice = gradients[1.0][name] - plain, gradients[3.0][name] - plain
        torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-6)


def test_preservation_holds_the_model_to_its_answers(
    make_run: Callable[..., Run], encoded: Encoded
) -> None:
    """The same steps with it leave the answers without trigger nearer to the base model's."""
    moved = {}
    for weight in (0.0, 10.0):
        change = {"output_preservation": weight, "learning_rate": 0.01, "caption_dropout": 0.0}
        run = make_run(data=with_plain_text(encoded), change={**change, "steps": 30})
        batch = batch_of(run)
        plain = replace(batch, text=replace(batch.text, tokens=_tokens(2), pooled=_pooled(2)))
        base = velocity(run, plain).detach()
        trainee = trainee_of(run)
        for step in range(1, 31):
            take_step(trainee, run.data, run.params, step)
        moved[weight] = (velocity(run, plain).detach() - base).square().mean().item()
    assert moved[10.0] < 0.5 * moved[0.0]


def _tokens(count: int) -> torch.Tensor:
    return SHARED.tokens.expand(count, -1, -1)


def _pooled(count: int) -> torch.Tensor:
    return SHARED.pooled.expand(count, -1)


def test_regularisation_counts_by_its_weight(
    make_run: Callable[..., Run], encoded: Encoded
) -> None:
    """With weight 0 the others alone decide; the loss of the rest is told without the weight."""
    results, gradients = {}, {}
    for weight in (0.0, 1.0, 2.0):
        run = make_run(
            data=with_regularisation(encoded),
            change={"regularisation_weight": weight, "gradient_clip": 1e9, "batch": 4},
        )
        trainee = trainee_of(run)
        samples = step_samples(run.data, run.params, 1)
        assert [sample.regularisation for sample in samples] == [False, True, False, True]
        results[weight] = take_step(trainee, run.data, run.params, 1)
        gradients[weight] = {
            name: value.grad.clone()
            for name, value in trainee.parameters.items()
            if value.grad is not None
        }
    assert results[0.0].regularisation_loss == results[2.0].regularisation_loss
    part = results[1.0].loss - results[0.0].loss
    assert results[1.0].regularisation_loss == pytest.approx(2 * part, rel=1e-4)
    for name, none in gradients[0.0].items():
        once, twice = gradients[1.0][name] - none, gradients[2.0][name] - none
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6)


def test_without_such_pictures_nothing_is_told(make_run: Callable[..., Run]) -> None:
    """The default run has neither and pays for neither."""
    run = make_run()
    result = take_step(trainee_of(run), run.data, run.params, 1)
    assert result.regularisation_loss is None
    assert result.preservation_loss is None


def test_history_tells_both_losses(
    make_run: Callable[..., Run], encoded: Encoded, tmp_path: Path
) -> None:
    """Step by step, beside the loss; a resumed run tells the same."""
    data = with_plain_text(with_regularisation(encoded))
    change = {"output_preservation": 0.5, "output_preservation_share": 0.5}
    whole = train_adapter(make_run(data=data, change=change), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(data=data, change=change, dies_at=2), tmp_path / "killed")
    resumed = train_adapter(make_run(data=data, change=change), tmp_path / "killed")
    assert resumed.history == whole.history
    steps: list[Row] = whole.history[1:]
    assert all(row.regularisation_loss is not None for row in steps)
    assert any(row.preservation_loss is not None for row in steps)
    assert whole.files == resumed.files
