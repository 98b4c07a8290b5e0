r"""Log densities per particle and datum.

Everything that learns or judges a program is a few lines on top of three tables of shape
``(K, B)``, one row a particle, one column a datum:

.. math:: \log p(z_{kb}), \qquad \log p(x_b \mid z_{kb}), \qquad \log q(z_{kb} \mid x_b).

Sites inside ``pyro.plate("data", ...)`` belong to a datum; latents outside it are *global* and
have one density a particle.  No number here is scaled: the plate's scale N / B stands apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.lifting import Lifted, capture_cache, lift, nudged, others, particles_by_vmap
from pyro_vae.noise import Noise, NoiseMode
from pyro_vae.program import Rows, call_with, map_rows, num_rows, observed_rows
from pyro_vae.traces import (
    Detached,
    Site,
    closed_kl,
    data_frame,
    is_deterministic,
    log_density,
    one_scale,
    per_datum,
    require_fixed_support,
    require_rows,
    require_rsample,
    require_score,
    sites_of,
    tell_scale,
    trace_of,
)


class Densities(NamedTuple):
    """Log densities in nats; K particles, B data.

    Attributes:
        log_prior: log p(z), summed over the latent sites of a datum, (K, B).
        log_likelihood: log p(x | z), (K, B).
        log_q: log q(z | x), (K, B).
        kl: for each latent site KL(q || p) per datum (B,) where torch knows it in closed form,
            else None; of a global latent ().  Where a prior depends on other latents it is the
            mean over particles.
        log_ratio: for each latent site log q - log p at the particles (K, B): the sampled KL.
        global_ratio: the same for each global latent (K,); -log p of a factor outside the plate.
        latents: for each latent site its values, (K, B, ...); global ones (K, ...).
        global_log_p, global_log_q: densities of latents outside the plate, (K,); zero without.
        scale: N / B where the plate is subsampled, else 1.
        path: where asked for, (K, B) of value zero, whose gradient is that of log_w along the
            draws alone: sum of g . dz over a datum's latents z, with g = d log_w / dz at detached
            z and guide.  The tables then hang on the draws in no other way.
    """

    log_prior: Tensor
    log_likelihood: Tensor
    log_q: Tensor
    kl: dict[str, Tensor | None]
    log_ratio: dict[str, Tensor]
    global_ratio: dict[str, Tensor]
    latents: dict[str, Tensor]
    global_log_p: Tensor
    global_log_q: Tensor
    scale: float
    path: Tensor | None = None

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), (K, B)."""
        return self.log_prior + self.log_likelihood

    @property
    def log_w(self) -> Tensor:
        """The log importance weight log p(x, z) - log q(z | x), (K, B)."""
        return self.log_p - self.log_q

    @property
    def kl_terms(self) -> dict[str, Tensor]:
        """The KL term of each latent per datum (B,): closed where known, else sampled."""
        return self._kl_or_sampled(self.log_ratio)

    @property
    def sampled_kl_terms(self) -> dict[str, Tensor]:
        """log q - log p of each latent per datum (B,), averaged over the particles."""
        return {name: ratio.mean(0) for name, ratio in self.log_ratio.items()}

    @property
    def global_share(self) -> Tensor:
        """Each datum's 1 / N of log p - log q of the global latents, ()."""
        return (self.global_log_p - self.global_log_q).mean() / self.num_data

    @property
    def global_kl_share(self) -> Tensor | float:
        """Each datum's 1 / N of the KL terms of the global latents, (): closed where known."""
        return sum(self._kl_or_sampled(self.global_ratio).values()) / self.num_data

    @property
    def num_data(self) -> float:
        """N."""
        return self.scale * self.log_q.shape[1]

    def _kl_or_sampled(self, ratios: dict[str, Tensor]) -> dict[str, Tensor]:
        closed = {name: self.kl.get(name) for name in ratios}
        return {
            name: ratio.mean(0) if (kl := closed[name]) is None else kl
            for name, ratio in ratios.items()
        }


class Ways(NamedTuple):
    """How gradients flow through densities; see :func:`densities`."""

    reparameterize: bool = True
    detach_guide: bool = False
    pathwise: bool = False


