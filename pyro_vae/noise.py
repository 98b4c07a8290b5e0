r"""Noise as an input: the same random numbers for every engine.

A Pyro program draws its noise from torch's global generator, deep inside distributions.  Once
every such draw is answered from outside instead, draw number ``i`` of a step comes from a
generator seeded by ``(key, i)``: Pyro, eager execution and a captured graph see the same noise,
so that their equality is a test and not a matter of statistics; a run is reproducible without
generator state; and the user's own generator stays untouched.

The key says what the noise is for, ``Stream.TRAIN.key(seed, step)``: two purposes never share
noise, whatever their seeds, because their keys differ in the first number.

Operations whose draw depends on its parameters in ways that no fixed noise can serve (the gamma
family, Poisson, binomial) are left where they are and counted in :attr:`NoiseMode.kept`.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.torch_internals import TorchDispatchMode, without_onednn

aten = torch.ops.aten
Key = tuple[int, ...]


@enum.unique
class Stream(enum.IntEnum):
    """What noise is for: the first number of a key.  A new purpose gets a number of its own."""

    OWN = 0  # keys of plain numbers, which callers choose: keyed(3)
    LOOK = 1  # what is drawn when a program is looked at; no result depends on it
    PARAMETERS = 2  # where training starts
    CREATED = 3  # the same of parameters that a program creates at its first run
    INIT = 4  # an objective's state before the first step
    BATCHES = 5  # the order of the data, by epoch
    TRAIN = 6  # an update, by step
    REFRESH = 7  # a refresh of the objective's state, by step
    BOUND = 8  # the ELBO, by chunk of rows
    EVIDENCE = 9  # importance weights, by chunk of rows and of particles
    PROPOSAL = 10  # draws of a density that was fitted to chains, by chunk of rows
    PIECES = 11  # seeds of the chains of a chunk of rows
    CANDIDATES = 12  # where chains may start
    START = 13  # where chains start
    CHAINS = 14  # a move of Hamiltonian Monte Carlo, by number
    LABORATORY = 15  # a gradient that is measured, by draw
    LABORATORY_INIT = 16  # the objective's state there
    LABORATORY_WARMUP = 17  # gradients that only move that state
    LABORATORY_TIMING = 18  # gradients of which only the time is kept
    PREDICTIVE = 19  # new data
    SHARED = 20  # latents that all of these share
    LATENTS = 21  # the guide's latents, to encode and to reconstruct
    POSTERIOR = 22  # draws that ArviZ reads, by chunk of rows and of particles
    PRIOR = 23  # the same of the prior
    PILOT = 24  # a first look at a fitted density, by chunk of rows
    DEFENSIVE = 25  # draws of the prior beside a fitted density's, by chunk of rows and of draws
    BOUND_AGAIN = 26  # seeds of further draws of what all data share, for the error of a bound
    ANNEALED_START = 30  # draws that annealing starts from, by chunk of rows
    ANNEALED_PILOT = 31  # moves that find its temperatures, by chunk of rows and number
    ANNEALED = 32  # its moves
    ANNEALED_BACK = 33  # the same from the posterior down
    ANNEALED_SETTLING = 34  # moves at the posterior before that
    QUADRATURE = 36  # draws that say where a grid shall be fine, by chunk of rows
    POSTERIOR_OF_RUNS = 40  # draws that ArviZ reads, of the second and later of several programs
    PRIOR_OF_RUNS = 41  # the same of the prior
    PREDICTIONS = 42  # draws given held-out data
    KL_TERMS = 43  # draws that a KL term is averaged over, by chunk of rows and of particles
    SUMMARY = 44  # draws that are summarized and not kept
    REFIT = 50  # a guide refitted to each datum, by chunk of rows and step
    REFIT_SCORE = 51  # its ELBO before and after, by chunk of rows and of particles
    REFINED = 52  # draws of a refitted guide, by chunk of rows and of particles
    RESAMPLED = 53  # draws picked by their weights, by chunk of rows
    POOL = 54  # draws of the guide where chains may start, by number
    REPLICATED = 55  # data in place of those that were observed, by number
    SIMULATED = 60  # pairs of latents and data, by chunk of rows
    RANKS = 61  # the guide's draws that latents are ranked among, by chunk of rows and of draws
    BANDS = 62  # ranks without a fault, for what their curves stay within
    PROFILE = 63  # the guide's draws of what a latent carries, by chunk of rows
    SUBSET = 64  # which data are looked at more closely
    SHARES = 66  # seeds of what a cluster evaluates, by piece of rows
    DISTANCE = 65  # log weights whose mean is a bound, by chunk of rows

    def key(self, seed: int, *numbers: int, rank: int = 0) -> Key:
        """The key of this stream: (stream, seed, rank, numbers ...).

        Args:
            seed: what the user passed.
            numbers: which step, chunk, ...
            rank: of the process that draws, where several share a step.
        """
        return (self, seed, rank, *numbers)


LOOK = Stream.LOOK.key(0)


class Noise(NamedTuple):
    """One draw of a standard distribution: what a graph asks to be given."""

    kind: str  # "normal", "uniform" or "exponential"
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def draw(self, *lead: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw it, with extra leading dimensions ``lead``."""
        empty = torch.empty((*lead, *self.shape), dtype=self.dtype, device=self.device)
        if self.kind == "normal":
            return empty.normal_(generator=generator)
        if self.kind == "uniform":
            return empty.uniform_(generator=generator)
        return empty.exponential_(generator=generator)


