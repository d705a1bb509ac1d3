"""The snippet says everything that decides the picture; a run of it is in test_end_to_end.py."""

from __future__ import annotations

import ast
from pathlib import Path

from stages.reporting.snippet import diffusers_snippet
from tests.presets import ROOT, load_preset


def test_base_and_call_are_those_of_the_run(tmp_path: Path) -> None:
    """Revision, precision, size, steps, guidance, tokens and seed; quotes do not end the text."""
    params = load_preset(ROOT / "presets/flux1-dev-24gb.yaml", tmp_path)
    prompt = 'mytrigger "quoted" \\ in a café'
    prompts = params.prompts.model_copy(update={"held_out": [prompt]})
    params = params.model_copy(update={"prompts": prompts})
    weights = {"repository": "owner/base", "revision": "a" * 40, "folder": None}
    code = diffusers_snippet(weights, params)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (load,) = (call for call in calls if ast.unparse(call.func).endswith("from_pretrained"))
    (draw,) = (call for call in calls if ast.unparse(call.func) == "pipeline")
    said = [{each.arg: ast.unparse(each.value) for each in call.keywords} for call in (load, draw)]
    assert ast.literal_eval(load.args[0]) == "owner/base"
    assert said[0] == {"revision": repr("a" * 40), "dtype": "torch.bfloat16"}
    assert ast.literal_eval(draw.args[0]) == prompt
    assert said[1] == {
        "height": "768",
        "width": "768",
        "num_inference_steps": "20",
        "guidance_scale": "3.5",
        "max_sequence_length": "512",
        "generator": "torch.Generator().manual_seed(100)",
    }
    assert "is in fp8" in code
    assert code.index("load_lora_weights") < code.index("enable_sequential_cpu_offload()")
    local = diffusers_snippet({"repository": None, "revision": None, "folder": "data/base"}, params)
    assert "revision" not in local
    assert '"data/base"' in local
