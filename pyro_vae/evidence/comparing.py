r"""Models side by side by log p(x) of the same data, with paired errors.

For two models a and b of N data, d_i = log p_a(x_i) - log p_b(x_i), and

.. math:: \sum_i d_i \pm \sqrt{N \, \mathrm{Var}(d_i)}

is the difference and its standard error for more data like these: what makes a datum difficult for
both cancels, so that it is a fraction of the errors of either sum.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.evidence.measured import Measured
from pyro_vae.evidence.weights import Evidence

if TYPE_CHECKING:
    import pandas as pd

LEAST_MODELS = 2


def compare_evidence(evidence: Mapping[str, Evidence]) -> pd.DataFrame:
    """Rank models by log p(x) of the same data.

    Args:
        evidence: what :func:`pv.log_evidence` returned for each model, by name.

    Returns:
        A row a model, the best first, with the columns

        * ``rank``, from 0;
        * ``elpd``, the sum of log p(x) over the data, and its standard error ``se``;
        * ``elpd_diff``, the model's sum minus the best one's, *never positive* whatever the version
          of ArviZ says of its own (0.23 turns it round), and its paired standard error ``dse``;
        * ``mean``, ``mean_diff`` and ``mean_dse``, the same a datum;
        * ``sampling_se``, the error of ``elpd`` by the draws alone: it is a part of ``dse``, while
          their *bias* is of none;
        * ``bad_khat``, the share of data whose khat exceeds 0.7.

    Raises:
        TypeError: for anything but :class:`Evidence`.
        ValueError: where numbers are not comparable: of other data, of another binarization, a
            density beside a mass, or of another event.

    Warns:
        PyroVaeWarning: where the methods differ, or khat exceeds 0.7: biases then do not cancel.

    Example:
        >>> import torch, pyro_vae as pv
        >>> from pyro_vae.models import linear_gaussian
        >>> x = torch.randn(50, 3)
        >>> models = {f"J = {J}": linear_gaussian.build(3, latent_dim=J) for J in (1, 2)}
        >>> found = {n: pv.log_evidence(m, x, method="exact") for n, m in models.items()}
        >>> float(pv.compare_evidence(found)["elpd_diff"].max())
        0.0
    """
    import pandas as pd

    _require_comparable(evidence)
    values = {name: each.value.detach().cpu().double() for name, each in evidence.items()}
    order = sorted(values, key=lambda name: -float(values[name].sum()))
    best = values[order[0]]
    num, rows = len(best), []

    def error(of_data) -> float:
        return float(of_data.std()) * math.sqrt(num) if num > 1 else math.nan

    for rank, name in enumerate(order):
        value, khat = values[name], evidence[name].khat
        difference = value - best
        row = {"rank": rank, "elpd": float(value.sum()), "se": error(value)}
        row |= {"elpd_diff": float(difference.sum()), "dse": error(difference)}
        row |= {"mean": row["elpd"] / num, "mean_diff": row["elpd_diff"] / num}
        row |= {"mean_dse": row["dse"] / num}
        sampling = evidence[name].standard_error.detach().cpu().double().square().sum().sqrt()
        row |= {"sampling_se": float(sampling), "bad_khat": float((khat > 0.7).double().mean())}
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(order, name="model"))
    _warn(evidence, table["bad_khat"].to_dict())
    return table


def _require_comparable(evidence: Mapping[str, Evidence]) -> None:
    if not isinstance(evidence, Mapping) or len(evidence) < LEAST_MODELS:
        raise ValueError(
            f"evidence is {_count(evidence)}, expected a dict of two or more by name, "
            '{"a": pv.log_evidence(a, x), "b": pv.log_evidence(b, x)}'
        )
    known: dict[str, Measured] = {}
    for name, each in evidence.items():
        if not isinstance(each, Evidence):
            raise TypeError(
                f'evidence of "{name}" is {type(each).__name__}, expected Evidence: pass what '
                "pv.log_evidence returns"
            )
        if each.measured is None:
            raise ValueError(
                f'evidence of "{name}" does not say what it was measured on, expected that of '
                "pv.log_evidence: one made of weights by hand is compared by hand"
            )
        known[name] = each.measured
    first, one = next(iter(known.items()))
    for name, other in known.items():
        pair = f'"{first}" and "{name}"'
        if len(evidence[name].value) != len(evidence[first].value):
            raise ValueError(
                f"{pair} are of {len(evidence[first].value)} and {len(evidence[name].value)} data, "
                "expected the same rows: score both on the same x"
            )
        if None not in (one.binarize, other.binarize) and one.binarize != other.binarize:
            raise ValueError(
                f"{pair} are of data binarized {one.binarize} and {other.binarize}, whose nats "
                "differ by tens: score both on one binarization"
            )
        a, b = one.unit, other.unit
        for what, mine, yours in (
            ("kinds", a.kind, b.kind),
            ("numbers of a datum", str(a.numbers), str(b.numbers)),
            ("events", a.given or "all of x", b.given or "all of x"),
        ):
            if mine != yours:
                raise ValueError(
                    f"{pair} have likelihoods of different {what} ({mine}; {yours}), so their nats "
                    "are on different scales: compare models of one kind of likelihood at a time"
                )
        if one.digest != other.digest:
            raise ValueError(
                f"{pair} are of different data (digests {one.digest[:8]} and {other.digest[:8]}), "
                "expected the same rows in the same order, in the same units: score both on one x"
            )


def _count(evidence: object) -> str:
    if isinstance(evidence, Mapping):
        return f"a dict of {len(evidence)}"
    return type(evidence).__name__


def _warn(evidence: Mapping[str, Evidence], bad: dict[str, float]) -> None:
    methods = {n: e.measured.method for n, e in evidence.items() if e.measured is not None}
    if len(set(methods.values())) > 1:
        said = "; ".join(f"{name}: {method}" for name, method in methods.items())
        warnings.warn(
            f"log p(x) was estimated by different methods ({said}), whose biases do not cancel: "
            "use one for all",
            PyroVaeWarning,
            stacklevel=users_line(),
        )
    if any(share > 0 for share in bad.values()):
        said = ", ".join(f"{name} {share:.0%}" for name, share in bad.items())
        warnings.warn(
            f"khat exceeds 0.7 for a share of the data ({said}), whose log p(x) is too low by more "
            'than any error here says: use method="sandwich", whose bounds tell by how much',
            PyroVaeWarning,
            stacklevel=users_line(),
        )
