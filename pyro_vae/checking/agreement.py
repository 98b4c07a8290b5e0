r"""Whether a sampler draws from a density: identities of bounded averages, in any dimension.

Let z be drawn by the sampler of p, and y by that of a reference r whose density is known.  Then

.. math:: E_p\Big[f(z) \frac{r(z)}{p(z) + r(z)}\Big] = E_r\Big[f(y) \frac{p(y)}{p(y) + r(y)}\Big]

because both are the integral of f p r / (p + r).  It holds for every reference and every bounded f,
whether p has long tails or many modes, if p integrates to one and its sampler draws from it.  What
is averaged is bounded, so that the errors of both averages are known.  A reference far away from p
makes the test blind and never makes it lie.

In many dimensions no reference need come near.  Two further identities ask p alone.  Let T be an
invertible map, and b(z) = p(Tz)|T| / (p(Tz)|T| + p(z)), the probability with which Barker's rule
would move z to Tz.  Then

.. math:: E_p[b_T(z)] = E_p[b_{T^{-1}}(z)], \qquad E_p[b_T(z) (2 b_T(z) - 1)] = 0

the latter where T and its inverse are equally probable.  T scales all coordinates, and steps by the
difference of two further draws.  These do not see how p is normalized.

Everything is in coordinates without bounds, by :mod:`~pyro_vae.checking.coordinates`.

Source: Bennett (1976), J. Comput. Phys. 22, 245, eq. (6), at a ratio of one; Meng & Wong (1996),
Statistica Sinica 6, 831.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.checking.coordinates import support_of, to_support, without_events
from pyro_vae.checking.references import Reference, fitted
from pyro_vae.torch_internals import TorchDispatchMode

# |sum| > SIGMAS * root of the sum of squares + RARE: of 1e-8 for each average by Efron's bound for
# symmetric terms; the constant, eight terms of the largest size, is for what no draw has met.
SIGMAS, RARE = 6.0, 8.0
MOST, LEAST, TO_FIT = 2048, 512, 1024  # draws
CELLS = 2  # of a batch whose laws differ
MANY = 16_384
WORK = 5e7  # numbers that one evaluation of a density may compute
CHUNK = 2.0e7  # of them at a time
COARSE, AT_EDGE = 0.05, 0.002  # of coordinates without bounds, by one rounding; of draws
DIRECTIONS = 3  # principal ones at either end, along which draws are looked at


class Found(NamedTuple):
    """One average that differs from what it must be.

    Attributes:
        by: "reference", "scale" or "steps".
        sigmas: by how many errors, with the sign.
    """

    by: str
    sigmas: float


class _Work(TorchDispatchMode):
    """Counts the numbers that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.calls = 0.0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            inner = 1.0
            if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
                inner += args[-1].shape[-2] / 8  # a product runs faster than other operations
            self.count += result.numel() * inner
            self.calls += 1
        return result


