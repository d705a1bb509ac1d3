"""One step, and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.contracts.errors import TrainingError
from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded, Latents
from stages.families.noise import keyed_normal
from stages.training import step as step_module
from stages.training.loop import Run
from stages.training.objective import Batch
from stages.training.step import take_step
from stages.training.trainee import Trainee, make_trainee


def trainee_of(run: Run) -> Trainee:
    """Return the run's trainee at its start."""
    return make_trainee(run.transformer, run.params)


def test_step_moves_the_adapter_and_nothing_else(make_run: Callable[..., Run]) -> None:
    """The base model is frozen; every B leaves zero at the first step."""
    run = make_run()
    base = {
        name: parameter.clone()
        for name, parameter in run.transformer.named_parameters()
        if not parameter.requires_grad
    }
    trainee = trainee_of(run)
    result = take_step(trainee, run.data, run.params, 1)
    assert result.loss > 0
    assert result.learning_rate == run.params.learning_rate / 2
    named = dict(run.transformer.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in base.items())
    ups = {name: value for name, value in trainee.parameters.items() if "lora_B" in name}
    assert all(value.abs().max() > 0 for value in ups.values())


def test_gradient_is_clipped(make_run: Callable[..., Run]) -> None:
    """The norm reported is the one before clipping; what is applied is at most the limit."""
    run = make_run(change={"gradient_clip": 1e-4})
    trainee = trainee_of(run)
    result = take_step(trainee, run.data, run.params, 1)
    gradients = [value.grad for value in trainee.parameters.values() if value.grad is not None]
    applied = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert result.gradient_norm > 1e-4
    assert applied == pytest.approx(1e-4, rel=1e-2)


def test_checkpointing_changes_no_gradient(make_run: Callable[..., Run]) -> None:
    """Memory is traded for time, not for another result."""
    plain, thrifty = make_run(), make_run()
    thrifty.transformer.enable_gradient_checkpointing()
    one, two = (trainee_of(run) for run in (plain, thrifty))
    assert take_step(one, plain.data, plain.params, 1) == take_step(
        two, thrifty.data, thrifty.params, 1
    )
    for name, value in one.parameters.items():
        assert torch.equal(value, two.parameters[name])


