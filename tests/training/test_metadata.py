"""What an adapter file says about itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from stages.contracts.params import BlockSetting, ModelParams, TrainParams
from stages.encoding.encoded import Encoded
from stages.families.architecture import Architecture
from stages.training.metadata import (
    Origin,
    adapter_metadata,
    architecture_name,
    common_trigger,
    tag_frequency,
)

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=8)


def metadata(encoded: Encoded, params: TrainParams, guidance: bool = True) -> dict[str, str]:
    """Return the metadata of step 4."""
    architecture = Architecture(2, 3, 32, 8, guidance)
    return adapter_metadata(
        Origin("base@revision", architecture, encoded, {"stages/train.py": "a" * 40}),
        params,
        MODEL,
        4,
    )


def test_says_how_to_train_it_again(encoded: Encoded, params: TrainParams) -> None:
    """Base, data, all params and the chosen step are in the file."""
    fields = metadata(encoded, params)
    assert fields["blocklens.base"] == "base@revision"
    assert fields["blocklens.dataset"] == encoded.sha256
    assert TrainParams(**json.loads(fields["blocklens.train"])) == params
    assert ModelParams(**json.loads(fields["blocklens.model"])) == MODEL
    assert json.loads(fields["blocklens.code"]) == {"stages/train.py": "a" * 40}
    assert fields["blocklens.seed"] == fields["ss_seed"] == str(params.seed)
    assert fields["blocklens.step"] == fields["ss_steps"] == "4"


def test_has_the_fields_that_other_tools_show(encoded: Encoded, params: TrainParams) -> None:
    """Kohya's minimum and ModelSpec's required fields (research notes, blocks 3.5)."""
    fields = metadata(encoded, params)
    kohya = {"v2", "base_model_version", "network_module", "network_args", "sd_model_name"}
    assert {f"ss_{name}" for name in kohya} <= fields.keys()
    required = {"sai_model_spec", "architecture", "implementation", "title"}
    assert {f"modelspec.{name}" for name in required} <= fields.keys()
    assert fields["ss_resolution"] == "(32, 32)"
    assert (fields["ss_num_train_images"], fields["ss_num_reg_images"]) == ("5", "0")
    assert fields["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata(encoded, params, False)["modelspec.architecture"] == "flux-1-schnell/lora"


def test_equal_runs_have_equal_metadata(encoded: Encoded, params: TrainParams) -> None:
    """No date, host or path: the bytes of the adapter depend on the run alone."""
    fields = metadata(encoded, params)
    assert fields == metadata(encoded, params)
    assert all(isinstance(value, str) for value in fields.values())
    text = json.dumps(fields)
    assert not re.search(r"20\d\d-\d\d|/home|/work|/tmp|localhost", text)


def test_tag_frequency_counts_captions(encoded: Encoded) -> None:
    """The trigger, which every caption holds, comes first with the number of pictures."""
    counts = tag_frequency(encoded.training)
    assert next(iter(counts)) == "tok"
    assert counts["tok"] == 5
    assert counts["picture-3"] == 1


def test_trigger_is_what_all_captions_begin_with(encoded: Encoded, params: TrainParams) -> None:
    """Tools show it beside the file; where captions begin differently there is none."""
    fields = metadata(encoded, params)
    assert fields["modelspec.trigger_phrase"] == fields["modelspec.title"] == "tok"
    first, *others = encoded.training
    for caption in ("a robot", ""):
        data = replace(encoded, training=(replace(first, caption=caption), *others))
        assert "modelspec.trigger_phrase" not in metadata(data, params)
        assert metadata(data, params)["modelspec.title"] == "adapter"
    assert common_trigger([first]) is None
    captions = [replace(first, caption="tok stands"), replace(first, caption="tok sits")]
    assert common_trigger(captions) == "tok"


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (Architecture(19, 38, 3072, 16, True), "flux-1-dev"),
        (Architecture(19, 38, 3072, 16, False), "flux-1-schnell"),
        (Architecture(8, 38, 3072, 16, True), "flex-1-alpha"),
    ],
)
def test_each_family_has_its_name(architecture: Architecture, name: str) -> None:
    """A LoRA for 8 double blocks must not pass for one of FLUX.1-dev."""
    assert architecture_name(architecture) == name


def test_blocks_and_their_settings_are_recorded(encoded: Encoded, params: TrainParams) -> None:
    """Rank, alpha, targets and blocks stand where sd-scripts puts its network arguments."""
    setting = BlockSetting(blocks=["single.7"], rank=4, alpha=1.0, learning_rate=1e-4)
    change = {"blocks": ["double", "single.7"], "block_settings": [setting]}
    recorded = json.loads(metadata(encoded, params.model_copy(update=change))["ss_network_args"])
    assert recorded["blocks"] == ["double", "single.7"]
    assert BlockSetting(**recorded["block_settings"][0]) == setting
    assert (recorded["rank"], recorded["alpha"]) == (params.rank, params.alpha)
