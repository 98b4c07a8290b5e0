"""The command line: the package's verbs, with typed flags.

Libraries that take seconds to import (torch, pyro, arviz) are imported inside the verbs, so that
``pyro-vae --help`` answers at once.  A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def run_compare(
    data: str = "digits",
    objectives: Sequence[str] = ("AEVB", "WakeSleep", "MonteCarloEM"),
    samples: int = 150_000,
    seeds: int = 3,
    latent_dim: int = 2,
    hidden_dim: int = 128,
    lr: float = 0.02,
    out: Path = Path("comparison"),
    data_dir: Path | None = None,
) -> None:
    """Train the same nets by each objective and compare them on held-out data.

    Writes a table, a picture of the learning curves and the numbers (netCDF).

    Args:
        data: name of a data set.
        objectives: names from pyro_vae.objectives.
        samples: budget of each run, rows x updates.
        seeds: runs of each objective.
        latent_dim: latent dimensions.
        hidden_dim: hidden units.
        lr: the global step of Adagrad.
        out: folder for the results.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
    """
    chosen = [_objective(each) for each in objectives]
    folder = _writable(out)
    import pyro_vae as pv
    from pyro_vae import comparison
    from pyro_vae.models import bernoulli_vae, gaussian_vae

    loaded = pv.datasets.load(data, data_dir=data_dir)
    binary = loaded.train.binarize != "none"
    module, name = (bernoulli_vae, "bernoulli") if binary else (gaussian_vae, "gaussian")
    # torch's own initialization: with the paper's sigma = 0.01 small images hardly start within
    # this budget, and seeds and orders blur.
    options = {"latent_dim": latent_dim, "hidden_dim": hidden_dim, "init_std": None}
    result = comparison.compare(
        loaded,
        builds={name: lambda: module.build(loaded.dim, **options)},
        objectives=chosen,
        seeds=seeds,
        samples=samples,
        lr=lr,
    )
    table = result.table()
    print(_rendered(table))
    table.to_csv(folder / "table.csv")
    result.plot(folder / "curves.png")
    result.save(folder / "comparison.nc")
    print(f"\nwritten: {folder}/table.csv, {folder}/curves.png, {folder}/comparison.nc")


def _objective(name: str):
    from pyro_vae import objectives

    known = [n for n in objectives.__all__ if n not in ("Objective", "State")]
    if name not in known:
        raise ValueError(f"objectives: {nearest(name, known)}")
    return getattr(objectives, name)()


def nearest(name: str, known: Sequence[str]) -> str:
    """``unknown "X", did you mean "Y"? known: ...``."""
    import difflib

    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.3)
    hint = f', did you mean "{by_lower[close[0]]}"?' if close else ","
    return f'unknown "{name}"{hint} known: {", ".join(known)}'


def _writable(out: Path) -> Path:
    """The folder for results, made and tried before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}; name a folder that can be made") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written; name another folder")
    return out


def _rendered(table) -> str:
    """The table for a terminal: value ± standard error, nats per datum."""
    import pandas as pd

    shown = pd.DataFrame(index=table.index)
    for column in ("bound", "log p(x)", "against first"):
        pairs = zip(table[column], table[f"{column} ±"], strict=True)
        shown[column] = [
            "—" if math.isnan(value) else f"{value:.2f} ± {error:.2f}" for value, error in pairs
        ]
    shown["over seeds ±"] = table["spread"].map("{:.2f}".format)
    shown["khat > 0.7"] = table["khat > 0.7"].map("{:.0%}".format)
    shown["samples"] = table["samples"].map("{:,}".format)
    shown["leapfrogs"] = table["leapfrogs"].map("{:,}".format)
    shown["seconds"] = table["seconds"].map("{:.1f}".format)
    return shown.reset_index().to_string(index=False)


VERBS = {"compare": run_compare}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 2 for a user's mistake, 130 for Ctrl-C."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="pyro-vae",
        description="Auto-Encoding Variational Bayes in Pyro.",
        exit_on_error=False,
    )
    subcommands = parser.add_subcommands(required=True)
    for name, verb in VERBS.items():
        sub = jsonargparse.ArgumentParser(
            description=(verb.__doc__ or "").split("Args:")[0], exit_on_error=False
        )
        sub.add_argument("--config", action="config", help="a YAML file with these options")
        sub.add_function_arguments(verb)
        subcommands.add_subcommand(name, sub, help=(verb.__doc__ or "").splitlines()[0])
    try:
        chosen = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        said = " ".join(str(error).split())
        print(f"pyro-vae: {said}; see pyro-vae --help", file=sys.stderr)
        return 2
    options = {k: v for k, v in vars(chosen[chosen.subcommand]).items() if k != "config"}
    try:
        VERBS[chosen.subcommand](**options)
    except (ValueError, TypeError, OSError) as error:
        print(f"pyro-vae {chosen.subcommand}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyro-vae: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