def _packed(key: Key) -> bytes:
    """A key as bytes, its length first: none begins another, whatever is written behind them."""
    if not key or not isinstance(key[0], Stream):
        key = (Stream.OWN, *key)
    if not all(-(2**63) <= part < 2**63 for part in key):
        raise ValueError(f"the seed is {max(key, key=abs)}, expected a whole number below 2**62")
    return struct.pack(f"<{len(key) + 1}q", len(key), *key)


def _hashed(packed: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def seed_of(*key: int) -> int:
    """A 63-bit seed that differs in every bit between neighbouring keys."""
    return _hashed(_packed(key))


def keyed(*key: int) -> Callable[[int, Noise], Tensor]:
    """A noise source whose draw number ``i`` depends on ``key`` and ``i`` and nothing else.

    Args:
        key: of a :class:`Stream`; or plain numbers of your own, which collide with none of these.
    """
    packed = _packed(key)

    def source(index: int, noise: Noise) -> Tensor:
        generator = torch.Generator(device=noise.device)
        seed = _hashed(packed + struct.pack("<q", index))
        return noise.draw(generator=generator.manual_seed(seed))

    return source


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run with torch's global generators seeded by ``key``, and put them back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        # Where there is an accelerator that nobody has used yet torch.manual_seed keeps the whole
        # call stack, as text, in case that fails later: a tenth of a millisecond, or a whole one.
        seed = torch.manual_seed if _has_accelerator() else torch.default_generator.manual_seed
        seed(seed_of(*key))
        yield


@functools.cache
def _has_accelerator() -> bool:
    """Whether some generator besides the CPU's is to be seeded; a process keeps its devices."""
    found = torch.accelerator.current_accelerator()  # of those that this torch was built for
    # Counting starts nothing, so that a process may fork afterwards.
    return found is not None and (found.type != "cuda" or torch.cuda.device_count() > 0)


# --- the random operations ----------------------------------------------------------------------
# Each entry says how an operation's result follows from standard noise.  ``ask(kind, like, shape)``
# gives that noise with the dtype and device of ``like``.

Ask = Callable[..., Tensor]


def _affine(noise: Tensor, location: Any, scale: Any) -> Tensor:
    if not isinstance(scale, Tensor) and scale == 1 and location == 0:
        return noise
    return noise * scale + location


def _normal_(ask: Ask, self: Tensor, mean=0.0, std=1.0, **_) -> Tensor:
    return self.copy_(_affine(ask("normal", self), mean, std))


def _normal(ask: Ask, mean, std, **_) -> Tensor:
    like = mean if isinstance(mean, Tensor) else std
    shape = torch.broadcast_shapes(*(a.shape for a in (mean, std) if isinstance(a, Tensor)))
    return _affine(ask("normal", like, shape), mean, std)


def _uniform_(ask: Ask, self: Tensor, low=0.0, high=1.0, **_) -> Tensor:
    return self.copy_(_affine(ask("uniform", self), low, high - low))


def _exponential_(ask: Ask, self: Tensor, rate=1.0, **_) -> Tensor:
    return self.copy_(ask("exponential", self) / rate)


def _bernoulli(ask: Ask, probability: Tensor, **_) -> Tensor:
    return (ask("uniform", probability) < probability).to(probability.dtype)


def _bernoulli_(ask: Ask, self: Tensor, probability=0.5, **_) -> Tensor:
    like = self if self.is_floating_point() else torch.empty(self.shape, device=self.device)
    return self.copy_(ask("uniform", like) < probability)


def _cauchy_(ask: Ask, self: Tensor, median=0.0, sigma=1.0, **_) -> Tensor:
    return self.copy_(_affine((torch.pi * (ask("uniform", self) - 0.5)).tan(), median, sigma))


def _multinomial(ask: Ask, weights: Tensor, count: int, replacement=False, **_) -> Tensor:
    # The first of independent exponential clocks with rates w to ring is i with probability
    # w_i / Σw; the order in which they ring is a draw without replacement.
    if replacement:
        shape = (*weights.shape[:-1], count, weights.shape[-1])
        return (ask("exponential", weights, shape) / weights.unsqueeze(-2)).argmin(-1)
    return (ask("exponential", weights) / weights).argsort(-1)[..., :count]


def _sized(kind: str) -> Callable[..., Tensor]:
    def draw(ask: Ask, size, *, dtype=None, device=None, **_) -> Tensor:
        like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=device)
        return ask(kind, like, size)

    return draw


