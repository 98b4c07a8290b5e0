r"""The talk's pictures: two latent variable models, log p = L + KL, reparameterizations, codes.

*Posteriors*: LVM 1, x ~ N(W z, S), and LVM 2, Bernoulli with logits W z, both with
z ~ N(0, I / alpha) in two dimensions, where the exact posterior can be drawn over the guide's.
*Bound*: log p(x) = L + KL(q || p(z | x)) while a guide of LVM 1 is trained: the sum never moves.
*Reparameterizations*: draws of z = g(eps) against the density that they are meant to have.
*Auto-encoder*: a standard one beside a VAE of the same nets, on the small digits.

Formulas are corrected where the slides slip: z = mu + sigma eps (there sigma^2 eps), the posterior
precision alpha I + W' S^-1 W (there alpha + ...), the prior's constant (alpha / 2 pi)^(J/2), and
one observation without a bias leaves p(x) = 1/2 in LVM 2, which is not intractable.

Source: Mattioli (2018), "Auto-Encoding What?"; Kingma & Welling (2014).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.comparison import compare_autoencoder
from pyro_vae.comparison.comparing import built
from pyro_vae.datasets import load
from pyro_vae.models import bernoulli_vae, linear_gaussian, logistic_lvm
from pyro_vae.noise import Stream, seeded
from pyro_vae.objectives import AEVB
from pyro_vae.paper import slides_drawing
from pyro_vae.paper.reproduction import Reproduction, Style, whole_budget
from pyro_vae.paper.shelf import Shelf
from pyro_vae.training.fitting import fit

NAME = "slides"
BUDGET = 100_000
FULL = 1_000_000
DATA_DIM, LATENT_DIM, NUM_DATA = 6, 2, 1000
SHOWN = 4  # data whose posteriors are drawn
DRAWS = 20_000  # of each reparameterization
KEPT = 60  # rows of each picture of codes


def reproduce(
    *,
    budget: float = BUDGET,
    out: str | Path = f"reproduction/{NAME}",
    progress: Any = None,
) -> Reproduction:
    """All four pictures and a table of what is exact in them.

    Args:
        budget: training samples of each of the programs.
        out: folder for numbers, table and pictures.
        progress: as of ``pv.fit``.
    """
    budget = whole_budget(budget, 1000)
    shelf = Shelf(out, progress=progress)
    settings = {"budget": budget}
    numbers = {
        "name": NAME,
        "budget": budget,
        "linear": shelf.piece("linear", settings, lambda: _linear(budget, progress)),
        "logistic": shelf.piece("logistic", settings, lambda: _logistic(budget, progress)),
        "reparameterizations": shelf.piece("draws", {"draws": DRAWS}, _reparameterizations),
        "autoencoder": shelf.piece("autoencoder", settings, lambda: _codes(budget, progress)),
    }
    result = Reproduction(NAME, numbers, STYLE, shelf.out)
    result.save()
    return result


# --- LVM 1 and LVM 2 ----------------------------------------------------------------------------


def _linear(budget: int, progress: Any) -> dict[str, Any]:
    """A guide of LVM 1 learns; the model stands still, so log p(x) does as well."""
    with seeded(*Stream.OWN.key(1)):
        model = linear_gaussian.build(DATA_DIM, latent_dim=LATENT_DIM, posterior="full")
        x = torch.randn(NUM_DATA, LATENT_DIM) @ model.weight.detach().T
        x = x + torch.randn(NUM_DATA, DATA_DIM)
    model.requires_grad_(False)
    for parameter in (model.guide_weight, model.guide_bias, *model.guide_noise.parameters()):
        parameter.requires_grad_(True)
    trace = [_parts(model, x[:1], 0)]

    def watch(record: Any) -> None:
        trace.append(_parts(record.program, x[:1], record.samples))

    fit(
        model, x, AEVB(), samples=budget, lr=0.01, optimizer=torch.optim.Adam, engine="eager",
        weight_prior=0.0, callbacks=[watch], progress=progress,
    )  # fmt: skip
    exact = model.posterior(x[:SHOWN])
    guide = model.guide_noise.around(model.guide_mean(x[:SHOWN]))
    return {
        "exact": {"mean": _list(exact.mean), "covariance": _list(exact.covariance_matrix)},
        "guide": {"mean": _list(guide.mean), "covariance": _list(guide.covariance_matrix)},
        "trace": trace,
        "bound": float(model.elbo(x).detach().mean()),
        "log_p": float(model.log_evidence(x).detach().mean()),
    }


@torch.no_grad()
def _parts(model: Any, x: Tensor, samples: int) -> dict[str, float]:
    """L, KL(q || p(z | x)) and log p(x) of one datum, all three in closed form."""
    guide = model.guide_noise.around(model.guide_mean(x))
    kl = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(guide.mean, guide.covariance_matrix),
        torch.distributions.MultivariateNormal(
            model.posterior(x).mean, model.posterior(x).covariance_matrix
        ),
    )
    return {
        "samples": samples,
        "bound": float(model.elbo(x)[0]),
        "kl": float(kl[0]),
        "log_p": float(model.log_evidence(x)[0]),
    }


def _logistic(budget: int, progress: Any) -> dict[str, Any]:
    """The guide of LVM 2 against the posterior on a grid."""
    with seeded(*Stream.OWN.key(2)):
        weight = 2.5 * torch.randn(DATA_DIM, LATENT_DIM)
        z = torch.randn(NUM_DATA, LATENT_DIM)
        x = torch.bernoulli(torch.sigmoid(z @ weight.T))
    model: Any = built(
        lambda: logistic_lvm.build(DATA_DIM, latent_dim=LATENT_DIM, weight=weight), 0
    )
    model.weight.requires_grad_(False)
    model.bias.requires_grad_(False)
    fit(
        model, x, AEVB(), samples=budget, optimizer=torch.optim.Adam, lr=0.01, engine="eager",
        weight_prior=0.0, progress=progress,
    )  # fmt: skip
    unlike = torch.unique(x, dim=0)[:: max(1, len(torch.unique(x, dim=0)) // SHOWN)][:SHOWN]
    with torch.no_grad():
        guide = model.encoder(unlike).base_dist
        mean, covariance = model.posterior_moments(unlike)
        line = torch.linspace(-4, 4, 81)
        grid = torch.cartesian_prod(line, line)
        logits = grid @ model.weight.T + model.bias
        log_lik = logits @ unlike.T - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)
        log_p = log_lik - grid.square().sum(-1, keepdim=True) / 2
        density = (log_p - log_p.amax(0)).exp()
    coin = logistic_lvm.build(1, weight=torch.tensor([[3.0]]))
    return {
        "exact": {"mean": _list(mean), "covariance": _list(covariance)},
        "guide": {"mean": _list(guide.mean), "covariance": _list(guide.variance.diag_embed())},
        "line": _list(line),
        # density[datum][first coordinate][second], relative to its mode
        "density": _list(density.T.reshape(len(unlike), 81, 81), 3),
        "one_observation": float(coin.log_evidence(torch.ones(1, 1)).detach().exp()),
    }


def _list(values: Tensor, digits: int = 5) -> Any:
    return np.round(values.detach().double().cpu().numpy(), digits).tolist()


# --- reparameterizations ------------------------------------------------------------------------


def reparameterized(name: str, eps: Tensor) -> Tensor:
    """z = g(eps): eps normal for the normal, uniform on [0, 1) (..., 3) or (...) for the others."""
    if name == "normal":  # N(1, 0.5^2)
        return 1.0 + 0.5 * eps
    if name == "exponential":  # rate 1.5
        return -torch.log1p(-eps) / 1.5
    if name == "gamma":  # shape 3, scale 0.5: a sum of exponentials
        return -0.5 * torch.log1p(-eps).sum(-1)
    raise ValueError(f"name is {name!r}, expected normal, exponential or gamma")


MOMENTS = {"normal": (1.0, 0.25), "exponential": (1 / 1.5, 1 / 1.5**2), "gamma": (1.5, 0.75)}


def _reparameterizations() -> dict[str, Any]:
    """Histograms, and moments beside the exact ones."""
    found = {}
    for number, name in enumerate(MOMENTS):
        with seeded(*Stream.OWN.key(3, number)):
            shape = (DRAWS, 3) if name == "gamma" else (DRAWS,)
            eps = torch.randn(shape) if name == "normal" else torch.rand(shape)
        z = reparameterized(name, eps.double())
        counts, edges = np.histogram(z.numpy(), bins=60, density=True)
        found[name] = {
            "mean": float(z.mean()),
            "variance": float(z.var()),
            "density": np.round(counts, 4).tolist(),
            "edges": np.round(edges, 4).tolist(),
        }
    return found


# --- an auto-encoder beside a VAE ---------------------------------------------------------------


def _codes(budget: int, progress: Any) -> dict[str, Any]:
    digits = load("digits", binarize="none")
    both = compare_autoencoder(
        digits,
        build=lambda: bernoulli_vae.build(
            digits.dim, latent_dim=2, hidden_dim=64, soft_targets=True, init_std=None
        ),
        samples=budget,
        engine="eager",
        lr=0.05,
        progress=progress,
    )
    found = {
        name: {
            "codes": _list(torch.as_tensor(codes.codes[:300]), 3),
            "prior": _list(torch.as_tensor(codes.prior[:300]), 3),
            "decoded": _list(torch.as_tensor(codes.decoded[:KEPT]), 3),
            "reconstructed": _list(torch.as_tensor(codes.reconstructed[:KEPT]), 3),
        }
        for name, codes in both.found.items()
    }
    rows = {name: row.to_dict() for name, row in both.table().iterrows()}
    rows = {n: {k: None if v != v else float(v) for k, v in row.items()} for n, row in rows.items()}
    return {
        "data": _list(torch.as_tensor(both.data[:KEPT]), 3),
        "image_shape": list(digits.image_shape or (8, 8)),
        "found": found,
        "table": rows,
    }


# --- what is shown ------------------------------------------------------------------------------


def table(numbers: Mapping[str, Any]) -> Any:
    """What was measured beside what is exact."""
    import pandas as pd

    rows = []

    def row(what: str, measured: float, exact: float) -> None:
        rows.append({"what": what, "measured": measured, "exact": exact})

    for name, words in (("linear", "LVM 1"), ("logistic", "LVM 2")):
        exact, guide = numbers[name]["exact"], numbers[name]["guide"]
        for part, entry in (("mean", [0, 0]), ("covariance", [0, 0, 0])):
            values = [np.array(each[part])[tuple(entry)] for each in (guide, exact)]
            row(f"{words}: posterior {part} of the first datum, z[0]", *values)
    trace = numbers["linear"]["trace"]
    row("LVM 1: L + KL at the end", trace[-1]["bound"] + trace[-1]["kl"], trace[-1]["log_p"])
    row("LVM 1: mean bound of all data", numbers["linear"]["bound"], numbers["linear"]["log_p"])
    row("LVM 2: p(x) of one observation", numbers["logistic"]["one_observation"], 0.5)
    for name, (mean, variance) in MOMENTS.items():
        found = numbers["reparameterizations"][name]
        row(f"{name}: mean", found["mean"], mean)
        row(f"{name}: variance", found["variance"], variance)
    return pd.DataFrame(rows).set_index("what")


def words(numbers: Mapping[str, Any]) -> str:
    trace = numbers["linear"]["trace"]
    off = max(abs(point["bound"] + point["kl"] - point["log_p"]) for point in trace)
    codes = numbers["autoencoder"]["table"]
    error = math.sqrt(2 / DRAWS)
    return (
        f"L + KL differs from log p(x) by at most {off:.1e} nats while the guide learns. Moments "
        f"of {DRAWS:,} draws have relative errors of about {error:.1%}. The auto-encoder's codes "
        f"are {codes['auto-encoder']['to prior']:.2f} from the prior (energy distance, 0 to 1), "
        f"the VAE's {codes['VAE']['to prior']:.2f}."
    )


STYLE = Style(table, slides_drawing.draw, words, digits=3)
