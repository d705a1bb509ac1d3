"""Stage `judge`: a small convolutional network that reads a picture's six attributes back.

Reads the drawings; writes `judge.safetensors` and `metrics.json` with its share of right answers
on held-out drawings. Parameters: section `judge`.
"""

import argparse
import itertools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from nano.averaging import WeightAverage
from nano.checkpoint import Checkpoint
from nano.parameters import load_section
from nano.schedule import constant_then_linear
from nano.world import ATTRIBUTES, Scene, class_numbers, parse_caption

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeParameters:
    """How the judge is trained."""

    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    last_learning_rate_share: float
    constant_share: float
    noise: float  # largest standard deviation of the noise on a picture in -1..1
    blurred_share: float  # of the batches, seen at half resolution
    ema_decay: float
    checkpoint_seconds: float


class Judge(nn.Module):
    """Pictures (batch, 3, 128, 128) in -1..1 to one tensor of logits per attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 96)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.narrow = nn.Conv2d(widths[-1], 48, 1)
        self.hidden = nn.Linear(48 * 8 * 8, 192)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(192, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (batch, values) under each attribute's name."""
        features = pictures
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = functional.silu(norm(convolution(features)))
        features = functional.silu(self.hidden(self.narrow(features).flatten(1)))
        return {name: head(features) for name, head in self.heads.items()}


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (pictures, height, width, 3) as float32 (pictures, 3, height, width) in -1..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_scenes(captions: Path) -> list[Scene]:
    """The scenes of a file with one caption a line."""
    return [parse_caption(line) for line in captions.read_text().splitlines()]


@torch.no_grad()
def right_answers(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, np.ndarray]:
    """For each attribute, a boolean per picture: does the judge see what the scene says."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, len(pictures), 100):
        for name, logits in judge(to_tensor(pictures[start : start + 100])).items():
            seen[name].append(logits.argmax(1))
    expected = np.array([class_numbers(scene) for scene in scenes])
    return {
        name: torch.cat(seen[name]).numpy() == expected[:, place]
        for place, name in enumerate(ATTRIBUTES)
    }


def shares_right(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, float]:
    """For each attribute, the share of pictures in which the judge sees what the scene says."""
    answers = right_answers(judge, pictures, scenes)
    return {name: float(right.mean()) for name, right in answers.items()}


def load_judge(path: Path) -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.eval()


def _augmented(
    batch: torch.Tensor, parameters: JudgeParameters, random: np.random.Generator
) -> torch.Tensor:
    """The batch a little noisy or soft, as generated pictures may be."""
    if random.random() < parameters.blurred_share:
        half = functional.avg_pool2d(batch, 2)
        batch = functional.interpolate(half, scale_factor=2, mode="bilinear")
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    noise = torch.randn(batch.shape, generator=generator)
    return batch + noise * float(random.uniform(0, parameters.noise))


def train_judge(parameters: JudgeParameters, drawings: Path, state_file: Path) -> Judge:
    """The judge, trained on the training drawings."""
    pictures = np.load(drawings / "training.npy", mmap_mode="r")
    scenes = read_scenes(drawings / "training.txt")
    targets = torch.tensor([class_numbers(scene) for scene in scenes])
    torch.manual_seed(parameters.seed)
    judge = Judge()
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=parameters.learning_rate)
    average = WeightAverage(judge, parameters.ema_decay)
    checkpoint = Checkpoint(state_file, parameters.checkpoint_seconds)
    first_step = 0
    if (state := checkpoint.load()) is not None:
        judge.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.updates = first_step = state["step"]
    for step in range(first_step, parameters.steps):
        optimizer.param_groups[0]["lr"] = parameters.learning_rate * constant_then_linear(
            step, parameters.steps, parameters.constant_share, parameters.last_learning_rate_share
        )
        random = np.random.default_rng((parameters.seed, step))
        chosen = np.sort(random.integers(0, len(scenes), parameters.batch_size))
        batch = _augmented(to_tensor(pictures[chosen]), parameters, random)
        logits = judge(batch.contiguous(memory_format=torch.channels_last))
        answers = targets[torch.from_numpy(chosen)]
        loss = torch.stack(
            [
                functional.cross_entropy(logits[name], answers[:, place])
                for place, name in enumerate(ATTRIBUTES)
            ]
        ).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        average.update(judge)
        if (step + 1) % 100 == 0:
            logger.info("step %d: loss %.4f", step + 1, loss.item())
        if checkpoint.due():
            checkpoint.save(
                {
                    "step": step + 1,
                    "model": judge.state_dict(),
                    "average": average.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
    return average.model


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, "judge", JudgeParameters)
    judge = train_judge(parameters, arguments.drawings, arguments.state)
    held_out = np.load(arguments.drawings / "held_out.npy", mmap_mode="r")
    shares = shares_right(judge, held_out, read_scenes(arguments.drawings / "held_out.txt"))
    logger.info("held-out drawings: %s", shares)
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in judge.state_dict().items()}
    save_file(weights, arguments.out / "judge.safetensors")
    (arguments.out / "metrics.json").write_text(json.dumps(shares, indent=2, sort_keys=True) + "\n")
    arguments.state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
