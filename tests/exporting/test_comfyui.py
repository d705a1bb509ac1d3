"""The workflows are what ComfyUI's own node definitions ask for, and the LoRA fits the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from stages.adapters.keys import Key, format_key, parse_key
from stages.contracts.errors import WeightsError
from stages.contracts.params import Params
from stages.exporting.comfyui import Finished, comfyui_files
from stages.exporting.models import base_files, flux_fit, flux_shape
from stages.families.architecture import Architecture, lora_modules
from tests.exporting.base_models import params_of, single_files, write_configs
from tests.presets import PRESETS, load_preset
from tests.reporting.example import example_params

TABLE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "comfyui_nodes.json").read_text(encoding="utf-8")
)["nodes"]
FLUX_1 = Architecture(19, 38, 3072, 16, guidance=True)
WIDGETS = {"COMBO", "INT", "FLOAT", "STRING", "SEED"}
SWEEP = pd.DataFrame(
    {
        "strength": [0.0, 0.75, 1.0, 1.25],
        "mse_to_none": [0.0, 400.0, 500.0, 600.0],
        "recovery": [0.0, 0.95, 1.0, 0.9],
        "recovery_low": [0.0, 0.91, 1.0, 0.85],
        "recovery_high": [0.0, 0.97, 1.0, 0.95],
        "direction": [0.0, 0.8, 1.0, 1.1],
    }
)


def write_lora(path: Path, rank: int = 2, width: int = 3072) -> Path:
    """Write a LoRA of zeros on FLUX.1's first and last blocks; shapes scale with the width."""
    tensors = {}
    for module in lora_modules(FLUX_1, "all"):
        if ".0." in module or "blocks.37." in module:
            rows, columns = (side * width // 3072 for side in flux_shape(module))
            tensors[format_key(Key(module, "down"))] = torch.zeros(rank, columns)
            tensors[format_key(Key(module, "up"))] = torch.zeros(rows, rank).contiguous()
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with FLUX.1's names and shapes."""
    return write_lora(tmp_path_factory.mktemp("lora") / "adapter.safetensors")


def finished(lora: Path, sweep: pd.DataFrame = SWEEP) -> Finished:
    """Return a finished run around a LoRA file."""
    return Finished(lora, "data/train/a.safetensors", lora, "data/slim/b.safetensors", sweep, "1,0")


def workflows(lora: Path, params: Params) -> dict[str, Any]:
    """Return the parsed workflows by file name."""
    files = comfyui_files(finished(lora), params)
    return {name: json.loads(text) for name, text in files.items() if name.endswith(".json")}


def preset_params(tmp_path: Path) -> Iterator[Params]:
    """Yield the params of every preset."""
    for path in PRESETS:
        yield load_preset(path, tmp_path)


def accepts(definition: Mapping[str, Any], value: Any) -> bool:
    """Return whether a widget takes the value."""
    kind = definition["type"]
    if kind == "COMBO":
        return value in definition["words"] if "words" in definition else bool(value)
    if kind == "STRING":
        return isinstance(value, str)
    if kind in ("INT", "SEED") and type(value) is not int:
        return False
    steps = (value - definition["min"]) % definition.get("step", 1) if kind == "INT" else 0
    return definition["min"] <= value <= definition["max"] and steps == 0


def test_every_input_is_one_that_the_node_has(lora: Path, tmp_path: Path) -> None:
    """API format, all presets: classes, inputs, types and ranges are those of the table."""
    for params in preset_params(tmp_path):
        for name, graph in workflows(lora, params).items():
            if not name.endswith(".api.json"):
                continue
            for node in graph.values():
                inputs = TABLE[node["class_type"]]["inputs"]
                required = {key for key, each in inputs.items() if not each.get("optional")}
                assert required <= set(node["inputs"]) <= set(inputs), node
                for key, value in node["inputs"].items():
                    if inputs[key]["type"] in WIDGETS:
                        assert accepts(inputs[key], value), (key, value)
                        continue
                    source, slot = value
                    given = TABLE[graph[source]["class_type"]]["outputs"][slot]
                    assert given == inputs[key]["type"], (name, key)


def as_the_page_runs_it(graph: dict[str, Any]) -> dict[str, Any]:
    """Return the API format of a UI file, made as ComfyUI's page does: widgets by their order."""
    links = {link[0]: link for link in graph["links"]}
    made = {}
    for node in graph["nodes"]:
        if node["type"] == "Note":
            continue
        inputs: dict[str, Any] = {}
        values = iter(node["widgets_values"])
        for key, definition in TABLE[node["type"]]["inputs"].items():
            if definition["type"] in WIDGETS:
                inputs[key] = next(values)
            if definition["type"] == "SEED":
                assert next(values) == "fixed"
        assert list(values) == []
        for socket in node["inputs"]:
            _, source, slot, *_ = links[socket["link"]]
            inputs[socket["name"]] = [str(source), slot]
        made[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node["title"]},
        }
    return made


