r"""Noise as an input: the same random numbers for every engine, functions as pure graphs.

A Pyro program draws its noise from torch's global generator, deep inside distributions.  Three
things become possible once every such draw is answered from outside instead:

* **the same noise** for Pyro, for eager execution and for a captured graph, so that their
  equality is a test and not a matter of statistics;
* **reproducibility without generator state**: draw number ``i`` of a step comes from a generator
  seeded by ``(key, i)``, and the user's global generator stays untouched;
* **particles and replicas by** ``vmap``: left inside a captured graph, a functionalized draw is
  broadcast, so that all replicas silently share it.

:class:`NoiseMode` answers the draws; :func:`lift` captures a function and makes them arguments.
Operations whose draw depends on its parameters in ways that no fixed noise can serve (the gamma
family, Poisson, binomial) are left where they are and counted in :attr:`Lifted.kept`.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
Key = tuple[int, ...]


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


def seed_of(*key: int) -> int:
    """A 63-bit seed that differs in every bit between neighbouring keys."""
    packed = struct.pack(f"<{len(key)}q", *key)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def keyed(*key: int) -> Callable[[int, Noise], Tensor]:
    """A noise source whose draw number ``i`` depends on ``(*key, i)`` and nothing else."""

    def source(index: int, noise: Noise) -> Tensor:
        generator = torch.Generator(device=noise.device)
        return noise.draw(generator=generator.manual_seed(seed_of(*key, index)))

    return source


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run with torch's global generators seeded by ``key``, and put them back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*key))
        yield


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


class NoiseMode(TorchDispatchMode):
    """Answer every random draw from ``source(index, noise)``, and record what was asked for.

    Args:
        source: gives the tensor for draw number ``index``; :func:`keyed` in the usual case.
        capturing: says to :func:`particles_by_vmap` that a graph is being made.
    """

    def __init__(self, source: Callable[[int, Noise], Tensor], *, capturing: bool = False) -> None:
        super().__init__()
        self.source = source
        self.capturing = capturing
        self.asked: list[Noise] = []
        self.kept: list[str] = []  # random operations that no noise can serve
        self.without_grad = False  # did anything run with gradients switched off?

    def _ask(self, kind: str, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        noise = Noise(kind, tuple(like.shape if shape is None else shape), like.dtype, like.device)
        self.asked.append(noise)
        return self.source(len(self.asked) - 1, noise)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.without_grad |= not torch.is_grad_enabled()
        if self.capturing and _shape_depends_on_values(func, args):  # and no probe may show it
            raise RuntimeError(f"a shape depends on the values of tensors, by {func}")
        answer = LIFTED.get(func)
        if answer is not None and not (kwargs and kwargs.get("generator") is not None):
            return answer(self._ask, *args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.kept.append(str(func))
        return func(*args, **(kwargs or {}))


def _shape_depends_on_values(func, args) -> bool:
    """Whether an operation's result has as many entries as data say: no graph fits all of them."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is aten.index.Tensor:  # by whole numbers the shape is theirs; by a mask it is not
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return True


# One entry for each graph that is being made in this process, the innermost last; None while the
# function that it is compared with runs, which must not see graphs of its own parts.
_capturing: list[dict[Any, Any] | None] = []


def particles_by_vmap() -> bool:
    """Whether a graph is being made, in which particles shall be a ``vmap`` over noise."""
    return bool(_capturing) and _capturing[-1] is not None


def capture_cache() -> dict[Any, Any]:
    """What the innermost capture keeps between its runs of the same function."""
    cache = _capturing[-1]
    if cache is None:
        raise RuntimeError("no graph is being made")
    return cache


@contextlib.contextmanager
def _capture_scope(cache: dict[Any, Any] | None) -> Iterator[None]:
    _capturing.append(cache)
    try:
        yield
    finally:
        _capturing.pop()


# --- capture ------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """Why a program could not be captured; ``str()`` of it is one line for the user."""

    reason: str

    def __str__(self) -> str:
        return self.reason


_TENSOR = object()  # stands for a tensor among results, of which None may be one