def with_broken_picture(data: Encoded, value: float) -> Encoded:
    """Return the training set with one picture whose latents are not numbers."""
    broken = data.training[3]
    mean = torch.full_like(broken.latents.mean, value)
    bad = replace(broken, latents=Latents(mean, broken.latents.std))
    return replace(data, training=(*data.training[:3], bad, *data.training[4:]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_picture_is_named(
    make_run: Callable[..., Run], encoded: Encoded, value: float
) -> None:
    """A loss that is no number stops with step, picture and noise level, before any harm."""
    run = make_run(change={"batch": 5})
    trainee = trainee_of(run)
    before = {name: value.clone() for name, value in trainee.parameters.items()}
    with pytest.raises(TrainingError) as caught:
        take_step(trainee, with_broken_picture(encoded, value), run.params, 1)
    message = str(caught.value)
    assert "step 1, picture picture-3, sigma 0." in message
    assert "loss is nan" in message or "loss is inf" in message
    assert "(1 problem)" in message
    assert "Lower train.learning_rate" in message
    assert all(torch.equal(value, before[name]) for name, value in trainee.parameters.items())


def test_broken_gradient_names_the_whole_batch(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss can still have a gradient that is not; then all pictures are suspects."""
    run = make_run()
    trainee = trainee_of(run)
    next(iter(trainee.parameters.values())).register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(TrainingError, match=r"\(2 problems\)[\s\S]*gradient norm is nan"):
        take_step(trainee, run.data, run.params, 1)


def test_pictures_of_several_shapes_share_a_step(make_run: Callable[..., Run]) -> None:
    """One forward pass per shape; the step's gradient is that of the mean over all its samples."""
    run = make_run(change={"batch": 5, "gradient_clip": 1e9})
    wide = [
        replace(
            picture,
            latents=Latents(
                picture.latents.mean.reshape(8, 2, 8), picture.latents.std.reshape(8, 2, 8)
            ),
        )
        for picture in run.data.training[:2]
    ]
    data = replace(run.data, training=(*wide, *run.data.training[2:]))
    trainee = trainee_of(run)
    start = {name: value.detach().clone() for name, value in trainee.parameters.items()}
    result = take_step(trainee, data, run.params, 1)
    gradients = {name: _gradient(value) for name, value in trainee.parameters.items()}
    losses = []
    expected = {name: torch.zeros_like(value) for name, value in start.items()}
    for picture in data.training:
        # On its own: a picture's draws depend on no other picture.
        for name, value in trainee.parameters.items():
            value.data.copy_(start[name])
        alone = replace(data, training=(picture,))
        losses.append(take_step(trainee, alone, _one(run.params), 1).loss)
        for name, value in trainee.parameters.items():
            expected[name] += _gradient(value) / 5
    assert result.loss == pytest.approx(sum(losses) / 5, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def _one(params: TrainParams) -> TrainParams:
    return params.model_copy(update={"batch": 1})


def _gradient(value: torch.nn.Parameter) -> torch.Tensor:
    assert value.grad is not None
    return value.grad.clone()


def test_accumulated_passes_equal_one_batch(make_run: Callable[..., Run]) -> None:
    """Gradients of passes are averaged, not summed: only the rounding differs."""
    results, gradients = [], []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        change = {"batch": batch, "accumulation": accumulation, "adapter_dropout": 0.5}
        run = make_run(change=change)
        trainee = trainee_of(run)
        with_effect(trainee)
        results.append(take_step(trainee, run.data, run.params, 1))
        gradients.append({name: _gradient(value) for name, value in trainee.parameters.items()})
    for result, of_passes in zip(results[1:], gradients[1:], strict=True):
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
        assert result.gradient_norm == pytest.approx(results[0].gradient_norm, rel=1e-4)
        for name, gradient in of_passes.items():
            torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-3, atol=1e-5)


def with_effect(trainee: Trainee) -> None:
    """Give B values, so that A has a gradient."""
    for name, value in trainee.parameters.items():
        if "lora_B" in name:
            value.data.copy_(keyed_normal(value.shape, "up", name) * 0.05)


def test_no_pass_is_larger_than_the_batch(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is what accumulation is for: three pictures of one shape at batch 2 are two passes."""
    sizes = []
    losses = step_module.flow_losses

    def count(transformer: FluxTransformer2DModel, batch: Batch, guidance: float) -> torch.Tensor:
        sizes.append(len(batch.sigmas))
        return losses(transformer, batch, guidance)

    monkeypatch.setattr(step_module, "flow_losses", count)
    run = make_run(change={"batch": 2, "accumulation": 3})
    take_step(trainee_of(run), run.data, run.params, 1)
    assert sizes == [2, 2, 2]


def test_dropout_depends_on_the_sample_alone(make_run: Callable[..., Run]) -> None:
    """Another share of dropped ranks is another gradient; the same share is the same one."""
    norms = []
    for share in (0.5, 0.5, 0.2, 0.0):
        run = make_run(change={"adapter_dropout": share})
        trainee = trainee_of(run)
        with_effect(trainee)
        norms.append(take_step(trainee, run.data, run.params, 1).gradient_norm)
    assert norms[0] == norms[1]
    assert len(set(norms)) == 3


def test_dropout_and_checkpointing_agree(make_run: Callable[..., Run]) -> None:
    """The forward pass that checkpointing repeats drops the same ranks."""
    norms = []
    for checkpointing in (False, True):
        run = make_run(change={"adapter_dropout": 0.5})
        if checkpointing:
            run.transformer.enable_gradient_checkpointing()
        trainee = trainee_of(run)
        with_effect(trainee)
        norms.append(take_step(trainee, run.data, run.params, 1).gradient_norm)
    assert norms[0] == norms[1]
