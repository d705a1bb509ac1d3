"""Each block's share of what the LoRA does, without a picture per block.

Reads:   the base model (--weights: its manifest), the adapter (--adapter).
Writes:  shares.csv (SHARES), levels.csv (LEVELS), probes.csv (PROBES), metrics.json.
Params:  attribute, model, sampling, prompts.

Shares are integrated gradients over block gates (lens/attribution.py) at noised pictures of the
development prompts and of attribute.prompts (sampling/probes.py). They are averaged over noise
levels, then over prompts and seeds, whose bootstrap gives the intervals. A share is signed: below 0
the block works against the rest. levels.csv has the shares at each noise level, and what of them is
done to the picture's tokens and to the prompt's. `prior` is what the weights alone say: the norm of
each block's Delta W relative to its W, scaled to sum to 1. `plain_share` is the share of what the
LoRA does to prompts without the trigger: a block that has more there than elsewhere bleeds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.adapters.base_weights import open_linear_weights
from stages.adapters.compatibility import require_fit
from stages.adapters.files import read_adapter
from stages.adapters.module import Adapter
from stages.adapters.norms import block_norms
from stages.contracts.errors import AdapterError, Problem
from stages.contracts.params import AttributeParams, ModelParams, PromptsParams, SamplingParams
from stages.contracts.tables import LEVELS, PROBES, SHARES, write_table
from stages.families.streams import STREAMS
from stages.families.weights import ensure_weights
from stages.lens.attribution import Effect, block_shares, measure_effect, relative_effect
from stages.lens.rankings import Resampling, bootstrap_tau, split_half_tau
from stages.lens.selection import blocks_for
from stages.lens.statistics import bootstrap_means, interval
from stages.runtime.console import run_stage
from stages.runtime.crew import Crew, open_crew
from stages.runtime.files import rounded, write_json
from stages.runtime.outputs import replace_folder
from stages.sampling.probes import ask_crew, make_probes
from stages.sampling.prompts import name_prompts, number_prompts
from stages.sampling.session import Session, set_scene

_log = logging.getLogger(__name__)


def attribute(
    params: AttributeParams,
    model: ModelParams,
    sampling: SamplingParams,
    prompts: PromptsParams,
    *,
    weights: Path,
    adapter: Path,
    out: Path,
) -> None:
    """Write the share of every block present, with its interval and prior, into `out`.

    Raises:
        AdapterError: the adapter cannot be read, does not fit the base model, or has no effect.
        WeightsError: the base weights are missing or changed.
        ClusterError: the workers of $BLOCKLENS_DASK are not there, or not fit for the work.
    """
    source = read_adapter(adapter)
    folder = ensure_weights(weights)
    priors = _priors(source, folder, adapter)
    named = name_prompts(prompts)
    shown = (*named.develop, *number_prompts("attribute", params.prompts))
    pictures, plain = (
        [(prompt.name, seed) for prompt in group for seed in params.seeds]
        for group in (shown, named.without_trigger)
    )
    _log.info(
        "shares of %d blocks from %d prompts, %d seeds, %d noise levels and %d nodes",
        len(source.blocks),
        len(shown),
        len(params.seeds),
        len(params.sigmas),
        params.nodes,
    )
    every = (*shown, *named.without_trigger)
    checkpointed = params.gradient_checkpointing
    scene = set_scene(weights, adapter, every, model, sampling, checkpointed=checkpointed)
    with open_crew(scene) as crew:
        effect, streams = _shares(crew, pictures, source, params, sampling)
        plain_streams = _shares(crew, plain, source, params, sampling)[1] if plain else None
    shares = streams.sum(axis=2)
    shape = (len(shown), len(params.seeds), len(params.sigmas), len(source.blocks))
    crossed = shares.reshape(shape).mean(axis=2)
    table = _table(source, crossed, priors, params)
    table["plain_share"] = (
        np.nan if plain_streams is None else plain_streams.sum(axis=2).mean(axis=0)
    )
    with replace_folder(out) as work:
        write_table(SHARES, table, work / "shares.csv")
        write_table(LEVELS, _levels(source, streams, params), work / "levels.csv")
        write_table(PROBES, _probes(pictures, shares, effect, params), work / "probes.csv")
        write_json(work / "metrics.json", _metrics(table, streams, crossed, params))


def _shares(
    crew: Crew[Session],
    pictures: Sequence[tuple[str, int]],
    adapter: Adapter,
    params: AttributeParams,
    sampling: SamplingParams,
) -> tuple[Effect, npt.NDArray[np.float64]]:
    """Return the LoRA's effect at each probe, and the shares [probes, blocks, streams] of it.

    There is a probe per picture and noise level; the noise level varies fastest.
    """
    probes = make_probes(crew, len(adapter.blocks), pictures, params.sigmas, sampling)
    ask = ask_crew(crew, probes)
    effect = measure_effect(ask, len(probes), len(adapter.blocks), sampling.batch)
    return effect, block_shares(effect, params.nodes, sampling.batch, len(STREAMS))


def _priors(adapter: Adapter, folder: Path, path: Path) -> npt.NDArray[np.float64]:
    """Return |Delta W| / |W| of each block present, scaled to sum to 1."""
    with open_linear_weights(folder) as linears:
        require_fit(adapter, linears.shapes)
        norms = block_norms(adapter, linears.read)
    relative = np.array([norms[block].relative for block in adapter.blocks])
    if relative.sum() == 0.0:
        problem = Problem(str(path), "Delta W is zero everywhere", "Name a trained LoRA.")
        raise AdapterError("The adapter has no effect", [problem])
    priors: npt.NDArray[np.float64] = relative / relative.sum()
    return priors


def _table(
    adapter: Adapter,
    shares: npt.NDArray[np.float64],
    priors: npt.NDArray[np.float64],
    params: AttributeParams,
) -> pd.DataFrame:
    """Return the SHARES table of shares [prompts, seeds, blocks]."""
    means = bootstrap_means(shares, params.resamples, params.seed)
    low, high = interval(means, params.confidence)
    return pd.DataFrame(
        {
            "block": [str(block) for block in adapter.blocks],
            "share": shares.mean(axis=(0, 1)),
            "low": low,
            "high": high,
            "prior": priors,
        }
    )


def _levels(
    adapter: Adapter, streams: npt.NDArray[np.float64], params: AttributeParams
) -> pd.DataFrame:
    """Return the LEVELS table of shares [probes, blocks, streams], noise levels fastest."""
    names = [str(block) for block in adapter.blocks]
    tables = []
    for level, sigma in enumerate(params.sigmas):
        there = streams[level :: len(params.sigmas)]
        whole = there.sum(axis=2)
        columns = {"block": names, "sigma": sigma, "share": whole.mean(axis=0)}
        for place, stream in enumerate(STREAMS):
            columns[stream] = there[:, :, place].mean(axis=0)
        columns |= {"least": whole.min(axis=0), "most": whole.max(axis=0)}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _probes(
    pictures: Sequence[tuple[str, int]],
    shares: npt.NDArray[np.float64],
    effect: Effect,
    params: AttributeParams,
) -> pd.DataFrame:
    """Return the PROBES table."""
    places = [(name, seed, sigma) for name, seed in pictures for sigma in params.sigmas]
    table = pd.DataFrame(places, columns=["prompt", "seed", "sigma"])
    table["effect"] = relative_effect(effect)
    table["completeness_error"] = np.abs(shares.sum(axis=1) - 1.0)
    return table


def _metrics(
    table: pd.DataFrame,
    streams: npt.NDArray[np.float64],
    crossed: npt.NDArray[np.float64],
    params: AttributeParams,
) -> dict[str, float | int]:
    """Return the metrics; the completeness error is that of the worst probe."""
    means = table["share"].tolist()
    errors = np.abs(streams.sum(axis=(1, 2)) - 1.0)
    resampling = Resampling(params.resamples, params.confidence, params.seed)
    text = streams[:, :, STREAMS.index("text")].sum(axis=1).mean()
    taus = {
        "split_half_tau": split_half_tau(crossed),
        "bootstrap_tau": bootstrap_tau(crossed, resampling),
    }
    return {
        "completeness_error": rounded(float(errors.max()), 3),
        "completeness_error_mean": rounded(float(errors.mean()), 3),
        "top_block_share": rounded(max(means)),
        "blocks_for_half": blocks_for(means, 0.5),
        "blocks_against": int((table["share"] < 0.0).sum()),
        "text_share": rounded(float(text)),
        **{name: rounded(tau) for name, tau in taus.items() if not np.isnan(tau)},
    }


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        attribute,
        sections=("attribute", "model", "sampling", "prompts"),
        paths=("weights", "adapter", "out"),
    )


if __name__ == "__main__":
    main()
