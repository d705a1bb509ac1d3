"""A grid of changed params: which cells it has, and everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.ablation import GRID
from flows.experiments.ablation_cells import Cell, GridError, load_cells
from stages.contracts.params import load_params

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params.yaml"
SECTIONS = ("model", "sampling", "prompts", "fetch", "prepare", "caption", "encode", "train")


def cells_of(folder: Path, text: str) -> list[Cell]:
    """Return the cells of a grid file with this text."""
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return load_cells(path, PARAMS, SECTIONS)


def message_of(folder: Path, text: str) -> str:
    """Return the message with which a grid is refused, the folder's name taken out."""
    with pytest.raises(GridError) as caught:
        cells_of(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_grid_of_the_project() -> None:
    """Ranks, rates, targets and steps, one at a time, the default once, alpha along with rank."""
    cells = load_cells(ROOT / GRID, PARAMS, SECTIONS)
    assert [cell.changes for cell in cells] == [
        {},
        {"train.rank": 4, "train.alpha": 4},
        {"train.rank": 16, "train.alpha": 16},
        {"train.rank": 32, "train.alpha": 32},
        {"train.learning_rate": 0.0001},
        {"train.learning_rate": 0.0004},
        {"train.targets": "attention"},
        {"train.steps": 50},
    ]
    default = load_params(PARAMS).model_dump(mode="json")
    for cell in cells:
        assert cell.base == {"train.steps": 100}
        expected = {**default["train"], **{k.split(".")[1]: v for k, v in cell.settings.items()}}
        assert cell.params == {**default, "train": expected}


def test_a_wrong_base_is_said_with_the_rest(tmp_path: Path) -> None:
    """What all cells have in common is checked as their own values are."""
    text = "base: {train.stepz: 1, train.batch: 0}\nfactors: {train.rank: [0]}\nfollow: {}\n"
    message = message_of(tmp_path, text)
    assert "train.stepz: no such param" in message
    assert "train.batch = 0" in message
    assert "train.rank = 0" in message


def test_names_say_the_change_and_tell_all_params_apart(tmp_path: Path) -> None:
    """The same name means the same params, those that no factor names included."""
    text = "factors: {train.targets: [attention+mlp], train.rank: [4]}\nfollow: {}\n"
    names = [cell.name for cell in cells_of(tmp_path, text)]
    assert [name.rpartition("-")[0] for name in names] == [
        "default",
        "targets-attention-mlp",
        "rank-4",
    ]
    assert len({name.rpartition("-")[2] for name in names}) == 3
    document = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    document["train"]["seed"] += 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    others = load_cells(tmp_path / "grid.yaml", tmp_path / "params.yaml", SECTIONS)
    assert not {cell.name for cell in others} & set(names)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Form, names, values and followers in one message, each with its place and what to do."""
    message = message_of(
        tmp_path,
        """\
factors:
  train.rnk: [4]
  train.rank: [0, 4, 4]
  train.learning_rate: ["1e-4", 0.00001]
  train.checkpoint_every: [75]
  slim.recovery: [0.5]
  train.steps: 100
follow:
  train.seed: train.batch
unknown: 1
""",
    )
    lines = message.splitlines()
    assert lines[0] == "grid.yaml is not valid (10 problems):"
    for part in (
        "train.rnk: no such param. Did you mean 'train.rank'?",
        "factors.train.rank: a value stands twice in [0, 4, 4]. Remove one",
        "train.rank = 0: Input should be greater than or equal to 1. Rank of every module",
        "train.learning_rate = '1e-4': Input should be a valid number. The optimiser's rate",
        "train.learning_rate = 1e-05: DVC would write 1e-05 into params.yaml, which YAML 1.1",
        "train.checkpoint_every = 75: checkpoint_every (75) must be a multiple of",
        "slim.recovery: decides nothing of a training. Sections that do: ['caption', ",
        "factors.train.steps: Input should be a valid list. Write SECTION.KEY: [VALUE, ...]",
        "follow.train.seed: train.batch is no factor. One of ['train.rnk', ",
        "unknown: Extra inputs are not permitted. Known keys: base, factors, follow",
    ):
        assert sum(line.startswith(f"  - grid.yaml: {part}") for line in lines) == 1, message


def test_followers_are_checked_with_the_value_they_take(tmp_path: Path) -> None:
    """A value that suits the factor may not suit its follower; a factor follows nobody."""
    text = "factors: {train.weight_decay: [0.0], train.rank: [4]}\nfollow:\n"
    message = message_of(tmp_path, f"{text}  train.alpha: train.weight_decay\n")
    assert "weight_decay = 0.0: train.alpha: Input should be greater than 0" in message
    message = message_of(tmp_path, f"{text}  train.rank: train.weight_decay\n")
    assert "follow.train.rank: it is a factor itself" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "grid.yaml is not a mapping with the keys base, factors and follow"),
        ("factors: {\n", "grid.yaml is not readable YAML"),
        ("factors: {train.rank: []}\nfollow: {}\n", "factors.train.rank: List should have"),
        ("factors: {train.rank: [[1]]}\nfollow: {}\n", "factors.train.rank.0: Input should be"),
        ("factors: {train.rank: [4]}\n", "follow: Field required. Write SECTION.KEY"),
    ],
)
def test_wrong_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A file that is no grid says what a grid looks like."""
    assert message in message_of(tmp_path, text)


def test_a_missing_grid_names_an_example(tmp_path: Path) -> None:
    """The path as given, and where to copy from."""
    with pytest.raises(GridError, match=r"none\.yaml does not exist; flows/ablation\.yaml is an"):
        load_cells(tmp_path / "none.yaml", PARAMS, SECTIONS)