def test_both_formats_are_the_same_graph(lora: Path) -> None:
    """What the page would send for a UI file is the API file beside it."""
    files = workflows(lora, example_params())
    names = [name for name in files if not name.endswith(".api.json")]
    assert len(names) == 6
    for name in names:
        assert as_the_page_runs_it(files[name]) == files[name.replace(".json", ".api.json")]


def test_links_are_consistent(lora: Path) -> None:
    """UI format: a link is listed at both its ends, with the type of both; ids are unique."""
    for name, graph in workflows(lora, example_params()).items():
        if name.endswith(".api.json"):
            continue
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert len(nodes) == len(graph["nodes"])
        assert graph["last_node_id"] == max(nodes)
        assert [link[0] for link in graph["links"]] == list(range(1, graph["last_link_id"] + 1))
        for number, source, slot, target, place, kind in graph["links"]:
            output = nodes[source]["outputs"][slot]
            socket = nodes[target]["inputs"][place]
            assert number in output["links"]
            assert socket["link"] == number
            assert output["type"] == socket["type"] == kind
            outputs = TABLE[nodes[source]["type"]]["outputs"]
            assert [each["type"] for each in nodes[source]["outputs"]] == outputs
        ends = [
            number for node in nodes.values() for out in node["outputs"] for number in out["links"]
        ]
        assert sorted(ends) == [link[0] for link in graph["links"]]


def test_prompt_strength_and_files_are_the_runs(lora: Path) -> None:
    """Trigger and prompt of params, the sweep's strength, one LoRA each or both side by side."""
    params = example_params()
    files = workflows(lora, params)
    expected = {
        "full": ["tok.safetensors"],
        "slim": ["tok-slim.safetensors"],
        "compare": ["tok.safetensors", "tok-slim.safetensors"],
    }
    for name, loras in expected.items():
        graph = files[f"{name}-portrait.api.json"].values()
        found = [each["inputs"] for each in graph if each["class_type"] == "LoraLoaderModelOnly"]
        assert [each["lora_name"] for each in found] == loras
        assert {each["strength_model"] for each in found} == {0.75}
        (text,) = (each["inputs"]["text"] for each in graph if "text" in each["inputs"])
        assert text == params.prompts.develop[0]
        (size,) = (each["inputs"] for each in graph if each["class_type"] == "EmptySD3LatentImage")
        assert size["width"] < size["height"]
        assert sum(each["class_type"] == "SaveImage" for each in graph) == len(loras)


def test_the_block_vector_stands_beside_the_full_file_only(lora: Path) -> None:
    """On the slim file its blocks would take each other's values."""
    for name, graph in workflows(lora, example_params()).items():
        if name.endswith(".api.json"):
            continue
        notes = " ".join(n["widgets_values"][0] for n in graph["nodes"] if n["type"] == "Note")
        assert ("Block vector" in notes) == (not name.startswith("slim"))


