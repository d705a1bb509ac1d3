"""Latents and embeddings belong to what they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from stages.contracts.errors import DatasetError
from stages.contracts.params import EncodeParams, ModelParams, PromptsParams, SamplingParams
from stages.contracts.tables import CAPTIONS, ENCODED, MANIFEST, read_table, write_table
from stages.encode import encode
from stages.encoding.encoded import Encoded, read_encoded
from stages.families.loading import load_vae
from stages.runtime.files import sha256_file

PARAMS = EncodeParams(
    sizes_px=[64],
    flip=False,
    without_trigger=False,
    trigger_class="",
    class_prompts=[],
    class_pictures=20,
    sample_prompts=["tok, a robot", "tok, second"],
)
SAMPLING = SamplingParams(size_px=128, steps=2, guidance=2.5, batch=2)
MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=8)
PROMPTS = PromptsParams(
    develop=["tok, one"],
    held_out=["tok, two"],
    without_trigger=["a circle", "a star"],
    seeds=[0],
    held_out_seeds=[1],
)
NAMES = {"first": "train", "second": "train", "third": "validation"}


def prepare(folder: Path, side_px: int = 128) -> Path:
    """Write three prepared pictures with their manifest, and captions; return the captions."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for index, (name, split) in enumerate(NAMES.items()):
        pixels = np.random.default_rng(index).integers(0, 256, (side_px, side_px, 3), np.uint8)
        path = folder / "images" / f"{name}.png"
        Image.fromarray(pixels).save(path)
        rows.append(
            {
                "image": name,
                "file": path.name,
                "concept": "",
                "repeats": 1,
                "regularisation": False,
                "split": split,
                "status": "accepted",
                "reason": "",
                "source": path.name,
                "source_sha256": "a" * 64,
                "sha256": sha256_file(path),
                "original_width_px": side_px,
                "original_height_px": side_px,
                "width_px": side_px,
                "height_px": side_px,
                "exif_orientation": 1,
                "upscale": 1.0,
                "mask_sha256": "",
                "blur": 100.0,
                "perceptual_hash": "f" * 16,
                "near_duplicate_of": "",
                "caption_source": "",
            }
        )
    write_table(MANIFEST, pd.DataFrame(rows), folder / "manifest.csv")
    return write_captions(folder, dict.fromkeys(NAMES, "tok, a robot") | {"second": "tok, second"})


def write_captions(folder: Path, captions: dict[str, str]) -> Path:
    """Write the caption table."""
    rows = [
        {
            "image": name,
            "split": NAMES.get(name, "train"),
            "caption": caption,
            "trigger": "",
            "origin": "user",
            "written_by": f"{name}.txt",
            "change": "none",
            "clip_tokens": 5,
            "t5_tokens": 5,
            "clip_cut": 0.0,
            "t5_cut": 0.0,
        }
        for name, caption in captions.items()
    ]
    write_table(CAPTIONS, pd.DataFrame(rows), folder / "captions.csv")
    return folder / "captions.csv"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder as prepare writes it, with captions.csv beside the manifest."""
    prepare(tmp_path / "prepare")
    return tmp_path / "prepare"


def run(weights: Path, prepared: Path, out: Path, **changes: object) -> Encoded:
    """Run the stage and read what it wrote."""
    captions = prepared / "captions.csv"
    params = PARAMS.model_copy(update=changes)
    encode(
        params,
        MODEL,
        PROMPTS.without_trigger,
        SAMPLING.steps,
        SAMPLING.guidance,
        SAMPLING.batch,
        weights=weights,
        images=prepared,
        captions=captions,
        out=out,
    )
    return read_encoded(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Return file names and bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_and_captions_are_encoded(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """Latents have the training resolution, embeddings the stated length, nothing is left over."""
    encoded = run(weights_manifest, prepared, tmp_path / "out")
    assert [picture.name for picture in encoded.training] == ["first", "second"]
    assert [picture.name for picture in encoded.validation] == ["third"]
    first = encoded.training[0]
    assert first.latents.mean.shape[1:] == (8, 8)
    assert first.latents.std.min() > 0
    assert first.text.tokens.shape[0] == 8
    assert [sample.prompt for sample in encoded.samples] == PARAMS.sample_prompts
    assert [plain.prompt for plain in encoded.plain] == PROMPTS.without_trigger
    index = read_table(ENCODED, tmp_path / "out" / "index.csv")
    named = set(index["text_file"]) | set(index["latents_file"]) - {""}
    assert {path.name for path in (tmp_path / "out").iterdir()} == named | {"index.csv"}
    assert len(set(index["text_file"])) == 5, "equal texts share a file"


def test_latents_are_those_of_the_resized_picture(
    weights_manifest: Path, nano_flux: Path, prepared: Path, tmp_path: Path
) -> None:
    """Lanczos to the training size, -1 to 1, posterior shifted and scaled: as FluxPipeline does."""
    encoded = run(weights_manifest, prepared, tmp_path / "out")
    with Image.open(prepared / "images" / "third.png") as file:
        small = np.asarray(file.resize((64, 64), Image.Resampling.LANCZOS), dtype=np.float32)
    pixels = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1
    vae = load_vae(nano_flux, torch.device("cpu"))
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    expected = (posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(encoded.validation[0].latents.mean, expected[0])


def test_swapped_captions_swap_embeddings(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """An embedding follows its caption's text, never its place; latents stay with the picture."""
    before = run(weights_manifest, prepared, tmp_path / "before")
    write_captions(
        prepared, {"first": "tok, second", "second": "tok, a robot", "third": "tok, a robot"}
    )
    after = run(weights_manifest, prepared, tmp_path / "after")
    one, two = before.training, after.training
    assert not torch.equal(one[0].text.tokens, one[1].text.tokens)
    assert torch.equal(one[0].text.tokens, two[1].text.tokens)
    assert torch.equal(one[1].text.pooled, two[0].text.pooled)
    assert torch.equal(one[0].latents.mean, two[0].latents.mean)
    assert contents(tmp_path / "before").keys() == contents(tmp_path / "after").keys()
    assert before.sha256 != after.sha256


