"""What programs of the idioms of public Pyro code are trained on, and what is known of them."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from torch.nn import functional as F

from .foreign import (
    AmortizedLDA,
    AttendInferRepeat,
    CausalEffect,
    ConditionalVAE,
    DeepMarkov,
    FlowPrior,
    ImageToSpectrum,
    JointVAE,
    MixtureVAE,
    ProdLDA,
    RandomWeights,
    RotatedVAE,
    SemiSupervised,
    SingleCell,
    TutorialVAE,
)


def bits(n, dim, seed=0):
    chance = torch.rand(dim, generator=torch.Generator().manual_seed(seed))
    return torch.bernoulli(chance.expand(n, dim), generator=torch.Generator().manual_seed(seed + 1))


def real(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.randn(2, dim, generator=generator)


def classes(n):
    return F.one_hot(torch.arange(n) % 3, 3).float()


def counts(n, dim, high):
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(5, high, (n, 1), generator=generator)
    return torch.poisson(sizes * torch.rand(n, dim, generator=generator) / dim, generator=generator)


def sequences(n):
    lengths = 1 + torch.arange(n) % 3
    mask = (torch.arange(3) < lengths.unsqueeze(-1)).float()
    return {"mini_batch": bits(n, 12).view(n, 3, 4) * mask.unsqueeze(-1), "mini_batch_mask": mask}


def causal(n):
    x, t = real(n, 4), bits(n, 1, 5).squeeze(-1)
    return {"x": x, "t": t, "y": x[:, 0] + t}


@dataclass(frozen=True)
class Foreign:
    """One program: how it is built, on what, and by which of Pyro's objectives its authors train.

    Attributes:
        module: makes the author's own module.
        data: (number of rows) -> what ``pv.fit`` is given.
        elbo: Pyro's objective, and its arguments.
        captured: whether a step of it is a graph.
        per_datum: whether there is a log p(x) of a datum: no latent is shared.
        in_parts: whether it takes minibatches: plates of shared latents count those rows alone.
        mistake: the one thing that ``check`` rightly says of it.
        guide: one of Pyro's automatic guides, made of the module, where it has none of its own.
    """

    module: Any
    data: Any
    elbo: tuple[Any, dict[str, Any]] = (Trace_ELBO, {})
    captured: bool = True
    per_datum: bool = True
    in_parts: bool = True
    mistake: str = ""
    guide: Any = None


def summed(nesting=1):
    return TraceEnum_ELBO, {"max_plate_nesting": nesting}


PROGRAMS = {
    "tutorial VAE": Foreign(TutorialVAE, lambda n: bits(n, 12)),
    "conditional VAE": Foreign(
        ConditionalVAE, lambda n: {"xs": bits(n, 6), "ys": bits(n, 6, 2)},
        mistake='parameter "wrapped.baseline.0.weight": no gradient',
    ),
    "semi-supervised, unlabelled": Foreign(SemiSupervised, lambda n: {"xs": bits(n, 12)}, summed()),
    "semi-supervised, labelled": Foreign(
        SemiSupervised, lambda n: {"xs": bits(n, 12), "ys": classes(n)},
        mistake='parameter "wrapped.encoder_y.0.weight": no gradient',
    ),
    "deep Markov model": Foreign(DeepMarkov, sequences),
    "amortized LDA": Foreign(
        AmortizedLDA, lambda n: torch.arange(5 * n).view(n, 5).pow(2) % 8, summed(2),
        per_datum=False,
    ),
    "ProdLDA": Foreign(ProdLDA, lambda n: counts(n, 8, 30), captured=False),
    "flow prior": Foreign(FlowPrior, lambda n: real(n, 5)),
    "GM-VAE": Foreign(MixtureVAE, lambda n: real(n, 5), summed()),
    "causal effect VAE": Foreign(CausalEffect, causal),
    "attend, infer, repeat": Foreign(AttendInferRepeat, lambda n: real(n, 6)),
    "single cell": Foreign(SingleCell, lambda n: counts(n, 6, 60)),
    "image to spectrum": Foreign(
        ImageToSpectrum, lambda n: {"images": bits(n, 16).view(n, 1, 4, 4), "spectra": real(n, 7)}
    ),
    "spatial transformer": Foreign(RotatedVAE, lambda n: bits(n, 16).view(n, 4, 4)),
    "random weights": Foreign(
        RandomWeights, lambda n: {"x": real(n, 2), "y": real(n, 1).squeeze(-1)}, per_datum=False,
        in_parts=False, captured=False,
        guide=AutoDiagonalNormal,
    ),
    "joint VAE": Foreign(JointVAE, lambda n: bits(n, 12), summed()),
}  # fmt: skip