class Examined:
    """One law of a site, all its batch, in coordinates without bounds.

    Attributes:
        size: how many draws tests take, fewer where a density takes long to compute.
        many: how many draws there can be where no density is computed.
        work: how many numbers the density of one draw computes.
        few, logs: some draws, and their log densities.
        remembers: whether the density of the same value is another one after a further draw.

    Args:
        law: with ``sample``, ``log_prob`` and a continuous support.

    Raises:
        NotImplementedError: where nothing maps the support to coordinates without bounds.
    """

    def __init__(self, law: Any) -> None:
        self.law = law
        support = support_of(law)
        self.to_event = to_support(support)
        self.is_free = without_events(support) is constraints.real
        self.batch, self.event = law.batch_shape, law.event_shape
        self.cells = self.batch.numel()
        with _Work() as drawing:
            few = self._drawn(64)
        with _Work() as work:
            logs = self._scored(few)
        self._drawn(1)
        self.remembers = not torch.equal(logs, self._scored(few)) and not logs.isnan().any()
        self.work, drawn = work.count / 64, drawing.count / 64
        loops = drawing.calls > 64  # over single draws
        heavy = max(self.work, drawn)
        self.size = LEAST if loops else int(min(MOST, max(LEAST, WORK / heavy)))
        self.many = 2 * LEAST if loops else int(min(MANY, max(2 * LEAST, WORK / drawn)))
        self._chunk = int(min(MOST, max(64, CHUNK / heavy)))
        self.filling = few[:1]
        self.dim = self.to_event.inverse_shape(self.event).numel()
        self.few, self.logs = few, logs

    def _drawn(self, count: int) -> Tensor:
        return self.law.sample(torch.Size([count])).detach()

    def _scored(self, z: Tensor) -> Tensor:
        return self.law.log_prob(z)

    def draws(self, count: int) -> Tensor:
        """Events (count, batch, event)."""
        parts, left = [], count
        while left > 0:
            parts.append(self._drawn(min(left, self._chunk)))
            left -= self._chunk
        return torch.cat(parts)

    def log_prob(self, z: Tensor) -> Tensor:
        """(n, cells) in double precision."""
        logs = torch.cat([self._scored(part) for part in z.split(self._chunk)])
        return logs.reshape(len(z), self.cells).double()

    def free(self, z: Tensor, cell: int) -> tuple[Tensor, Tensor]:
        """Coordinates without bounds (n, J) of events of one cell, and log |dz/du| (n,)."""
        event = z.reshape(len(z), self.cells, *self.event)[:, cell].double()
        u = self.to_event.inv(event)
        log_det = self.to_event.log_abs_det_jacobian(u, event)
        return u.reshape(len(z), -1), log_det.reshape(len(z), -1).sum(1)

    def log_prob_at(self, u: Tensor, cell: int) -> tuple[Tensor, Tensor]:
        """Log density of u (n, J) there, and the u that it is of after rounding to an event."""
        z = self.placed(u, cell)
        rounded, log_det = self.free(z, cell)
        logs = self.log_prob(z)[:, cell] + log_det
        return torch.where(logs.isnan(), -torch.inf, logs), rounded

    def placed(self, u: Tensor, cell: int) -> Tensor:
        """Events (n, batch, event) that are at u (n, J) in one cell."""
        shape = self.to_event.inverse_shape(self.event)
        event = self.to_event(u.reshape(len(u), *shape)).to(self.filling.dtype)
        z = self.filling.reshape(1, self.cells, *self.event)
        z = z.repeat(len(u), *[1] * (z.dim() - 1))
        z[:, cell] = event
        return z.reshape(len(u), *self.batch, *self.event)

    @property
    def different(self) -> list[int]:
        """Cells whose laws are looked at: some, and one alone where all have the same law."""
        few = self.few.reshape(len(self.few), self.cells, *self.event)
        same = few[:, :1].expand_as(few).reshape(self.few.shape)
        logs = self.log_prob(same)
        return [0] if torch.equal(logs, logs[:, :1].expand_as(logs)) else list(range(CELLS))

    def is_coarse(self, cell: int) -> bool:
        """Whether draws lie so near the edge of the support that rounding moves them there."""
        if self.is_free:
            return False
        z = self.draws(2 * LEAST)
        near = z.nextafter(torch.zeros_like(z))
        gap = (self.free(near, cell)[0] - self.free(z, cell)[0]).abs().amax(1)
        least = z.reshape(len(z), self.cells, -1)[:, cell].abs().amin(1)
        change = (self.log_prob(near) - self.log_prob(z))[:, cell].abs()
        at_edge = (gap > COARSE) | ~(change < COARSE) | (least <= 2 * torch.finfo(z.dtype).tiny)
        return bool(at_edge.double().mean() > AT_EDGE)


def significant(terms: Tensor) -> Tensor:
    """By how many errors the means of terms (n, ...) in [-1, 1] differ from 0; 0 if by few."""
    total, size = terms.sum(0), terms.square().sum(0).sqrt()
    sigmas = total / size.clamp_min(1e-300)
    return torch.where(total.abs() > SIGMAS * size + RARE, sigmas, 0.0)


def disagreements(seen: Examined, cell: int, generator: torch.Generator) -> list[Found]:
    """The three kinds of averages of one law, the worst of each kind; 0 sigmas where none is."""
    n = seen.size
    z = seen.draws(n)
    u, log_det = seen.free(z, cell)
    log_p = seen.log_prob(z)[:, cell] + log_det
    fit = seen.free(seen.draws(min(n, TO_FIT)), cell)[0]
    r = fitted(fit, generator)
    found = [*_by_reference(seen, cell, u, log_p, r, fit, generator)]
    found += _by_maps(seen, cell, u, log_p, fit, generator)
    return found