class Lifted:
    """A function as one graph of pure operations, its random draws arguments.

    ``lifted(*args, noise=lifted.draw(key))`` equals ``function(*args)`` run under
    ``NoiseMode(keyed(*key))``.  Arguments and results are the function's own nests of tensors.
    """

    def __init__(
        self, graph: fx.GraphModule, noise, positions, kept, shapes, in_spec, out_spec, constants
    ):
        self.graph = graph
        self._shapes = shapes
        self.noise: tuple[Noise, ...] = noise
        self.positions: tuple[int, ...] = positions  # of each noise among all draws asked for
        self.kept: tuple[str, ...] = kept
        self._in_spec = in_spec
        self._out_spec = out_spec
        self._constants: list[Any] = constants  # results that are no tensors, else _TENSOR

    def draw(self, key: Key) -> list[Tensor]:
        """The noise that belongs to ``key``."""
        source = keyed(*key)
        return [source(i, noise) for i, noise in zip(self.positions, self.noise, strict=True)]

    def flat(self, *tensors: Tensor) -> list[Tensor]:
        """Run the graph on flat lists: arguments, then noise."""
        return list(self.graph(*tensors))

    def unflatten(self, tensors: Sequence[Tensor]) -> Any:
        """Bring flat results into the form that the function returns."""
        rest = iter(tensors)
        leaves = [next(rest) if c is _TENSOR else c for c in self._constants]
        return pytree.tree_unflatten(leaves, self._out_spec)

    def __call__(self, *args: Any, noise: Sequence[Tensor]) -> Any:
        leaves, spec = pytree.tree_flatten(args)
        if spec != self._in_spec or [leaf.shape for leaf in leaves] != self._shapes:
            raise ValueError(
                f"a captured function was called with arguments of the form {spec} and shapes "
                f"{[tuple(leaf.shape) for leaf in leaves]}, expected {self._in_spec} and "
                f"{[tuple(shape) for shape in self._shapes]}: capture it again for the new form"
            )
        return self.unflatten(self.flat(*leaves, *noise))


def lift(
    function: Callable[..., Any], *args: Any, probes: Sequence[tuple] = (), differentiable=False
) -> Lifted | Refusal:
    """Capture ``function(*args)`` as a graph of pure operations with its noise as inputs.

    The function runs twice: once to learn which noise it asks for, once to be recorded.  Then the
    graph is compared with the function on ``probes``, other arguments of the same form: a Python
    value that was frozen into the graph, or a branch on data, shows as a difference.

    Args:
        function: any function of nests of tensors (dicts, tuples, lists).
        args: example arguments; the graph holds for their shapes and dtypes.
        probes: other arguments to compare on, such as :func:`others`; without any, ``args``.
        differentiable: the graph will be differentiated, so gradients are compared too, and
            blocks without gradient are refused: they leave no mark in a graph.

    Returns:
        :class:`Lifted`, or a :class:`Refusal` with the reason.
    """
    with _disable_current_modes(), pyro.validation_enabled(False):
        try:
            with _capture_scope({}):
                lifted = _record(function, args, differentiable)
            if isinstance(lifted, Refusal):
                return lifted
            with _capture_scope(None):
                for number, probe in enumerate(probes or [args]):
                    refusal = _differs(function, lifted, probe, differentiable, twice=number == 0)
                    if refusal is not None:
                        return refusal
        except Exception as error:  # whatever user code or the tracer raises is the reason
            return Refusal(_reason(error))
    return lifted