def _single(program: Any, x: Rows, ways: Ways) -> Densities:
    """One particle: tables (B,), global densities ()."""
    draws = [] if ways.reparameterize else [Detached()]
    drawn = trace_of(program.guide, x, *draws)
    guide_trace = _with_leaves(drawn) if ways.pathwise else drawn
    model_trace = trace_of(poutine.replay(program.model, trace=guide_trace), x)
    guide, model = sites_of(guide_trace), sites_of(model_trace)
    require_rows(guide, model)
    if ways.reparameterize:
        require_rsample(guide)
    elif torch.is_grad_enabled():
        require_score(guide)
    scored = guide
    if ways.detach_guide or ways.pathwise:
        require_fixed_support(guide)
        scored = sites_of(_guide_with_detached_parameters(program, x, guide_trace))
    like = observed_rows(x)
    rows = torch.zeros(num_rows(x), device=like.device, dtype=_dtype(model, like))
    prior, likelihood, log_q = rows, rows, rows
    global_p = global_q = rows.new_zeros(())
    log_ratio: dict[str, Tensor] = {}
    global_ratio: dict[str, Tensor] = {}
    for name, site in model.items():
        if data_frame(site) is None and is_deterministic(site):
            continue
        value = per_datum(site, log_density(site))
        if data_frame(site) is None:
            global_p = global_p + value
            global_ratio[name] = -value
        elif site["is_observed"]:
            likelihood = likelihood + value
        else:
            prior = prior + value
            log_ratio[name] = -value
    for name, site in scored.items():
        value = per_datum(site, log_density(site))
        if data_frame(site) is None:
            global_q = global_q + value
            global_ratio[name] = global_ratio.get(name, 0.0) + value
        else:
            log_q = log_q + value
            log_ratio[name] = log_ratio.get(name, 0.0) + value
    latents = {name: site["value"] for name, site in guide.items() if not site["is_observed"]}
    path = None
    if ways.pathwise:
        path = _path(sites_of(drawn), latents, prior + likelihood - log_q)
    return Densities(
        prior, likelihood, log_q, closed_kl(guide, model), log_ratio, global_ratio, latents,
        global_p, global_q, one_scale(guide, model), path,
    )  # fmt: skip


def _with_leaves(guide: poutine.Trace) -> poutine.Trace:
    """The same draws, each a leaf of its own."""
    leaves = guide.copy()
    for name, site in sites_of(guide).items():
        if not site["is_observed"]:
            leaf = site["value"].detach()
            leaf = leaf.requires_grad_() if leaf.is_floating_point() else leaf
            leaves.nodes[name] = {**site, "value": leaf}  # type: ignore[typeddict-item]
    return leaves


def _path(drawn: dict[str, Site], leaves: dict[str, Tensor], log_w: Tensor) -> Tensor:
    """What has the gradient of ``log_w`` (B,) along the draws of each datum, and the value 0."""
    local = [name for name in leaves if data_frame(drawn[name]) is not None]
    # With a graph of their own, because a capture takes an operation without one for a mistake.
    slopes = torch.autograd.grad(
        log_w.sum(), [leaves[name] for name in local], create_graph=True, allow_unused=True
    )
    path = torch.zeros_like(log_w)
    for name, slope in zip(local, slopes, strict=True):
        if slope is not None:
            site = drawn[name]
            moved = slope.detach() * (site["value"] - site["value"].detach())
            events = moved.reshape(*site["fn"].batch_shape, -1).sum(-1)
            path = path + per_datum(site, events)
    return path


def _dtype(model: dict[str, Site], like: Tensor) -> torch.dtype:
    for site in model.values():
        if isinstance(site["value"], Tensor) and site["value"].is_floating_point():
            return site["value"].dtype
    return like.dtype if like.is_floating_point() else torch.get_default_dtype()


