"""Where alpha comes from."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from stages.adapters.scales import CONFIG_FIELD, read_alphas

RANKS = {"proj_out": 4, "single_transformer_blocks.7.proj_out": 2}


def header(**config: object) -> dict[str, str]:
    """Return a header as diffusers writes it."""
    prefixed = {f"transformer.{name}": value for name, value in config.items()}
    return {CONFIG_FIELD: json.dumps(prefixed)}


def refusal(stated: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Return the problems in one text."""
    alphas, problems = read_alphas(stated, metadata, RANKS)
    assert not alphas
    return "\n".join(str(problem) for problem in problems)


def test_no_statement_means_alpha_is_the_rank() -> None:
    """ai-toolkit and diffusers write no alpha: scale 1."""
    assert read_alphas({}, {}, RANKS) == ({name: float(RANKS[name]) for name in RANKS}, [])


def test_alpha_tensors_are_read_in_any_shape_of_one_number() -> None:
    """Kohya writes scalars, others vectors of one."""
    stated = {"proj_out": torch.tensor(8.0), "single_transformer_blocks.7.proj_out": torch.ones(1)}
    alphas, problems = read_alphas(stated, {}, RANKS)
    assert not problems
    assert alphas == {"proj_out": 8.0, "single_transformer_blocks.7.proj_out": 1.0}


def test_the_header_is_read_as_peft_reads_it() -> None:
    """Patterns match PEFT's way: first match of the end of the name, else the default."""
    patterns = {"proj_out": 3.0, "^proj_out": 5.0}
    config = LoraConfig(r=2, lora_alpha=6, rank_pattern={"^proj_out": 4}, alpha_pattern=patterns)
    alphas, problems = read_alphas({}, header(**_plain(config)), RANKS)
    assert not problems
    assert alphas == {module: patterns[get_pattern_key(patterns, module)] for module in RANKS}


def test_the_header_needs_no_prefix() -> None:
    """save_lora_adapter of diffusers writes the config without `transformer.`."""
    metadata = {CONFIG_FIELD: json.dumps({"r": 2, "lora_alpha": 1, "rank_pattern": {"^proj": 4}})}
    metadata[CONFIG_FIELD] = metadata[CONFIG_FIELD].replace("^proj", "^proj_out")
    assert read_alphas({}, metadata, RANKS)[0] == dict.fromkeys(RANKS, 1.0)


def test_rslora_is_turned_into_the_alpha_of_the_same_scale() -> None:
    """RsLoRA's scale alpha / sqrt(rank) equals ours for the returned alpha."""
    config = {"r": 2, "lora_alpha": 6, "rank_pattern": {"^proj_out": 4}, "use_rslora": True}
    alphas, _ = read_alphas({}, header(**config), RANKS)
    for module, rank in RANKS.items():
        assert alphas[module] / rank == pytest.approx(6 / math.sqrt(rank))


def test_alpha_in_some_modules_only_is_refused() -> None:
    """Diffusers gives the others the commonest alpha, ComfyUI scale 1."""
    text = refusal({"proj_out": torch.tensor(1.0)}, {})
    assert "missing in these modules while others have one: single_transformer_blocks.7" in text


@pytest.mark.parametrize("alpha", [torch.tensor(math.nan), torch.ones(2), torch.tensor(math.inf)])
def test_an_alpha_that_is_no_number_is_refused(alpha: torch.Tensor) -> None:
    """NaN would spread through the whole picture."""
    assert "alpha: not a number: proj_out" in refusal(dict.fromkeys(RANKS, alpha), {})


def test_two_statements_must_agree() -> None:
    """Diffusers raises on a file with both; we read it where nothing depends on the choice."""
    config = {"r": 2, "lora_alpha": 1, "rank_pattern": {"^proj_out": 4}}
    agreed = dict.fromkeys(RANKS, torch.tensor(1.0))
    assert read_alphas(agreed, header(**config), RANKS) == (dict.fromkeys(RANKS, 1.0), [])
    text = refusal(dict.fromkeys(RANKS, torch.tensor(2.0)), header(**config))
    assert "disagree: proj_out, single_transformer_blocks.7.proj_out" in text


def test_a_stale_rank_in_the_header_is_refused() -> None:
    """A header left over from before a resize would give the wrong scale."""
    text = refusal({}, header(r=16, lora_alpha=16))
    assert "another rank than the tensors have: proj_out, single_" in text
    assert "Correct or delete the header field lora_adapter_metadata" in text


@pytest.mark.parametrize("option", ["use_dora", "lora_bias"])
def test_options_beyond_plain_lora_are_refused(option: str) -> None:
    """Their effect is not (alpha / rank) B A."""
    config = {"r": 2, "lora_alpha": 1, "rank_pattern": {"^proj_out": 4}, option: True}
    assert f"asks for {option}" in refusal({}, header(**config))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"r": 2}', '{"r": 2, "lora_alpha": 1, "rank_pattern": {"(": 1}}']
)
def test_a_header_that_is_no_config_is_refused(text: str) -> None:
    """Broken JSON, missing fields and broken patterns are one kind of problem."""
    assert "not a LoraConfig in JSON" in refusal({}, {CONFIG_FIELD: text})


def test_an_infinite_alpha_in_the_header_is_refused() -> None:
    """JSON as Python writes it can hold Infinity."""
    config = {"r": 2, "lora_alpha": math.inf, "rank_pattern": {"^proj_out": 4}}
    assert "an alpha is not finite" in refusal({}, header(**config))


def _plain(config: LoraConfig) -> dict[str, object]:
    return {name: value for name, value in config.to_dict().items() if not isinstance(value, set)}
