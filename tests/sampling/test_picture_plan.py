"""Which pictures are asked for, and who shares a batch with whom."""

from stages.contracts.blocks import BASE, numbered_blocks
from stages.contracts.params import PromptsParams, RenderParams
from stages.sampling.picture_plan import plan_pictures, prompts_of

MODEL_BLOCKS = numbered_blocks(2, 3)
PROMPTS = PromptsParams(
    develop=["tok a", "tok b"],
    held_out=["tok c"],
    without_trigger=["d"],
    seeds=[5, 6, 5],
    held_out_seeds=[7],
)
PLAIN = RenderParams(
    modes=["only", "without", "only"],
    without_trigger_modes=[],
    strengths=[],
    groups={},
    subsets={},
    random_seed=None,
    compile=False,
)


def names(params: RenderParams, blocks: object = MODEL_BLOCKS) -> list[list[str]]:
    """The pictures of each series as prompt, seed and variant."""
    return [
        [f"{picture.prompt.name} {picture.seed} {picture.variant}" for picture in series.pictures]
        for series in plan_pictures(params, PROMPTS, blocks, MODEL_BLOCKS)
    ]


def test_prompts_and_seeds_are_crossed_and_held_out_ones_are_not_touched() -> None:
    """Every variant has every prompt with every seed, once; held-out prompts have no picture."""
    series = names(PLAIN)
    assert [len(one) for one in series] == [2 * 3 * 2, 5 * 2 * 2, 5 * 2 * 2, 2 * 2]
    assert series[3] == [f"develop-{i} {seed} repeat" for i in range(2) for seed in (5, 6)]
    every = [name for one in series for name in one]
    assert len(set(every)) == len(every)
    used = prompts_of(plan_pictures(PLAIN, PROMPTS, MODEL_BLOCKS, MODEL_BLOCKS))
    assert [prompt.text for prompt in used] == ["tok a", "tok b", "d"]


def test_more_variants_leave_the_batches_of_the_others_alone() -> None:
    """A series is cut by itself: no batch of the plain plan changes when more is asked for."""
    more = {
        "strengths": [0.5],
        "groups": {"early": ["double"]},
        "subsets": {"soft": {"double": 0.5, "base": 1.0}},
        "without_trigger_modes": ["only"],
        "random_seed": 0,
    }
    plain, many = names(PLAIN), names(PLAIN.model_copy(update=more))
    assert all(series in many for series in plain)
    assert len(many) == len(plain) + 5


def test_batches_are_cut_in_order() -> None:
    """The last batch of a series has what is left."""
    first = plan_pictures(PLAIN, PROMPTS, MODEL_BLOCKS, MODEL_BLOCKS)[0]
    batches = [*first.batches(5)]
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert sum(batches, ()) == first.pictures


def test_base_is_named_by_its_own_word() -> None:
    """Layers outside the blocks are of no stack, and can be given a strength too."""
    params = PLAIN.model_copy(update={"subsets": {"soft": {"single.1": 0.5, "base": 1.0}}})
    series = plan_pictures(params, PROMPTS, (*MODEL_BLOCKS, BASE), MODEL_BLOCKS)
    (chosen,) = {
        picture.variant.chosen
        for one in series
        for picture in one.pictures
        if picture.variant.kind == "subset"
    }
    assert {str(block): value for block, value in chosen} == {"single.1": 0.5, "base": 1.0}
