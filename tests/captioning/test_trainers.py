"""The layout that ai-toolkit and kohya's scripts read."""

from __future__ import annotations

from pathlib import Path

from stages.captioning.trainers import Example, write_examples


def test_one_folder_per_concept_with_its_repeats(tmp_path: Path) -> None:
    """Repeats are in the folder's name, regularisation pictures in a folder of their own."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"a picture")
    out = tmp_path / "out"
    out.mkdir()
    rows = [
        ("a", "", 1, False),
        ("side-b", "side", 3, False),
        ("side-ü 🤖", "side", 3, False),
        ("person-c", "person", 1, True),
    ]
    examples = [
        Example(name, picture, f"caption of {name}", concept, repeats, regularisation)
        for name, concept, repeats, regularisation in rows
    ]
    write_examples(out, examples, "t?k")
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert found == [
        "regularisation/1_person/person-c.png",
        "regularisation/1_person/person-c.txt",
        "training/1_t-k/a.png",
        "training/1_t-k/a.txt",
        "training/3_side/side-b.png",
        "training/3_side/side-b.txt",
        "training/3_side/side-ü 🤖.png",
        "training/3_side/side-ü 🤖.txt",
    ]
    text = out / "training/3_side/side-ü 🤖.txt"
    assert text.read_text(encoding="utf-8") == "caption of side-ü 🤖"
    assert (out / "training/1_t-k/a.png").read_bytes() == b"a picture"