def _by_reference(
    seen: Examined,
    cell: int,
    u: Tensor,
    log_p: Tensor,
    r: Reference,
    fit: Tensor,
    generator: torch.Generator,
) -> Iterator[Found]:
    log_py, y = seen.log_prob_at(r.draw(len(u), generator), cell)
    a = torch.sigmoid(r.log_prob(u) - log_p)
    b = torch.sigmoid(log_py - r.log_prob(y))
    looks = _features(r, fit)
    sigmas = significant(looks(u) * a[:, None] - looks(y) * b[:, None])
    yield Found("reference", sigmas[sigmas.abs().argmax()].item())


def _features(r: Reference, fit: Tensor) -> Callable[[Tensor], Tensor]:
    """Bounded functions: 1, place and width of each coordinate, width along few directions."""
    v = r.marginals.forward(fit)[0]
    center, scale = v.median(0).values, v.std(0).clamp_min(1e-12)
    standard = ((v - center) / scale).clamp(-5, 5)
    vectors = torch.linalg.eigh(standard.mT @ standard / len(v)).eigenvectors
    if vectors.shape[1] > 2 * DIRECTIONS:
        vectors = torch.cat([vectors[:, :DIRECTIONS], vectors[:, -DIRECTIONS:]], 1)
    widths = (standard @ vectors).square().mean(0).clamp_min(1e-12)

    def looks(u: Tensor) -> Tensor:
        w = (r.marginals.forward(u)[0] - center) / scale
        along = (w.clamp(-5, 5) @ vectors).square() / widths
        one = torch.ones_like(w[:, :1])
        return torch.cat(
            [one, w.tanh(), 1 - 2 * (-0.5 * w.square()).exp(), 1 - 2 * (-0.5 * along).exp()], 1
        )

    return looks


def _by_maps(
    seen: Examined,
    cell: int,
    u: Tensor,
    log_p: Tensor,
    fit: Tensor,
    generator: torch.Generator,
) -> Iterator[Found]:
    dim = u.shape[1]
    log_scale, center = 1 / math.sqrt(2 * dim), fit.median(0).values
    moved = []
    for sign in (1, -1):
        there = center + math.exp(sign * log_scale) * (u - center)
        log_there = seen.log_prob_at(there, cell)[0] + sign * log_scale * dim
        moved.append(torch.sigmoid(log_there - log_p))
    yield Found("scale", significant(moved[0] - moved[1]).item())
    half = len(fit) // 2
    index = torch.arange(len(u), device=u.device)
    step = fit[index % half] - fit[half + (index * 7 + index // half) % (len(fit) - half)]
    either = 2.0 * torch.randint(2, (len(u), 1), generator=generator, device=u.device) - 1
    there = seen.log_prob_at(u + either * step / math.sqrt(2 * dim), cell)[0]
    b = torch.sigmoid(there - log_p)
    yield Found("steps", significant(b * (2 * b - 1)).item())


def values_disagree(law: Any, cell: int) -> tuple[float, float] | None:
    """The share of draws of a discrete law that have the values met before, and what p says of it.

    None where the two agree.
    """
    cells = (law.batch_shape.numel(),)
    first, second = (
        law.sample(torch.Size([MOST])).reshape(MOST, *cells, -1)[:, cell] for _ in range(2)
    )
    values, count = first.unique(dim=0, return_counts=True)
    values = values[count.argsort(descending=True)[:LEAST]]
    shape = (len(values), *[1] * len(law.batch_shape), *law.event_shape)
    whole = values.reshape(shape).expand(len(values), *law.batch_shape, *law.event_shape)
    said = law.log_prob(whole).reshape(len(values), -1)[:, cell].double().exp()
    met = (second[:, None] == values).all(-1).double().mean(0)
    shares = torch.stack([torch.cat([met, met.sum()[None]]), torch.cat([said, said.sum()[None]])])
    error = SIGMAS * (shares[1] * (1 - shares[1]).clamp_min(0) / MOST).sqrt() + RARE / MOST
    gap = (shares[0] - shares[1]).abs() / error
    worst = int(gap.nan_to_num(0).argmax())
    if shares[1, -1] > 1.001:
        worst = -1
    elif gap[worst] <= 1:
        return None
    return shares[0, worst].item(), shares[1, worst].item()