def test_same_input_same_bytes(weights_manifest: Path, prepared: Path, tmp_path: Path) -> None:
    """Two runs agree in every name and byte."""
    for name in ("one", "two"):
        run(weights_manifest, prepared, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_mismatches_are_named_together(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """A changed picture, a missing one, captions too few and too many: one message, no output."""
    (prepared / "images" / "first.png").write_bytes(b"another picture")
    (prepared / "images" / "second.png").unlink()
    write_captions(prepared, {"first": "a", "second": "b", "other": "c"})
    with pytest.raises(DatasetError) as caught:
        run(weights_manifest, prepared, tmp_path / "out")
    message = str(caught.value)
    assert "first.png: differs from its manifest (SHA-256)" in message
    assert "second.png: missing" in message
    assert "captions.csv, third: no caption, expected one of split validation" in message
    assert "captions.csv, other: no such picture" in message
    assert not (tmp_path / "out").exists()


def test_picture_that_prepare_would_not_write(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """A grey picture with a matching hash is refused, and the earlier output stays."""
    run(weights_manifest, prepared, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = prepared / "images" / "first.png"
    Image.new("L", (128, 128)).save(path)
    manifest = read_table(MANIFEST, prepared / "manifest.csv")
    manifest.loc[manifest["image"] == "first", "sha256"] = sha256_file(path)
    write_table(MANIFEST, manifest, prepared / "manifest.csv")
    with pytest.raises(DatasetError, match="pixel format L, expected RGB"):
        run(weights_manifest, prepared, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_buckets_keep_their_shape_and_repeats_come_along(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """A wide picture is encoded wide, at the training resolution's area; squares as ever."""
    plain = run(weights_manifest, prepared, tmp_path / "plain")
    pixels = np.random.default_rng(9).integers(0, 256, (192, 320, 3), np.uint8)
    path = prepared / "images" / "second.png"
    Image.fromarray(pixels).save(path)
    manifest = read_table(MANIFEST, prepared / "manifest.csv")
    wide = manifest["image"] == "second"
    manifest.loc[wide, ["sha256", "width_px", "height_px", "repeats"]] = [
        sha256_file(path), 320, 192, 4,
    ]  # fmt: skip
    write_table(MANIFEST, manifest, prepared / "manifest.csv")
    encoded = run(weights_manifest, prepared, tmp_path / "out")
    first, second = encoded.training
    assert second.latents.mean.shape[1:] == (6, 10), "80 x 48 pixels: about 64 x 64"
    assert (first.repeats, second.repeats) == (1, 4)
    assert torch.equal(first.latents.mean, plain.training[0].latents.mean)


def change_row(prepared: Path, name: str, **values: object) -> None:
    """Change some cells of the manifest."""
    manifest = read_table(MANIFEST, prepared / "manifest.csv")
    for column, value in values.items():
        manifest.loc[manifest["image"] == name, column] = value
    write_table(MANIFEST, manifest, prepared / "manifest.csv")


def test_every_picture_at_every_size(
    weights_manifest: Path, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the order of the params; one that was enlarged is not used beyond its own size."""
    plain = run(weights_manifest, prepared, tmp_path / "plain")
    change_row(prepared, "second", upscale=1.8)
    caplog.set_level("WARNING")
    encoded = run(weights_manifest, prepared, tmp_path / "out", sizes_px=[64, 32, 128])
    first, second = encoded.training
    assert [view.latents.mean.shape[-1] for view in first.views] == [8, 4, 16]
    assert [view.latents.mean.shape[-1] for view in second.views] == [8, 4]
    assert "second: too small for 128 pixels, not used there" in caplog.text
    assert len(encoded.validation[0].views) == 1, "measured at the first size"
    assert torch.equal(first.latents.mean, plain.training[0].latents.mean)
    assert encoded.size_px == 64


def test_mirrored_latents_are_those_of_the_mirrored_picture(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """A VAE is not symmetric. Held-out pictures and those with sides in their caption stay."""
    names = {"first": "tok, a robot", "second": "tok, on the left", "third": "tok, a robot"}
    write_captions(prepared, names)
    encoded = run(weights_manifest, prepared, tmp_path / "out", flip=True)
    first, second = encoded.training
    assert second.mirrored is None
    assert encoded.validation[0].mirrored is None
    assert first.mirrored is not None
    assert not torch.allclose(first.mirrored.mean, first.latents.mean.flip(-1), atol=1e-2)
    path = prepared / "images" / "first.png"
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(path)
    change_row(prepared, "first", sha256=sha256_file(path))
    other = run(weights_manifest, prepared, tmp_path / "turned")
    torch.testing.assert_close(first.mirrored.mean, other.training[0].latents.mean)


def test_masks_become_one_number_per_token(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """The mean opacity of a token's pixels, mirrored with the picture; a changed mask is named."""
    opacity = np.zeros((128, 128), np.uint8)
    opacity[:64, :32] = 255
    opacity[64:, 96:] = 51
    masks = prepared / "images" / "masks"
    masks.mkdir()
    Image.fromarray(opacity).save(masks / "first.png")
    change_row(prepared, "first", mask_sha256=sha256_file(masks / "first.png"))
    plain = run(weights_manifest, prepared, tmp_path / "out", flip=True)
    first, second = plain.training
    expected = torch.zeros(4, 4)
    expected[:2, 0], expected[2:, 3] = 1.0, 0.2
    assert first.latents.mask is not None
    torch.testing.assert_close(first.latents.mask, expected)
    assert first.mirrored is not None
    assert first.mirrored.mask is not None
    torch.testing.assert_close(first.mirrored.mask, expected.flip(-1))
    assert second.latents.mask is None
    (masks / "first.png").write_bytes(b"another mask")
    with pytest.raises(DatasetError, match=r"masks/first\.png: differs from its manifest"):
        run(weights_manifest, prepared, tmp_path / "out")


def test_captions_without_the_trigger_are_encoded_on_demand(
    weights_manifest: Path, prepared: Path, tmp_path: Path
) -> None:
    """Each training picture's own, with a class word in the trigger's place where there is one."""
    captions = read_table(CAPTIONS, prepared / "captions.csv")
    write_table(CAPTIONS, captions.assign(trigger="tok"), prepared / "captions.csv")
    assert run(weights_manifest, prepared, tmp_path / "none").training[0].plain_text is None
    change_row(prepared, "second", regularisation=True)
    encoded = run(
        weights_manifest, prepared, tmp_path / "out", without_trigger=True, trigger_class="second"
    )
    index = read_table(ENCODED, tmp_path / "out" / "index.csv").set_index("name")
    assert index.loc["first", "plain_caption"] == "second, a robot"
    assert index.loc["third", "plain_text_file"] == "", "held-out pictures are not trained on"
    assert index["trigger"].drop(["empty"]).eq("tok").sum() == len(NAMES)
    assert encoded.trigger == "tok"
    first, (other,) = encoded.training[0], encoded.regularisation
    assert first.plain_text is not None
    assert not torch.equal(first.plain_text.tokens, first.text.tokens)
    assert other.name == "second"


def test_base_model_makes_its_class_pictures(
    weights_manifest: Path, nano_flux: Path, prepared: Path, tmp_path: Path
) -> None:
    """As FluxPipeline makes them, at the largest size; regularisation pictures from there on."""
    prompts = ["a red circle", "a blue star"]
    changes = {"class_prompts": prompts, "class_pictures": 3, "sizes_px": [64, 128]}
    encoded = run(weights_manifest, prepared, tmp_path / "out", **changes)
    names = [f"class-{prompt}-{number}" for prompt in range(2) for number in range(3)]
    assert [picture.name for picture in encoded.regularisation] == [f"class/{n}" for n in names]
    assert [picture.caption for picture in encoded.regularisation] == [
        prompt for prompt in prompts for _ in range(3)
    ]
    assert [len(picture.views) for picture in encoded.regularisation] == [2] * 6
    assert [picture.name for picture in encoded.training] == ["first", "second"]
    pipeline = FluxPipeline.from_pretrained(nano_flux)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompts[1],
        height=128,
        width=128,
        num_inference_steps=SAMPLING.steps,
        guidance_scale=SAMPLING.guidance,
        max_sequence_length=MODEL.text_tokens,
        generator=torch.Generator().manual_seed(1_000_002),
    ).images[0]
    with Image.open(tmp_path / "out" / "class-1-2.png") as image:
        difference = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
    assert difference.max() <= 1
    again = run(weights_manifest, prepared, tmp_path / "again", **changes)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert again.sha256 == encoded.sha256


def test_held_out_regularisation_is_not_measured(
    weights_manifest: Path, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would say nothing of what the LoRA learns; that it is left out is said."""
    captions = prepared / "captions.csv"
    caplog.set_level("WARNING")
    change_row(prepared, "second", split="validation", regularisation=True)
    table = read_table(CAPTIONS, captions)
    table.loc[table["image"] == "second", "split"] = "validation"
    write_table(CAPTIONS, table, captions)
    encoded = run(weights_manifest, prepared, tmp_path / "out")
    assert [picture.name for picture in encoded.validation] == ["third"]
    assert "1 regularisation pictures are held out" in caplog.text