def test_shapes_are_those_of_the_real_model() -> None:
    """All 494 layers, against diffusers' FLUX.1 transformer without its weights."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    assert (model.config.num_layers, model.config.num_single_layers) == (19, 38)
    modules = lora_modules(FLUX_1, "all")
    assert len(modules) == 494
    for module in modules:
        assert flux_shape(module) == tuple(model.get_submodule(module).weight.shape), module
    with pytest.raises(ValueError, match="no Linear layer"):
        flux_shape("transformer_blocks.19.attn.to_q")


def comfyui_key_map() -> dict[str, tuple[str, int, int]]:
    """Return ComfyUI's way from a LoRA's names to (weight, first row, rows) of its own FLUX.

    As comfy/lora.py model_lora_keys_unet and comfy/utils.py flux_to_diffusers have it, at the
    commit of comfyui_nodes.json.
    """
    width = 3072
    found = {}
    for index in range(19):
        ours, theirs = f"transformer.transformer_blocks.{index}", f"double_blocks.{index}"
        for stream, names in {
            "img": ("to_q", "to_k", "to_v"),
            "txt": ("add_q_proj", "add_k_proj", "add_v_proj"),
        }.items():
            for place, name in enumerate(names):
                found[f"{ours}.attn.{name}"] = (f"{theirs}.{stream}_attn.qkv", place * width, width)
        for layer, original, rows in (
            ("attn.to_out.0", "img_attn.proj", 1),
            ("norm1.linear", "img_mod.lin", 6),
            ("norm1_context.linear", "txt_mod.lin", 6),
            ("attn.to_add_out", "txt_attn.proj", 1),
            ("ff.net.0.proj", "img_mlp.0", 4),
            ("ff.net.2", "img_mlp.2", 1),
            ("ff_context.net.0.proj", "txt_mlp.0", 4),
            ("ff_context.net.2", "txt_mlp.2", 1),
        ):
            found[f"{ours}.{layer}"] = (f"{theirs}.{original}", 0, rows * width)
    for index in range(38):
        ours, theirs = f"transformer.single_transformer_blocks.{index}", f"single_blocks.{index}"
        for place, name in enumerate(("to_q", "to_k", "to_v")):
            found[f"{ours}.attn.{name}"] = (f"{theirs}.linear1", place * width, width)
        found[f"{ours}.proj_mlp"] = (f"{theirs}.linear1", 3 * width, 4 * width)
        found[f"{ours}.norm.linear"] = (f"{theirs}.modulation.lin", 0, 3 * width)
        found[f"{ours}.proj_out"] = (f"{theirs}.linear2", 0, width)
    return found


def test_every_key_that_we_write_is_one_that_comfyui_maps() -> None:
    """A key that ComfyUI does not know is skipped with one line in its log."""
    known = comfyui_key_map()
    names = {format_key(Key(module, "up")) for module in lora_modules(FLUX_1, "all")}
    assert {name.removesuffix(".lora_B.weight") for name in names} == set(known)
    for name in names:
        _, _, rows = known[name.removesuffix(".lora_B.weight")]
        assert rows == flux_shape(parse_key(name).module)[0], name


def test_a_lora_of_another_model_is_told_apart(lora: Path, tmp_path: Path) -> None:
    """Nano-flux has FLUX.1's names at another width: ComfyUI would skip it layer by layer."""
    small = write_lora(tmp_path / "small.safetensors", width=96)
    kohya = tmp_path / "kohya.safetensors"
    save_file({"lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": torch.zeros(1, 9)}, kohya)
    assert [flux_fit(path) for path in (lora, small, kohya)] == [
        "fits",
        "other shapes",
        "other names",
    ]
    said = comfyui_files(finished(small), example_params())
    assert "cannot be used in ComfyUI" in said["README.md"]
    assert "cannot be used in ComfyUI" in said["full-portrait.json"]
    assert "cannot be used" not in comfyui_files(finished(lora), example_params())["README.md"]


