r"""Log densities per particle and datum.

Everything that learns or judges a program is a few lines on top of three tables of shape
``(K, B)``, one row a particle, one column a datum:

.. math:: \log p(z_{kb}), \qquad \log p(x_b \mid z_{kb}), \qquad \log q(z_{kb} \mid x_b).

Sites inside ``pyro.plate("data", ...)`` belong to a datum; latents outside it are *global* and
have one density a particle.  No number here is scaled: the plate's scale N / B stands apart.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae import errors
from pyro_vae.densities.plates import key_of
from pyro_vae.densities.tables import Densities, Ways, one_particle
from pyro_vae.densities.traces import tell_scale
from pyro_vae.graphs.lifted import Lifted
from pyro_vae.graphs.lifting import capture_cache, lift, particles_by_vmap
from pyro_vae.graphs.probing import nudged, others
from pyro_vae.noise import Noise, NoiseMode
from pyro_vae.program.calling import call_with, left_as_it_was
from pyro_vae.program.rows import Rows, num_rows, repeated
from pyro_vae.torch_internals import no_modes

_takes_repeated: weakref.WeakKeyDictionary[Any, dict[tuple[int, int], bool]] = (
    weakref.WeakKeyDictionary()
)


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
    num_particles = errors.whole("num_particles", num_particles)
    ways = Ways(reparameterize, detach_guide, pathwise)
    if num_particles == 1:
        one = one_particle(program, x, ways)
        return _with_particles(one, [one])
    if particles_by_vmap() and isinstance(program, nn.Module):
        together = _vmapped(program, x, num_particles, ways)
        if together is not None:
            return together
    # Which form it takes, without asking for noise, and without a step of running statistics.
    with _uncounted(program), NoiseMode(_one_half) as mode:
        form = one_particle(program, x, ways)
    local = all(name in form.log_ratio for name in form.latents)
    drawn = [*form.latents.values(), *mode.asked]
    if local and all(draw.shape[:1] == (num_rows(x),) for draw in drawn):
        wide = _repeated(program, x, num_particles, ways, form.scale)
        if wide is not None:
            return wide
    runs = []
    for source in _sources(num_particles):
        with NoiseMode(source):
            runs.append(one_particle(program, x, ways))
    return _with_particles(runs[0], runs)


def _uncounted(program: Any) -> AbstractContextManager:
    """Running statistics that a run would move are put back."""
    modules = program.modules() if isinstance(program, nn.Module) else ()
    moving = any(isinstance(m, nn.modules.batchnorm._NormBase) and m.training for m in modules)
    return left_as_it_was(program, parameters=False) if moving else nullcontext()


def takes_repeated(program: Any, x: Rows) -> bool:
    """Whether a program that runs on some rows runs on twice as many: not if its plate is made once
    with a size, or if there is a parameter for each row.

    It is asked once, beside all noise: the answer is remembered by guide and number of rows.
    """
    known = _takes_repeated.setdefault(key_of(program), {})
    held = vars(program) if hasattr(program, "__dict__") else {}
    if (form := (id(held.get("guide")), num_rows(x))) not in known:
        try:
            quiet = pyro.validation_enabled(False)
            with torch.no_grad(), _uncounted(program), NoiseMode(_one_half), quiet:
                one_particle(program, repeated(x, 2), Ways(False, False, False))
            known[form] = True
        except Exception:  # whatever it says of rows that nobody gave it
            known[form] = False
    return known[form]


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
        observations={
            name: stack([run.observations[name] for run in runs]) for name in form.observations
        },
        weights=form.weights,
        path=None if form.path is None else stack([run.path for run in runs]),  # type: ignore[misc]
    )


def _repeated(program: Any, x: Rows, particles: int, ways: Ways, scale: float) -> Densities | None:
    """Rows are independent, so K particles of B rows are one particle of K x B rows.

    None where a latent has plates to the left of the data's, so that its rows are not in front, or
    where the program takes no other number of rows than it was given.
    """
    rows = num_rows(x)
    if not takes_repeated(program, x):
        return None
    wide = one_particle(program, repeated(x, particles), ways)
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
        observations={name: fold(value) for name, value in wide.observations.items()},
        weights=wide.weights,
        path=None if wide.path is None else fold(wide.path),
    )


def _vmapped(program: nn.Module, x: Rows, particles: int, ways: Ways) -> Densities | None:
    """One captured particle, ``vmap``-ed over its noise: what depends on x alone is done once."""
    parameters = dict(program.named_parameters())

    def one(parameters: dict[str, Tensor], x: Rows) -> Densities:
        return call_with(program, parameters, one_particle, x, ways)

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
        with no_modes():
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
    tell_scale(form.scale, next(iter(form.weights), None))
    return form._replace(kl={name: None if k is None else k.mean(0) for name, k in form.kl.items()})
