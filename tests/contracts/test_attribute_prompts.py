"""Prompts that shares alone are measured on."""

from pathlib import Path

import pytest
import yaml

from stages.contracts.errors import ParamsError
from stages.contracts.params import load_params

ROOT = Path(__file__).parents[2]


def test_they_have_the_trigger_and_are_named_once(tmp_path: Path) -> None:
    """A held-out prompt has no say, a prompt without the trigger shows nothing, twice is a slip."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    held_out = document["prompts"]["held_out"][0]
    document["attribute"]["prompts"] = [held_out, "a robot", "tok, a robot", "tok, a robot"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert f"named already, there or in prompts: ['{held_out}', 'tok, a robot']" in str(
        caught.value
    )
    assert "prompts lack the trigger 'tok': ['a robot']" in str(caught.value)