def _like(kind: str) -> Callable[..., Tensor]:
    def draw(ask: Ask, self: Tensor, *, dtype=None, device=None, **_) -> Tensor:
        like = torch.empty(0, dtype=dtype or self.dtype, device=device or self.device)
        return ask(kind, like, self.shape)

    return draw


LIFTED: dict[Any, Callable[..., Tensor]] = {
    aten.normal_.default: _normal_,
    aten.normal.Tensor_Tensor: _normal,
    aten.normal.Tensor_float: lambda ask, mean, std=1.0, **_: _normal(ask, mean, std),
    aten.normal.float_Tensor: _normal,
    aten.randn.default: _sized("normal"),
    aten.randn.generator: _sized("normal"),
    aten.randn_like.default: _like("normal"),
    aten.rand.default: _sized("uniform"),
    aten.rand.generator: _sized("uniform"),
    aten.rand_like.default: _like("uniform"),
    aten.uniform_.default: _uniform_,
    aten.exponential_.default: _exponential_,
    aten.cauchy_.default: _cauchy_,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli_.Tensor: _bernoulli_,
    aten.bernoulli_.float: _bernoulli_,
    aten.multinomial.default: _multinomial,
}


class _PlainLSTM(TorchFunctionMode):
    """LSTMs by torch's own operations: oneDNN's has no backward pass under a dispatch mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.lstm:
            with without_onednn():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@functools.cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


class NoiseMode(TorchDispatchMode):
    """Answer every random draw from ``source(index, noise)``, and record what was asked for.

    Args:
        source: gives the tensor for draw number ``index``; :func:`keyed` in the usual case.
    """

    def __init__(self, source: Callable[[int, Noise], Tensor]) -> None:
        super().__init__()
        self.source = source
        self.asked: list[Noise] = []
        self.kept: list[str] = []  # random operations that no noise can serve
        self.without_grad = False  # did anything run with gradients switched off?

    def __enter__(self) -> Any:
        self._plain = _PlainLSTM()
        self._plain.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._plain.__exit__(*error)

    def _ask(self, kind: str, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        noise = Noise(kind, tuple(like.shape if shape is None else shape), like.dtype, like.device)
        self.asked.append(noise)
        return self.source(len(self.asked) - 1, noise)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.without_grad |= not torch.is_grad_enabled()
        answer = LIFTED.get(func)
        if answer is not None and not (kwargs and kwargs.get("generator") is not None):
            return answer(self._ask, *args, **(kwargs or {}))
        if _draws(func):
            self.kept.append(str(func))
        return func(*args, **(kwargs or {}))
