"""The file of a training adapter: from the Hub at a commit, or from a path with its hash."""

from __future__ import annotations

from pathlib import Path

from stages.adapters.files import read_adapter
from stages.adapters.module import Adapter
from stages.contracts.errors import AdapterError, Problem
from stages.contracts.params import TrainingAdapterParams
from stages.families.hub import download
from stages.runtime.files import sha256_file


def open_training_adapter(params: TrainingAdapterParams) -> Adapter:
    """Return the adapter that `params` name.

    What it holds is decided by params.yaml alone: by the commit, or by the SHA-256 of the file.

    Raises:
        AdapterError: the file is missing, no LoRA of a FLUX transformer, or another one.
        WeightsError: the Hub does not have it, or cannot be reached.
    """
    path = Path(params.file)
    if params.repository is not None and params.revision is not None:
        path = download(params.repository, params.revision, [params.file]) / params.file
    adapter = read_adapter(path)
    if params.sha256 is not None and (found := sha256_file(path)) != params.sha256:
        problem = Problem(
            f"train.training_adapter, {path}",
            f"SHA-256 is {found}, expected {params.sha256}",
            "Get the file again; if it is the one you mean, put its hash into params.yaml.",
        )
        raise AdapterError("The training adapter is another one", [problem])
    return adapter
