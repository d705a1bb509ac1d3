"""Our training step next to diffusers' own: loss and gradients over ten steps, in one table.

    python -m benchmarks.parity > docs/parity.md

Both sides train the embedded model on the same demo pictures, captions, noise, noise levels,
guidance and start of the adapter, with AdamW and clipping as diffusers' script sets them. Theirs is
`benchmarks/reference.py`, ours the step that `stages.train` takes. Takes about half a minute.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from benchmarks.reference import Inputs, Reference, Settings, encode_pictures, encode_prompts
from stages.adapters.attach import add_shaped_lora, lora_parameters
from stages.contracts.params import TrainParams, load_params
from stages.encoding.encoded import Encoded, Latents, Picture
from stages.families.architecture import Architecture, lora_modules
from stages.families.text import TextEmbedding
from stages.optimisation.schedule import total_steps
from stages.training.batches import Draw, draw_sample, samples_of_step
from stages.training.lora_forward import shorten_lora_forward
from stages.training.noise_levels import NoiseLevels
from stages.training.step import take_step
from stages.training.targets import plan_lora
from stages.training.trainee import Trainee, make_trainee

ROOT: Final = Path(__file__).parents[1]
STEPS: Final = 10
BOUND: Final = 1e-5
"""Largest difference that the table may show."""

_SCHEMES: Final = {"none": "none", "sigma-sqrt": "sigma_sqrt", "cosmap": "cosmap"}
_SHOWN: Final = ("rank", "batch", "guidance", "learning_rate", "gradient_clip")
_PICTURES: Final = 6
_HEADER: Final = (
    "| step | their loss | our loss | difference | largest gradient | largest gradient difference "
    "| largest weight difference |\n"
    "|---:|---:|---:|---:|---:|---:|---:|"
)
_ROW: Final = re.compile(
    r"\| (\d+) \| (\d\.\d{8}) \| (\d\.\d{8}) \| \S+ \| (\S+) \| (\S+) \| (\S+) \|"
)
_PAGE: Final = """# Parity with diffusers' training script

Written by `python -m benchmarks.parity > docs/parity.md`; do not edit.

One row per optimiser step on the embedded model `nano-flux`, {modules} LoRA modules of rank {rank},
batch {batch}. "Theirs" is the training step of diffusers'
`examples/dreambooth/train_dreambooth_lora_flux.py`, written again with diffusers and peft alone in
`benchmarks/reference.py`; "ours" is the step that stage `train` takes. Both see the same latents,
noise, noise levels, prompts, guidance ({guidance:g}) and start of the adapter, and update with
AdamW at a rate of {learning_rate:g} and a gradient norm of at most {gradient_clip:g}. Gradients
are compared after clipping, weights after the update; differences are absolute, and the largest
over all {numbers:,} numbers.

{table}

Every difference must stay below {bound:g}; `tests/training/test_parity.py` holds this page and a
fresh run to it.
"""


@dataclass(frozen=True)
class Comparison:
    """One step: losses, the largest gradient, and how far gradients and weights are apart."""

    step: int
    their_loss: float
    our_loss: float
    gradient: float
    gradient_difference: float
    weight_difference: float


def compare(
    transformers: tuple[FluxTransformer2DModel, FluxTransformer2DModel],
    data: Encoded,
    params: TrainParams,
) -> list[Comparison]:
    """Return one comparison per step of `params.steps`.

    Args:
        transformers: two equal base models, theirs and ours.
        data: pictures and prompts.
        params: of our run; theirs has the same values under the script's names. Noise levels,
            order and noise are drawn by us and given to both.
    """
    theirs = Reference(transformers[0], _settings(transformers[0], params))
    ours = _trainee(transformers[1], params, theirs)
    steps = range(1, total_steps(params) + 1)
    return [_compare_step(theirs, ours, data, params, step) for step in steps]


def demo_params() -> TrainParams:
    """Return the demo's params with the script's optimiser, in ten steps without warm-up."""
    changes = {
        "steps": STEPS,
        "batch": 2,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "gradient_clip": 1.0,
        "warmup_steps": 0,
        "caption_dropout": 0.0,
    }
    return load_params(ROOT / "params.yaml").train.model_copy(update=changes)


def demo_data(folder: Path) -> Encoded:
    """Return the first demo pictures and their captions, encoded by plain diffusers."""
    everything = load_params(ROOT / "params.yaml")
    captioned = sorted((ROOT / "data/demo/train").glob("*.txt"))[:_PICTURES]
    files = [next(path.parent.glob(f"{path.stem}.[jp]*")) for path in captioned]
    captions = [path.read_text(encoding="utf-8").strip() for path in captioned]
    pipeline = FluxPipeline.from_pretrained(folder, transformer=None)
    pictures = encode_pictures(pipeline, files, everything.encode.sizes_px[0])
    prompts = encode_prompts(pipeline, [*captions, ""], everything.model.text_tokens)
    texts = [TextEmbedding(tokens, pooled) for tokens, pooled in prompts]
    training = tuple(
        Picture(path.stem, caption, Latents(mean, std), text, 1)
        for path, caption, (mean, std), text in zip(
            files, captions, pictures, texts[:-1], strict=True
        )
    )
    return Encoded(training, (), texts[-1], samples=(), plain=(), sha256="")


def page(comparisons: Sequence[Comparison], params: TrainParams, modules: int, numbers: int) -> str:
    """Return the text of docs/parity.md."""
    return _PAGE.format(
        table=table(comparisons),
        modules=modules,
        numbers=numbers,
        bound=BOUND,
        **params.model_dump(include=set(_SHOWN)),
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a table; `parse_table` is the inverse."""
    rows = [
        f"| {each.step} | {each.their_loss:.8f} | {each.our_loss:.8f} "
        f"| {abs(round(each.our_loss, 8) - round(each.their_loss, 8)):.1e} "
        f"| {each.gradient:.1e} | {each.gradient_difference:.1e} | {each.weight_difference:.1e} |"
        for each in comparisons
    ]
    return "\n".join([_HEADER, *rows])