def others(args: Any) -> list[Any]:
    """Two nests like ``args`` with other values, plausible where those are.

    Real numbers move by two per cent and rows change places, once with their entries turned
    round, once so that the first row stands for half of them: whatever Python may have made of
    the values, their sum, their largest, their order, is another.
    """

    def first(tensor: Tensor) -> Tensor:
        turned = tensor.flip(-1) if tensor.dim() > 1 else tensor
        return turned.roll(1, 0) if tensor.dim() else tensor

    def second(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) < 2:
            return tensor
        index = torch.arange(len(tensor), device=tensor.device)
        return tensor[torch.where(index < (len(tensor) + 1) // 2, 0, index - 1)]

    return [pytree.tree_map(first, args), pytree.tree_map(second, args)]


def nudged(tensors: Any) -> Any:
    """The same nest with every real number moved by up to two per cent, each its own way."""

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        ramp = torch.linspace(-1, 1, max(2, tensor.numel()))[: tensor.numel()]
        return tensor.detach() * (1 + 0.02 * ramp.view(tensor.shape).to(tensor))

    return pytree.tree_map(nudge, tensors)


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    if "data-dependent" in text or "tracing tensor" in text or "item" in text.lower():
        return f"Python code depends on the values of tensors ({text[:160]})"
    return f"{type(error).__name__}: {text[:200]}"


def _record(function, args, differentiable: bool) -> Lifted | Refusal:
    leaves, in_spec = pytree.tree_flatten(args)
    with NoiseMode(keyed(0), capturing=True) as first, seeded(0):
        example = function(*args)
    if differentiable and first.without_grad and torch.is_grad_enabled():
        return Refusal("gradients are switched off in a part of the program")
    out_leaves, out_spec = pytree.tree_flatten(example)
    constants = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in out_leaves]
    noise = [keyed(0)(i, asked) for i, asked in enumerate(first.asked)]

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = tensors[len(leaves) :]
        changed = RuntimeError("the draws change from run to run")

        def source(index: int, asked: Noise) -> Tensor:
            if index >= len(first.asked) or asked != first.asked[index]:
                raise changed
            return given[index]

        with NoiseMode(source, capturing=True) as second:
            result = function(*pytree.tree_unflatten(list(tensors[: len(leaves)]), in_spec))
        if len(second.asked) < len(first.asked):
            raise changed
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    flat_args = (*leaves, *noise)
    with seeded(0):
        graph = make_fx(flat)(*flat_args)
        graph = make_fx(torch.func.functionalize(graph))(*flat_args)
    live = _clean(graph, len(leaves), keep_detach=differentiable)
    return Lifted(
        graph,
        tuple(first.asked[i] for i in live),
        tuple(live),
        tuple(dict.fromkeys(first.kept)),
        [leaf.shape for leaf in leaves],
        in_spec,
        out_spec,
        constants,
    )


def _clean(graph: fx.GraphModule, num_args: int, keep_detach: bool) -> list[int]:
    """Drop what costs time and means nothing; return which noise inputs are still used."""
    for node in list(graph.graph.nodes):
        if node.target is aten.copy.default:  # empty.normal_() became copy(empty, noise)
            into, source = node.args[0].meta["tensor_meta"], node.args[1].meta["tensor_meta"]
            if (into.shape, into.dtype) == (source.shape, source.dtype):
                node.replace_all_uses_with(node.args[1])
        elif node.target is aten.detach.default and not keep_detach:
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    live = []
    for position, node in enumerate(inputs[num_args:]):
        if node.users:
            live.append(position)
        else:
            graph.graph.erase_node(node)
    graph.graph.set_codegen(fx.graph.CodeGen())  # flat arguments in, a flat list out
    graph.recompile()
    return live


def _differs(
    function, lifted: Lifted, args, differentiable: bool, *, twice: bool
) -> Refusal | None:
    """Compare graph and function on ``args`` at the same noise; a difference is a refusal."""
    key = (1,)

    def outcome(run: Callable[..., Any]) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(args)
        inputs = [
            leaf.detach().requires_grad_(differentiable and leaf.is_floating_point())
            for leaf in leaves
        ]
        with torch.set_grad_enabled(differentiable or torch.is_grad_enabled()):
            results = pytree.tree_leaves(run(*pytree.tree_unflatten(inputs, spec)))
        results = [r for r in results if isinstance(r, Tensor)]
        if differentiable:
            # A weighting by cosines keeps contributions from cancelling.
            total = [
                (r * torch.arange(r.numel(), device=r.device).cos().view(r.shape)).sum()
                for r in results
                if r.requires_grad
            ]
            wanted = [leaf for leaf in inputs if leaf.requires_grad]
            if total:
                grads = torch.autograd.grad(sum(total), wanted, allow_unused=True)
                results += [
                    torch.zeros_like(leaf) if g is None else g
                    for g, leaf in zip(grads, wanted, strict=True)
                ]
        return [r.detach() for r in results]

    def once() -> list[Tensor]:
        with NoiseMode(keyed(*key), capturing=True), seeded(*key):
            return outcome(function)

    expected = once()
    if twice and any(not _same(a, b) for a, b in zip(expected, once(), strict=True)):
        return Refusal("the program gives other values from run to run at the same noise")
    with seeded(*key):  # for the draws that stay in the graph
        got = outcome(lambda *a: lifted(*a, noise=lifted.draw(key)))
    if len(expected) != len(got):
        return Refusal("gradients are lost in the captured graph")
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape or not _close(want, have):
            return Refusal(
                "the captured graph gives other values than the program: a Python value or a "
                "branch that depends on data, or an operation without a graph, was frozen into it"
            )
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for what a parallel sum may do."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    size = float(a.detach().abs().nan_to_num(0.0, 0.0, 0.0).amax()) if a.numel() else 0.0
    slack = 8 * torch.finfo(a.dtype).eps
    return bool(torch.allclose(a, b, rtol=slack, atol=slack * size, equal_nan=True))


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-8 if a.dtype == torch.float64 else 3e-2
    size = a.abs().nan_to_num(0.0, 0.0, 0.0).amax().item() if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True))