def test_names_follow_the_base_of_params(tmp_path: Path) -> None:
    """Each preset's base has its file; schnell has neither guidance nor shift."""
    found = {
        params.fetch.repository: base_files(params.fetch) for params in preset_params(tmp_path)
    }
    schnell = found["black-forest-labs/FLUX.1-schnell"]
    assert schnell.transformer.name == "flux1-schnell.safetensors"
    assert not schnell.is_guided
    assert not schnell.is_shifted
    assert found["black-forest-labs/FLUX.1-dev"].transformer.name == "flux1-dev.safetensors"
    assert found["ostris/Flex.1-alpha"].transformer.name == "Flex.1-alpha.safetensors"


def kinds(graph: dict[str, Any]) -> set[str]:
    """Return the node classes of a graph in API format."""
    return {node["class_type"] for node in graph.values()}


@pytest.mark.parametrize(
    ("guided", "shifted", "name"),
    [
        (True, True, "flux1-dev.safetensors"),
        (False, False, "flux1-schnell.safetensors"),
        (False, True, "flux1-schnell.safetensors"),
    ],
)
def test_a_base_from_a_folder_is_sampled_as_its_configs_say(
    guided: bool, shifted: bool, name: str, lora: Path, tmp_path: Path
) -> None:
    """No repository says that it is schnell: guidance and shift would spoil its pictures."""
    params = params_of(write_configs(tmp_path / "base", guided=guided, shifted=shifted))
    found = workflows(lora, params)["full-portrait.api.json"]
    assert ("FluxGuidance" in kinds(found)) is guided
    assert ("ModelSamplingFlux" in kinds(found)) is shifted
    (loader,) = (each for each in found.values() if each["class_type"] == "UNETLoader")
    assert loader["inputs"]["unet_name"] == name


def test_single_files_are_sampled_as_the_configs_beside_them_say(
    lora: Path, tmp_path: Path
) -> None:
    """`fetch.folder` has the configs; the files keep their names."""
    configs = write_configs(tmp_path / "configs", guided=False, shifted=False)
    params = params_of(configs, single_files=single_files(tmp_path / "converted"))
    found = workflows(lora, params)["full-portrait.api.json"]
    assert kinds(found).isdisjoint({"FluxGuidance", "ModelSamplingFlux"})
    assert base_files(params.fetch).title == "flux1-schnell"
    assert base_files(params.fetch).t5.name == "t5xxl_fp16.safetensors"


def test_an_unknown_repository_is_sampled_as_its_cached_configs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stage fetch has downloaded is looked at; where it is not, nothing is downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--someone--tuned" / "snapshots"
    write_configs(snapshots / ("a" * 40), guided=False, shifted=False)
    there, absent = (
        base_files(params_of(tmp_path, repository="someone/tuned", revision=revision).fetch)
        for revision in ("a" * 40, "b" * 40)
    )
    assert (there.title, there.is_guided, there.is_shifted) == ("FLUX.1-schnell", False, False)
    assert (absent.title, absent.is_guided, absent.is_shifted) == ("FLUX.1-dev", True, True)


def test_without_configs_a_base_is_taken_for_dev(tmp_path: Path) -> None:
    """A machine without the weights can still write the report; a broken config is named."""
    assert base_files(params_of(tmp_path / "none").fetch).title == "FLUX.1-dev"
    folder = write_configs(tmp_path / "base", guided=True, shifted=True)
    (folder / "scheduler/scheduler_config.json").write_text("no JSON", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"scheduler_config\.json: cannot be read"):
        base_files(params_of(folder).fetch)


def test_a_misfit_is_told_with_the_names_that_are_written(tmp_path: Path) -> None:
    """The remark on other shapes says whose names the files have."""
    small = write_lora(tmp_path / "small.safetensors", width=96)
    params = params_of(write_configs(tmp_path / "base", guided=False, shifted=False))
    files = comfyui_files(finished(small), params)
    for name in ("README.md", "full-portrait.json"):
        assert "names are FLUX.1-schnell's" in files[name]
