"""A finished run on the Hugging Face Hub: the LoRA, the slim LoRA, a card and sample pictures.

    python -m flows.publish OWNER/NAME            say what would be uploaded, and ask nobody
    python -m flows.publish OWNER/NAME --push     upload it, to a private repository

Nothing is made public without --public, neither a new repository nor one that is there (--update).

The token comes from HF_TOKEN or from the login that huggingface_hub keeps; it is in no message.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import safe_open

from flows.card import Sample, write_card
from stages.contracts.errors import BlocklensError, Problem
from stages.contracts.params import Params, load_params
from stages.contracts.tables import BLOCKS, read_table

_SLIM: Final = Path("data/slim")
_TOKENS_PAGE: Final = "https://huggingface.co/settings/tokens"
_CAPTIONS_FIELD: Final = "ss_tag_frequency"
_SHOWN_CHARACTERS: Final = 300
_MESSAGE: Final = "The LoRA, its slim version and its card"
_ANSWERS: Final = {
    401: (
        "the Hub does not know the token, or there is none",
        f"Set HF_TOKEN or run `hf auth login` with one from {_TOKENS_PAGE}.",
    ),
    403: (
        "the token may not write here",
        f"Give it write access at {_TOKENS_PAGE}, or name a repository of your own.",
    ),
    404: ("no such owner, or a repository that the token may not see", "Check owner and name."),
}
_CONFLICT: Final = 409
_TAKEN: Final = (
    "exists already",
    "Name another repository, or add a commit to it with --update.",
)
_EMPTY: Final = (
    "was made, and is still empty",
    "Run the same command with --update, which goes on with it.",
)


class PublishError(BlocklensError, RuntimeError):
    """No file was published; the message says why."""


@dataclass(frozen=True)
class Publication:
    """What goes to the Hub: files by their path there, and the card."""

    files: Mapping[str, Path]
    card: str


def gather(root: Path, params: Params) -> Publication:
    """Return what a finished run publishes.

    Raises:
        PublishError: files of the run are missing; all of them are named.
        TableError: the block table breaks its contract.
    """
    adapter, slim = root / params.split.adapter, root / _SLIM / "adapter-slim.safetensors"
    files = {"adapter.safetensors": adapter, "adapter-slim.safetensors": slim}
    seed = params.prompts.held_out_seeds[0]
    samples = []
    for number, prompt in enumerate(params.prompts.held_out):
        for variant in ("full", "slim"):
            name = f"images/held-out-{number}-{variant}.png"
            files[name] = root / _SLIM / "images" / f"held-out-{number}-{seed}" / f"{variant}.png"
            samples.append(Sample(prompt, name))
    blocks, metrics = root / "data/evaluate/blocks.csv", root / _SLIM / "metrics.json"
    needed = (*files.values(), blocks, metrics)
    if missing := [path for path in needed if not path.is_file()]:
        remedy = "Run `dvc repro`, or `dvc pull` where it has run."
        problems = [Problem(_shown_path(path, root), "missing", remedy) for path in missing]
        raise PublishError("There is nothing to publish yet", problems)
    table = read_table(BLOCKS, blocks)
    return Publication(files, write_card(params, table, metrics, samples))


def _shown_path(path: Path, root: Path) -> str:
    """Return a path below the project from there, another as it is."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def listing(repository: str, publication: Publication) -> str:
    """Return what would be uploaded, with sizes in bytes, and what the LoRAs say of captions."""
    sizes = {name: path.stat().st_size for name, path in publication.files.items()}
    sizes["README.md"] = len(publication.card.encode())
    lines = [f"{size:>13,}  {name}" for name, size in sorted(sizes.items())]
    total = f"{sum(sizes.values()):>13,}  bytes in all"
    return "\n".join([f"to {repository}:", *lines, total, *_words_of_captions(publication)])


def _words_of_captions(publication: Publication) -> list[str]:
    """Return a line for each LoRA whose header, which is uploaded with it, quotes captions."""
    lines = []
    for name, path in publication.files.items():
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="numpy") as file:
            words = (file.metadata() or {}).get(_CAPTIONS_FIELD, "")
        if words:
            more = "…" if len(words) > _SHOWN_CHARACTERS else ""
            start = words[:_SHOWN_CHARACTERS]
            lines.append(f"{name} quotes your captions ({_CAPTIONS_FIELD}): {start}{more}")
    return lines


