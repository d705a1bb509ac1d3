"""What an adapter file says about itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.contracts.params import (
    BlockSetting,
    ModelParams,
    PhaseParams,
    TrainingAdapterParams,
    TrainParams,
)
from stages.encoding.encoded import Encoded
from stages.families.architecture import Architecture
from stages.optimisation.optimiser import build_optimiser
from stages.training.kohya_fields import OPTIMISERS
from stages.training.metadata import (
    Origin,
    adapter_metadata,
    architecture_name,
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


def test_a_training_adapter_of_this_machine_is_named_without_its_folder(
    encoded: Encoded, params: TrainParams
) -> None:
    """The header is published; the hash says which file it was. One of the Hub is said whole."""
    own = TrainingAdapterParams(
        file="/home/someone/helper.safetensors", repository=None, revision=None, sha256="b" * 64
    )
    hub = TrainingAdapterParams(
        file="folder/helper.safetensors", repository="a/b", revision="c" * 40, sha256=None
    )
    for helper, file in ((own, "helper.safetensors"), (hub, "folder/helper.safetensors")):
        fields = metadata(encoded, params.model_copy(update={"training_adapter": helper}))
        expected = {**helper.model_dump(), "file": file}
        assert json.loads(fields["blocklens.train"])["training_adapter"] == expected
        assert "/home" not in json.dumps(fields)


def test_a_checkpoint_says_which_phase_it_is_of(encoded: Encoded, params: TrainParams) -> None:
    """Step 4 is the first of the second phase: its network and rate, and the steps of all."""
    later = PhaseParams(rank=8, alpha=4.0, steps=7, learning_rate=0.125)
    phased = params.model_copy(update={"steps": 3, "phases": [later]})
    fields = metadata(encoded, phased)
    assert TrainParams(**json.loads(fields["blocklens.train"])) == phased
    assert fields["blocklens.phase"] == "2"
    assert fields["ss_learning_rate"] == fields["ss_unet_lr"] == "0.125"
    assert fields["ss_max_train_steps"] == "10"
    network = json.loads(fields["ss_network_args"])
    assert (network["rank"], network["alpha"]) == (8, 4.0)
    assert "LoRA of rank 8" in fields["modelspec.description"]
    assert fields["modelspec.description"].endswith("after step 4 of 10.")
    first = metadata(encoded, phased.model_copy(update={"steps": 4}))
    assert first["blocklens.phase"] == "1"
    assert json.loads(first["ss_network_args"])["rank"] == params.rank


def test_has_the_fields_that_other_tools_show(encoded: Encoded, params: TrainParams) -> None:
    """Kohya's minimum and ModelSpec's required fields (research notes, blocks 3.5)."""
    fields = metadata(encoded, params)
    kohya = {"v2", "base_model_version", "network_module", "network_args", "sd_model_name"}
    assert {f"ss_{name}" for name in kohya} <= fields.keys()
    required = {"sai_model_spec", "architecture", "implementation", "title", "resolution"}
    assert {f"modelspec.{name}" for name in required} <= fields.keys()
    assert fields["modelspec.sai_model_spec"] == "1.0.1"
    assert fields["modelspec.implementation"] == "diffusers"
    assert fields["modelspec.description"] == (
        "LoRA of rank 2 for base, trained on 5 pictures, after step 4 of 6."
    )
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


def test_trigger_is_the_stated_one(encoded: Encoded, params: TrainParams) -> None:
    """What stage caption put first, however captions begin; without one, tools show none."""
    fields = metadata(replace(encoded, trigger="myword"), params)
    assert fields["modelspec.trigger_phrase"] == fields["modelspec.title"] == "myword"
    assert fields["modelspec.usage_hint"] == "Begin the prompt with myword."
    fields = metadata(replace(encoded, trigger=""), params)
    assert fields.keys().isdisjoint({"modelspec.trigger_phrase", "modelspec.usage_hint"})
    assert fields["modelspec.title"] == "adapter"


def test_says_how_it_was_trained_in_kohyas_words(encoded: Encoded, params: TrainParams) -> None:
    """Values as sd-scripts writes them; what a run does not have is None, not left out."""
    fields = metadata(encoded, params)
    expected = {
        "batch_size_per_device": "2",
        "dataset_dirs": '{"train": {"img_count": 5, "n_repeats": 1}}',
        "epoch": "2",
        "gradient_accumulation_steps": "1",
        "lr_scheduler": "constant_with_warmup",
        "max_grad_norm": "1.0",
        "min_snr_gamma": "None",
        "noise_offset": "None",
        "num_batches_per_epoch": "3",
        "num_epochs": "3",
        "num_validation_images": "2",
        "optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)",
        "reg_dataset_dirs": "{}",
        "timestep_sampling": "sigmoid",
        "unet_lr": "0.001",
        "weighting_scheme": "none",
    }
    assert {name: fields[f"ss_{name}"] for name in expected} == expected
    change = {
        "accumulation": 4,
        "loss_weighting": "min-snr",
        "scheduler": "cosine-restarts",
        "timesteps": "shifted",
        "timestep_location": 0.5,
    }
    concepts = tuple(
        replace(picture, name=f"robots/{picture.name}", repeats=3) for picture in encoded.training
    )
    data = replace(encoded, training=concepts, regularisation=encoded.training)
    changed = metadata(data, params.model_copy(update=change))
    expected = {
        "dataset_dirs": '{"robots": {"img_count": 5, "n_repeats": 3}}',
        "gradient_accumulation_steps": "4",
        "logit_mean": "0.5",
        "logit_std": "1.0",
        "lr_scheduler": "cosine_with_restarts",
        "min_snr_gamma": "5.0",
        "num_batches_per_epoch": "4",  # half of the eight samples of a step are regularisation
        "num_epochs": "2",
        "reg_dataset_dirs": '{"train": {"img_count": 5, "n_repeats": 1}}',
        "timestep_sampling": "flux_shift",
    }
    assert {name: changed[f"ss_{name}"] for name in expected} == expected


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.gpu if name == "adamw8bit" else ())
        for name in sorted(OPTIMISERS)
    ],
)
def test_optimisers_are_called_what_they_are(params: TrainParams, name: str) -> None:
    """Class and settings in the file are those of the optimiser that is built."""
    matrix = {"transformer.a.lora_A.weight": nn.Parameter(torch.zeros(2, 2))}
    optimiser = build_optimiser(matrix, params.model_copy(update={"optimiser": name}))
    kind, defaults = type(optimiser), optimiser.param_groups[0]
    stated, given = OPTIMISERS[name]
    assert stated == f"{kind.__module__}.{kind.__name__}"
    assert given.items() <= defaults.items()


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