def parse_table(text: str) -> list[Comparison]:
    """Return the comparisons in a page, to the digits that it has."""
    return [
        Comparison(int(match[1]), *(float(match[number]) for number in range(2, 7)))
        for match in _ROW.finditer(text)
    ]


def _settings(transformer: FluxTransformer2DModel, params: TrainParams) -> Settings:
    return Settings(
        rank=params.rank,
        lora_alpha=params.alpha,
        target_modules=lora_modules(Architecture.from_config(transformer.config), params.targets),
        learning_rate=params.learning_rate,
        adam_weight_decay=params.weight_decay,
        max_grad_norm=params.gradient_clip,
        guidance_scale=0.0 if params.guidance is None else params.guidance,
        weighting_scheme=_SCHEMES[params.loss_weighting],
    )


def _trainee(
    transformer: FluxTransformer2DModel, params: TrainParams, theirs: Reference
) -> Trainee:
    """Return our model with our adapter, started where theirs starts."""
    plan = plan_lora(Architecture.from_config(transformer.config), params)
    add_shaped_lora(transformer, plan, params.seed)
    shorten_lora_forward(transformer)
    parameters = lora_parameters(transformer)
    start = theirs.parameters()
    if parameters.keys() != start.keys():
        raise RuntimeError("the two adapters have other modules")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    return make_trainee(transformer, params)


def _compare_step(
    theirs: Reference, ours: Trainee, data: Encoded, params: TrainParams, step: int
) -> Comparison:
    their_loss = theirs.step(_inputs(_draws(data, params, step)))
    our_loss = take_step(ours, data, params, step).loss
    mine, other = ours.parameters, theirs.parameters()
    with torch.no_grad():
        return Comparison(
            step,
            their_loss,
            our_loss,
            _largest(_gradient(parameter) for parameter in other.values()),
            _largest(_gradient(mine[name]) - _gradient(other[name]) for name in mine),
            _largest(mine[name] - other[name] for name in mine),
        )


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise ValueError("a step leaves every matrix its gradient")
    return parameter.grad


def _largest(tensors: Iterable[torch.Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors)


def _draws(data: Encoded, params: TrainParams, step: int) -> list[Draw]:
    repeats = [picture.repeats for picture in data.training]
    return [
        draw_sample(
            data.training[sample.picture],
            data.empty,
            sample.use,
            params.seed,
            levels=NoiseLevels.from_params(params),
            dropout=params.caption_dropout,
        )
        for sample in samples_of_step(step, params.batch, repeats, params.seed)
    ]


def _inputs(draws: Sequence[Draw]) -> Inputs:
    return Inputs(
        model_input=torch.stack([draw.clean for draw in draws]),
        noise=torch.stack([draw.noise for draw in draws]),
        sigmas=[draw.sigma for draw in draws],
        prompt_embeds=torch.stack([draw.text.tokens for draw in draws]),
        pooled_prompt_embeds=torch.stack([draw.text.pooled for draw in draws]),
    )


def main() -> None:
    """Write the page to standard output."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums of another order would change the last digits of the page
    folder = ROOT / "data" / "nano-flux"
    params = demo_params()
    theirs, ours = (
        FluxTransformer2DModel.from_pretrained(folder / "transformer").requires_grad_(False).eval()
        for _ in range(2)
    )
    torch.manual_seed(0)  # PEFT draws the adapter's start from the global stream
    comparisons = compare((theirs, ours), demo_data(folder), params)
    parameters = lora_parameters(ours)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    sys.stdout.write(page(comparisons, params, len(parameters) // 2, numbers))


if __name__ == "__main__":
    main()