def push(repository: str, publication: Publication, *, public: bool, update: bool) -> str:
    """Upload everything as one commit and return its address.

    Args:
        repository: owner/name.
        publication: what is uploaded.
        public: whether everybody may see it: a new repository is made so, another must be so.
        update: add to a repository that exists, whose visibility stays.

    Raises:
        PublishError: the Hub refuses or cannot be reached, or the repository is not as `public`
            says. A new repository that is left empty is told.
    """
    _require_sound(repository)
    operations = [
        CommitOperationAdd(name, str(path)) for name, path in sorted(publication.files.items())
    ]
    operations.append(CommitOperationAdd("README.md", publication.card.encode()))
    disable_progress_bars()
    hub = HfApi()
    if update:
        _require_visibility(hub, repository, public=public)
    else:
        with _explained(repository, {_CONFLICT: _TAKEN}):
            hub.create_repo(repository, private=not public)
    left = [] if update else [Problem(repository, *_EMPTY)]
    with _explained(repository, {}, left):
        commit = hub.create_commit(repository, operations, commit_message=_MESSAGE)
    return str(commit.commit_url)


@contextmanager
def _explained(
    repository: str, answers: Mapping[int, tuple[str, str]], left: Sequence[Problem] = ()
) -> Iterator[None]:
    """Turn what the Hub's client raises into our own error.

    Args:
        repository: owner/name.
        answers: what the Hub's answers mean here, apart from those that mean the same everywhere.
        left: what else there is to say then.

    Raises:
        PublishError: the Hub refuses or cannot be reached.
    """
    try:
        yield
    # RuntimeError: what huggingface_hub makes of any failure while it sends a large file.
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        problem = _problem(error, repository, {**_ANSWERS, **answers})
        # Without the cause: it holds the request, and with it the token.
        raise PublishError("Nothing is published", [problem, *left]) from None


def _require_sound(repository: str) -> None:
    """Accept a repository's name and a token that can be sent."""
    problems = []
    try:
        validate_repo_id(repository)
    except HFValidationError:
        problems.append(Problem(repository, "not a repository's name", "Write it as owner/name."))
    token = huggingface_hub.get_token()
    if token is None:
        what, remedy = _ANSWERS[401]
        problems.append(Problem("the token", what, remedy))
    elif not (token.isascii() and token.isprintable() and " " not in token):
        what = "holds characters that no token has"
        problems.append(Problem("the token", what, f"Copy it again from {_TOKENS_PAGE}."))
    if problems:
        raise PublishError("Nothing is published", problems)


def _require_visibility(hub: HfApi, repository: str, *, public: bool) -> None:
    """Accept a repository that everybody sees if `public`, and else only one that is private."""
    with _explained(repository, {}):
        private = hub.repo_info(repository).private
    if public and private is not False:
        what = "is private, and --update leaves it so"
        problem = Problem(repository, what, "Leave --public out, or make it public on its page.")
    elif not public and private is not True:
        what = "is public: everybody would see what is uploaded"
        problem = Problem(repository, what, "Add --public if that is meant.")
    else:
        return
    raise PublishError("Nothing is published", [problem])


def _problem(error: Exception, repository: str, answers: Mapping[int, tuple[str, str]]) -> Problem:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        unknown = (f"the Hub answers with {status}", "Try again later.")
        return Problem(repository, *answers.get(status, unknown))
    reason = error.__cause__ if isinstance(error, RuntimeError) else None
    what = f"the Hub cannot be reached, or breaks off ({type(reason or error).__name__})"
    return Problem(repository, what, "Check network and proxy, then try again.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 1 with one message."""
    parser = argparse.ArgumentParser(prog="python -m flows.publish", description=__doc__)
    parser.add_argument("repository", help="owner/name on the Hub")
    parser.add_argument("--push", action="store_true", help="upload; without it, only say what")
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    parser.add_argument("--update", action="store_true", help="add to a repository that exists")
    asked = parser.parse_args(arguments)
    root = Path.cwd()
    try:
        publication = gather(root, load_params(root / "params.yaml"))
        sys.stdout.write(listing(asked.repository, publication) + "\n")
        if not asked.push:
            sys.stdout.write("nothing is uploaded: add --push\n")
            return 0
        address = push(asked.repository, publication, public=asked.public, update=asked.update)
    except BlocklensError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{address}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
