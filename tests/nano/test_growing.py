"""Growing a shallow transformer keeps its function to first order and makes siblings differ."""

import torch
from diffusers import FluxTransformer2DModel

from nano.architecture import TEXT_TOKENS, build_transformer
from nano.flow import image_ids, text_ids
from nano.growing import deal_units, grow, neighbour_differences, source_block


def predict(model: FluxTransformer2DModel) -> torch.Tensor:
    """The model's answer to one fixed input."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        answer: torch.Tensor = model(
            hidden_states=torch.randn(2, 64, 32, generator=generator),
            encoder_hidden_states=torch.randn(2, TEXT_TOKENS, 64, generator=generator),
            pooled_projections=torch.randn(2, 64, generator=generator),
            timestep=torch.tensor([0.3, 0.8]),
            guidance=torch.ones(2),
            img_ids=image_ids(),
            txt_ids=text_ids(),
            return_dict=False,
        )[0]
    return answer


def with_writers_scaled(model: FluxTransformer2DModel, factor: float) -> FluxTransformer2DModel:
    """The model with everything that blocks write multiplied by `factor`."""
    writers = ("to_out.0", "to_add_out", "ff.net.2", "ff_context.net.2", "proj_out")
    for name, module in model.named_modules():
        if "transformer_blocks" in name and name.endswith(writers):
            module.weight.data *= factor
            module.bias.data *= factor
    return model


def test_grown_model_is_the_same_to_first_order() -> None:
    """Where blocks write little, the error of growing is of second order in what they write."""
    errors = []
    for factor in (0.1, 0.01):
        torch.manual_seed(0)
        shallow = with_writers_scaled(build_transformer(2, 3), factor)
        silent = with_writers_scaled(build_transformer(2, 3), 1.0)
        silent.load_state_dict(shallow.state_dict())
        with_writers_scaled(silent, 0.0)
        deep = build_transformer(7, 11)
        grow(shallow, deep, torch.Generator().manual_seed(0))
        expected = predict(shallow)
        change = (expected - predict(silent)).norm()
        errors.append(float((predict(deep) - expected).norm() / change))
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 4


def test_siblings_differ_from_the_start() -> None:
    """No two neighbours are near copies of each other."""
    torch.manual_seed(0)
    deep = build_transformer(7, 11)
    grow(build_transformer(2, 3), deep, torch.Generator().manual_seed(0))
    for blocks in (deep.transformer_blocks, deep.single_transformer_blocks):
        assert min(neighbour_differences(blocks)) > 0.5


def test_every_unit_is_kept_once_and_evenly() -> None:
    """Each of 256 units has one keeper; the four copies keep 64 each."""
    dealt = deal_units(256, 4, torch.Generator().manual_seed(0))
    assert (dealt.sum(0) == 1).all()
    assert (dealt.sum(1) == 64).all()


def test_source_blocks_are_spread_evenly() -> None:
    """19 blocks from 5: every source is used three or four times, in order."""
    sources = [source_block(index, 5, 19) for index in range(19)]
    assert sources == sorted(sources)
    assert {sources.count(source) for source in range(5)} == {3, 4}
