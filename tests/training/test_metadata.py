"""What an adapter file says about itself."""

from __future__ import annotations

import json
import re

from stages.contracts.params import ModelParams, TrainParams
from stages.families.architecture import Architecture
from stages.training.encoded import Encoded
from stages.training.metadata import Origin, adapter_metadata, tag_frequency

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=8)


def metadata(encoded: Encoded, params: TrainParams, guidance: bool = True) -> dict[str, str]:
    """Return the metadata of step 4."""
    architecture = Architecture(2, 3, 32, 8, guidance)
    return adapter_metadata(Origin("base@revision", architecture, encoded), params, MODEL, 4)


def test_says_how_to_train_it_again(encoded: Encoded, params: TrainParams) -> None:
    """Base, data, all params and the chosen step are in the file."""
    fields = metadata(encoded, params)
    assert fields["blocklens.base"] == "base@revision"
    assert fields["blocklens.dataset"] == encoded.sha256
    assert TrainParams(**json.loads(fields["blocklens.train"])) == params
    assert ModelParams(**json.loads(fields["blocklens.model"])) == MODEL
    assert fields["blocklens.step"] == fields["ss_steps"] == "4"


def test_has_the_fields_that_other_tools_show(encoded: Encoded, params: TrainParams) -> None:
    """Kohya's minimum and ModelSpec's required fields (research notes, blocks 3.5)."""
    fields = metadata(encoded, params)
    kohya = {"v2", "base_model_version", "network_module", "network_dim", "network_alpha"}
    assert {f"ss_{name}" for name in kohya | {"network_args"}} <= fields.keys()
    required = {"sai_model_spec", "architecture", "implementation", "title"}
    assert {f"modelspec.{name}" for name in required} <= fields.keys()
    assert fields["ss_resolution"] == "(32, 32)"
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