def _guide_with_detached_parameters(program: Any, x: Rows, guide: poutine.Trace) -> poutine.Trace:
    """The guide's densities at the same latents, as a function of the latents alone."""
    if not isinstance(program, nn.Module):
        raise TypeError(
            "detaching the guide needs its parameters in a module: wrap the two functions, "
            "pv.Program(model, guide)"
        )
    parameters = {name: p.detach() for name, p in program.named_parameters()}
    # Views, because a flow that knows its own last draw again would answer from its memory, in
    # which the path through the flow's own parameters is missing.
    views = guide.copy()
    for name, site in guide.nodes.items():
        if site["type"] == "sample" and isinstance(site["value"], Tensor):
            views.nodes[name] = {**site, "value": site["value"].view_as(site["value"])}

    def replayed(program: Any) -> poutine.Trace:
        return trace_of(poutine.replay(program.guide, trace=views), x)

    def refuse(index: int, noise: Noise) -> Tensor:
        raise ValueError(
            "the guide draws noise outside pyro.sample, such as dropout, so the density of its "
            "draws cannot be computed a second time, with its parameters held: use AEVB(), or "
            "leave that noise out of the guide"
        )

    with NoiseMode(refuse) as again:
        trace = call_with(program, parameters, replayed)
    if again.kept:
        refuse(0, Noise("", (), torch.float32, torch.device("cpu")))
    return trace


