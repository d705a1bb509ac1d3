"""The captions that a person wrote: .txt beside a picture, metadata.jsonl or captions.csv.

metadata.jsonl (the Hugging Face imagefolder: one object per line with file_name and text or
caption) and captions.csv (columns file_name or file, and caption or text) may lie in the folder
itself or in a concept's folder, and name their pictures from there.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from stages.captioning.rules import CaptionRefusedError, check_caption, read_caption
from stages.contracts.errors import Problem

JSON_LINES: Final = "metadata.jsonl"
CSV_TABLE: Final = "captions.csv"
_FILE_COLUMNS: Final = ("file_name", "file")
_TEXT_COLUMNS: Final = ("text", "caption")
_REMEDIES: Final = {
    JSON_LINES: 'Write one line {"file_name": "...", "text": "..."} per picture.',
    CSV_TABLE: "Give it the columns file_name and caption.",
}


@dataclass(frozen=True)
class Written:
    """A person's caption and the file it comes from, relative to the picture folder."""

    text: str
    source: str


@dataclass(frozen=True)
class _Entry:
    where: str
    source: str
    key: str
    """The picture's path below the folder; for a .txt without extension."""
    text: str


def read_written(
    folder: Path, texts: Sequence[Path], pictures: Sequence[str]
) -> tuple[dict[str, Written], list[Problem]]:
    """Return picture -> the person's caption, and everything that is wrong with the rest.

    Args:
        folder: where the raw pictures lie.
        texts: its .txt files, those of sub-folders among them.
        pictures: path of each picture below `folder`, POSIX.
    """
    by_path = {_composed(path): path for path in pictures}
    by_stem = {_stem(path): picture for path, picture in by_path.items()}
    problems: list[Problem] = []
    written: dict[str, Written] = {}
    entries = [(by_stem, entry) for entry in _text_entries(folder, texts, problems)]
    for table in _tables(folder, pictures):
        entries += [(by_path, entry) for entry in _table_entries(folder, table, problems)]
    for known, entry in entries:
        picture = known.get(entry.key)
        if picture is None:
            remedy = "Name it like its picture, capitals included, or take it away."
            problems.append(Problem(entry.where, "caption without a picture", remedy))
        elif picture in written:
            what = f"second caption of its picture (the first is in {written[picture].source})"
            problems.append(Problem(entry.where, what, "Keep one of them."))
        else:
            written[picture] = Written(entry.text, entry.source)
    return written, problems


def _text_entries(folder: Path, texts: Sequence[Path], problems: list[Problem]) -> Iterator[_Entry]:
    for path in texts:
        source = _composed(path.relative_to(folder).as_posix())
        try:
            yield _Entry(str(path), source, _stem(source), read_caption(path))
        except CaptionRefusedError as error:
            problems.append(error.problem)


def _tables(folder: Path, pictures: Sequence[str]) -> list[Path]:
    """Return the caption tables in the folder and beside its pictures, whatever their capitals."""
    homes = {folder} | {(folder / path).parent for path in pictures}
    return sorted(
        path
        for home in homes
        if home.is_dir()
        for path in home.iterdir()
        if path.name.lower() in _REMEDIES and path.is_file()
    )


def _table_entries(folder: Path, table: Path, problems: list[Problem]) -> Iterator[_Entry]:
    kind = table.name.lower()
    source = _composed(table.relative_to(folder).as_posix())
    home = PurePosixPath(source).parent
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except PermissionError:
        problems.append(Problem(str(table), "may not be read", "Give yourself the right to."))
        return
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})"
        problems.append(Problem(str(table), what, "Save it as UTF-8."))
        return
    rows = _json_rows(text) if kind == JSON_LINES else _csv_rows(text)
    for line, row in rows:
        where = f"{table}:{line}"
        try:
            file_name, caption = _cells(row, where, _REMEDIES[kind])
            key = (home / _composed(file_name)).as_posix()
            yield _Entry(where, source, key, check_caption(caption, where))
        except CaptionRefusedError as error:
            problems.append(error.problem)


def _json_rows(text: str) -> Iterator[tuple[int, object]]:
    """Yield line number and content of each line with something in it, broken ones as None."""
    # Not splitlines: a caption may hold a line separator that JSON does not count as one.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def _csv_rows(text: str) -> Iterator[tuple[int, object]]:
    """Yield line number and cells of each row, an unreadable one as None."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not _has_columns(reader.fieldnames or ()):
            yield 1, None
            return
        for row in reader:
            yield reader.line_num, None if None in row else row
    except csv.Error:
        yield reader.reader.line_num, None


def _has_columns(names: Sequence[str]) -> bool:
    return bool(set(names) & set(_FILE_COLUMNS)) and bool(set(names) & set(_TEXT_COLUMNS))


def _cells(row: object, where: str, remedy: str) -> tuple[str, str]:
    """Return file name and caption of a row.

    Raises:
        CaptionRefusedError: the row has no such cells, or two captions.
    """
    if not isinstance(row, dict):
        raise CaptionRefusedError(Problem(where, "not a row with a picture and a caption", remedy))
    files = [row[name] for name in _FILE_COLUMNS if row.get(name) is not None]
    texts = [row[name] for name in _TEXT_COLUMNS if row.get(name) is not None]
    for what, values in (("file name", files), ("caption", texts)):
        if not values or not isinstance(values[0], str):
            raise CaptionRefusedError(Problem(where, f"no {what} in this row", remedy))
        if len(values) > 1 and values[0] != values[1]:
            problem = Problem(where, f"two {what}s in one row", "Keep one of them.")
            raise CaptionRefusedError(problem)
    return str(files[0]), str(texts[0])


def _stem(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _composed(path: str) -> str:
    """Return the path in Unicode's composed form: macOS stores `ü` decomposed, Linux as typed."""
    return unicodedata.normalize("NFC", path)