def densities(
    program: Any,
    x: Rows,
    num_particles: int = 1,
    *,
    reparameterize: bool = True,
    detach_guide: bool = False,
    pathwise: bool = False,
) -> Densities:
    """Draw K latents per datum from the guide and score them under model and guide.

    Args:
        program: has ``model(x)`` and ``guide(x)``.
        x: data, (B, ...).
        num_particles: K.  User code only ever sees (B, ...): while a graph is captured, particles
            are a ``vmap`` over noise; elsewhere the rows are repeated K times, or, with global
            latents, the program runs K times.  All ways ask for the same noise.
        reparameterize: let gradients flow through the draws.  With False they are detached.
        detach_guide: log q depends on the parameters through the draws alone.
        pathwise: split the gradient: the tables are functions of the parameters at detached
            draws, log q of none, and ``path`` carries the gradient along the draws.

    Returns:
        :class:`Densities`, unscaled, in nats.

    Raises:
        ValueError: a guide without ``rsample`` under ``reparameterize=True``; a site that is
            scaled by something else than its plate.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}, expected a whole number from 1 on")
    ways = Ways(reparameterize, detach_guide, pathwise)
    if num_particles == 1:
        one = _single(program, x, ways)
        return _with_particles(one, [one])
    if particles_by_vmap() and isinstance(program, nn.Module):
        together = _vmapped(program, x, num_particles, ways)
        if together is not None:
            return together
    with NoiseMode(_one_half) as mode:  # which form it takes, without asking for noise
        form = _single(program, x, ways)
    local = all(name in form.log_ratio for name in form.latents)
    drawn = [*form.latents.values(), *mode.asked]
    if local and all(draw.shape[:1] == (num_rows(x),) for draw in drawn):
        wide = _repeated(program, x, num_particles, ways, form.scale)
        if wide is not None:
            return wide
    runs = []
    for source in _sources(num_particles):
        with NoiseMode(source):
            runs.append(_single(program, x, ways))
    return _with_particles(runs[0], runs)


def _one_half(_: int, noise: Noise) -> Tensor:
    return torch.full(noise.shape, 0.5, dtype=noise.dtype, device=noise.device)


def _sources(particles: int) -> Iterator[Callable[[int, Noise], Tensor]]:
    """A noise source for each particle; together they ask for what a ``vmap`` over noise does."""
    drawn: list[Tensor] = []

    def source(index: int, noise: Noise, particle: int) -> Tensor:
        if index == len(drawn):
            drawn.append(noise.draw(particles))
        return drawn[index][particle]

    for particle in range(particles):
        yield functools.partial(source, particle=particle)


def _with_particles(form: Densities, runs: list[Densities]) -> Densities:
    """Stack single runs: tables to (K, B); closed KL terms to their mean (B,)."""

    def stack(values: list[Tensor]) -> Tensor:
        return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)

    def mean_kl(name: str) -> Tensor | None:
        terms = [run.kl[name] for run in runs]
        found = [term for term in terms if term is not None]
        return stack(found).mean(0) if len(found) > 1 else (found[0] if found else None)

    return Densities(
        log_prior=stack([run.log_prior for run in runs]),
        log_likelihood=stack([run.log_likelihood for run in runs]),
        log_q=stack([run.log_q for run in runs]),
        kl={name: mean_kl(name) for name in form.kl},
        log_ratio={name: stack([run.log_ratio[name] for run in runs]) for name in form.log_ratio},
        global_ratio={
            name: stack([run.global_ratio[name] for run in runs]) for name in form.global_ratio
        },
        latents={name: stack([run.latents[name] for run in runs]) for name in form.latents},
        global_log_p=stack([run.global_log_p for run in runs]),
        global_log_q=stack([run.global_log_q for run in runs]),
        scale=form.scale,
        path=None if form.path is None else stack([run.path for run in runs]),  # type: ignore[misc]
    )


def _repeated(program: Any, x: Rows, particles: int, ways: Ways, scale: float) -> Densities | None:
    """Rows are independent, so K particles of B rows are one particle of K x B rows.

    None where a latent has plates to the left of the data's, so that its rows are not in front.
    """
    rows = num_rows(x)
    many = map_rows(lambda t: t.repeat(particles, *[1] * (t.dim() - 1)), x)
    wide = _single(program, many, ways)
    if any(len(value) != particles * rows for value in wide.latents.values()):
        return None

    def fold(t: Tensor) -> Tensor:
        return t.reshape(particles, rows, *t.shape[1:])

    return Densities(
        log_prior=fold(wide.log_prior),
        log_likelihood=fold(wide.log_likelihood),
        log_q=fold(wide.log_q),
        kl={name: None if kl is None else fold(kl).mean(0) for name, kl in wide.kl.items()},
        log_ratio={name: fold(value) for name, value in wide.log_ratio.items()},
        global_ratio={name: t.expand(particles) for name, t in wide.global_ratio.items()},
        latents={name: fold(value) for name, value in wide.latents.items()},
        global_log_p=wide.global_log_p.expand(particles),
        global_log_q=wide.global_log_q.expand(particles),
        scale=scale,
        path=None if wide.path is None else fold(wide.path),
    )


def _vmapped(program: nn.Module, x: Rows, particles: int, ways: Ways) -> Densities | None:
    """One captured particle, ``vmap``-ed over its noise: what depends on x alone is done once."""
    parameters = dict(program.named_parameters())

    def one(parameters: dict[str, Tensor], x: Rows) -> Densities:
        return call_with(program, parameters, _single, x, ways)

    def example(tensor: Tensor) -> Tensor:  # values of its own: these may be tracers'
        real = torch.ones(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        if not tensor.is_floating_point():
            return real
        ramp = torch.linspace(0.3, 0.7, max(2, real.numel()))[: real.numel()]
        return real * ramp.view(real.shape).to(real)

    def example_of_weights(tensor: Tensor) -> Tensor:
        # Sums over many inputs stay near 1: where units saturate, a comparison shows nothing.
        inputs = tensor[0].numel() if tensor.dim() > 1 else 1
        return example(tensor) / inputs if tensor.is_floating_point() else example(tensor)

    leaves, form_of_args = pytree.tree_flatten((parameters, x))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    learning = torch.is_grad_enabled()
    key = (id(program), str(form_of_args), shapes, ways, learning)
    if key not in capture_cache():  # a capture runs the function three times
        with _no_modes():
            examples = (
                pytree.tree_map(example_of_weights, parameters),
                pytree.tree_map(example, x),
            )
            probes = [(nudged(examples[0]), other) for other in others(examples[1])]
        capture_cache()[key] = lift(one, *examples, probes=probes, differentiable=learning)
    lifted = capture_cache()[key]
    if not isinstance(lifted, Lifted) or lifted.kept:
        return None
    noise = [n.draw(particles) for n in lifted.noise]  # seen, and lifted, by the outer capture

    def run(draws: list[Tensor]) -> list[Tensor]:
        return lifted.flat(*leaves, *draws)

    form = lifted.unflatten(torch.func.vmap(run)(noise))
    tell_scale(form.scale)
    return form._replace(kl={name: None if k is None else k.mean(0) for name, k in form.kl.items()})


def _no_modes():
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
