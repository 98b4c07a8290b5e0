r"""The contract of a program, looked over once before any training.

Few mistakes in a probabilistic program raise.  An observation of the wrong shape broadcasts, a
latent that the guide forgot is drawn from the prior, a parameter that nothing uses stays where it
was, and numbers come out all the same.  :func:`check` runs model and guide a few times on a few
rows and says what is wrong, where, and what to do.

Everything per datum (evidence, weights, k-hat, repeated particles) rests on the independence of
rows.  Let l_s(x, z) (B,) be the log densities of a site s at data x and latents z.  Then

.. math:: l_s(x_I, z_I) = l_s(x, z)_I

must hold for every list I of row numbers, everything else that is random being equal.  Three lists
are tried: a permutation, all rows twice, and a subset.  Batch normalization passes the first two,
because they leave the mean and the variance of a batch as they are; the subset finds it out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae import contract
from pyro_vae.contract import ROLES, Met, Mistakes, Role, Sites, by_row, first_line, label
from pyro_vae.inputs import as_rows
from pyro_vae.noise import Noise, NoiseMode, keyed, seeded
from pyro_vae.program import Rows, map_rows, num_rows, observed_rows
from pyro_vae.traces import (
    RowsAreTheBatch,
    Site,
    base_law,
    closed_kl,
    data_frame,
    log_density,
    sites_of,
)

MAX_ROWS = 64
MAX_NAMED = 10  # parameters named for one mistake, before "and 52 more"


@dataclass(frozen=True)
class SiteReport:
    """One site of a program.

    Attributes:
        name: as in ``pyro.sample(name, ...)``.
        kind: "latent" (of a datum), "global", "observed", "auxiliary" (of the guide alone),
            "factor" or "deterministic".
        event_shape: the shape of one event.
        model, guide: names of the distributions, None where there is none.
        kl: "closed" or "sampled": how AEVB("B") computes the site's KL term; None without one.
    """

    name: str
    kind: str
    event_shape: tuple[int, ...]
    model: str | None
    guide: str | None
    kl: str | None


@dataclass(frozen=True, repr=False)
class Report:
    """What a program that passed consists of; printing it gives a table.

    Attributes:
        program: the name of its class.
        num_rows: B, the rows it was tried on.
        sites: one :class:`SiteReport` a site.
        num_parameters: how many numbers are to be learnt.
        scale: N / B of the data plate; 1 where it is not subsampled.
        reparameterized: whether gradients flow through every draw of the guide, as AEVB needs.
        notes: what could not be checked.
    """

    program: str
    num_rows: int
    sites: tuple[SiteReport, ...]
    num_parameters: int
    scale: float
    reparameterized: bool
    notes: tuple[str, ...] = ()

    @property
    def closed_kl(self) -> tuple[str, ...]:
        """Names of the sites whose KL term has a closed form."""
        return tuple(site.name for site in self.sites if site.kl == "closed")

    @property
    def sampled_kl(self) -> tuple[str, ...]:
        """Names of the sites whose KL term is sampled."""
        return tuple(site.name for site in self.sites if site.kl == "sampled")

    def __repr__(self) -> str:
        table = [["site", "kind", "event", "model", "guide", "KL"]]
        for s in self.sites:
            cells = (s.name, s.kind, str(s.event_shape), s.model, s.guide, s.kl)
            table.append([cell or "-" for cell in cells])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [f"{self.program}: no mistake found on {self.num_rows} rows"]
        for row in table:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(padded)}".rstrip())
        through = "reparameterized" if self.reparameterized else "not reparameterized: no AEVB"
        lines.append(f"  {self.num_parameters:,} parameters; N / B = {self.scale:g}; {through}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def check(program: nn.Module, x: Any) -> Report:
    """Find the mistakes of a program before any training, and leave it as it was.

    At most 64 rows are used.  Modules stay in the mode they are in, so check a program in the
    mode in which it will be trained.

    Args:
        program: a module with ``model(x)`` and ``guide(x)``.
        x: what ``pv.fit`` takes: a tensor (N, ...), a numpy array, a dict of them whose entry
            "x" is observed, or a ``Data``, of which the rows of epoch 0 are used.

    Returns:
        A :class:`Report`.

    Raises:
        ValueError: with one line for each mistake: the site or parameter, what was found, what
            was expected, and what to do.  It is chained to the exception of the program's own
            code where that raised one.
        TypeError: where ``program`` is no program or ``x`` no data.

    Example:
        >>> from pyro_vae.models import bernoulli_vae
        >>> vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=3)
        >>> check(vae, torch.tensor([[0.0, 1.0] * 3, [1.0, 0.0] * 3]))
        BernoulliVAE: no mistake found on 2 rows
          site  kind      event  model      guide   KL
          z     latent    (2,)   Normal     Normal  closed
          x     observed  (6,)   Bernoulli  -       -
          70 parameters; N / B = 1; reparameterized
    """
    for name in ("model", "guide"):
        if not isinstance(program, nn.Module) or not callable(getattr(program, name, None)):
            raise TypeError(
                f"program is {type(program).__name__}, expected a module with model(x) and "
                "guide(x): subclass pv.Program, or wrap two functions, pv.Program(model, guide)"
            )
    checker = _Checker(program, _first_rows(program, x))
    with (
        _left_as_it_was(program),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        report = checker.run()
    if report is None:
        count = len(checker.mistakes)
        found = f"{type(program).__name__} has {count} mistake{'s' if count > 1 else ''}:"
        raise ValueError("\n  ".join([found, *checker.mistakes])) from checker.mistakes.cause
    return report


def _first_rows(program: nn.Module, x: Any) -> Rows:
    if callable(getattr(x, "batch", None)):
        device = getattr(getattr(x, "x", None), "device", None)
        x = x.batch(torch.arange(min(len(x), MAX_ROWS), device=device), 0)
    entries = x if isinstance(x, dict) else {"x": x}
    for name, entry in entries.items():
        if hasattr(entry, "shape") and not len(entry.shape):
            raise ValueError(f'x: entry "{name}" is a single number, expected shape (B, ...)')
    rows = as_rows(x, program, finite=False)
    if num_rows(rows) < 2:
        raise ValueError(
            "x has 1 row, expected at least 2: a single row cannot show that rows are independent"
        )
    return map_rows(lambda t: t[:MAX_ROWS].detach(), rows)


@contextlib.contextmanager
def _left_as_it_was(program: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back, and drop those that appeared."""
    before: list[tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]] = []
    for module in program.modules():
        tensors: dict[str, Any]
        for tensors in (module._parameters, module._buffers):
            values = {
                name: tensor.detach().clone()
                for name, tensor in tensors.items()
                if tensor is not None and not nn.parameter.is_lazy(tensor)
            }
            before.append((tensors, dict(tensors), values))
    try:
        yield
    finally:
        for tensors, known, values in before:
            tensors.clear()
            tensors.update(known)
            for name, value in values.items():
                if not torch.equal(known[name], value):
                    known[name].data.copy_(value)


class _Fixed(Messenger):
    """Gives latents the values it is told."""

    def __init__(self, latents: dict[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents

    def _pyro_sample(self, msg) -> None:
        if msg["value"] is None and msg["name"] in self.latents:
            msg["value"] = self.latents[msg["name"]]


def _constant(index: int, noise: Noise) -> Tensor:
    """Noise that is the same in every row, so that dropout leaves rows comparable."""
    value = {"normal": 0.6, "uniform": 0.37, "exponential": 1.0}[noise.kind]
    return torch.full(noise.shape, value, dtype=noise.dtype, device=noise.device)


class _Failed(Exception):
    """The program's own code raised; holds the sites that were met before."""

    def __init__(self, role: Role, x: Rows, sites: Sites) -> None:
        super().__init__(role)
        self.role, self.x, self.sites = role, x, sites


class _Checker:
    """One look at a program on a few rows; collects ``mistakes``."""

    def __init__(self, program: nn.Module, x: Rows) -> None:
        self.program, self.x = program, x
        self.mistakes = Mistakes()
        self.notes: list[str] = []
        self.kept: list[str] = []  # random operations that no constant can stand for

    def run(self) -> Report | None:
        """The report, or None where there are mistakes."""
        observed = getattr(self.program, "observed", "x")
        met = Met({}, {}, observed_rows(self.x), observed)
        try:
            met.guide = self._sites("guide", self.x, {}, NoiseMode(keyed(0)))
            drawn = {n: site for n, site in met.guide.items() if not site["is_observed"]}
            rsample = all(getattr(site["fn"], "has_rsample", False) for site in drawn.values())
            latents = {n: s["value"] if rsample else s["value"].detach() for n, s in drawn.items()}
            met.model = self._sites("model", self.x, latents, NoiseMode(keyed(1)))
        except _Failed as failed:
            if failed.role == "model":  # often the consequence of a wrong shape before
                met.model = failed.sites
                contract.shapes(met, self.mistakes)
            self._fails(failed)
            return None
        for rule in (
            contract.plates,
            contract.scales,
            contract.latents,
            contract.shapes,
            contract.observation,
            contract.values,
        ):
            rule(met, self.mistakes)
        self._independence(met)
        self._gradients(met, rsample)
        return None if self.mistakes else self._report(met, rsample)

    def _sites(self, role: Role, x: Rows, latents: dict[str, Tensor], noise: NoiseMode) -> Sites:
        """The sites of model or guide on ``x``, at these latents and this noise."""
        tracer = poutine.trace()
        try:
            with seeded(0), noise, RowsAreTheBatch(), _Fixed(latents), tracer:
                getattr(self.program, role)(x)
        except Exception as error:
            raise _Failed(role, x, sites_of(tracer.trace)) from error
        return sites_of(tracer.trace)

    def _fails(self, failed: _Failed, advice: str = "") -> None:
        error = failed.__cause__
        shape = map_rows(lambda t: tuple(t.shape), failed.x)  # type: ignore[arg-type, return-value]
        text = first_line(error)  # type: ignore[arg-type]
        if not advice:
            advice = f"make program.{failed.role}(x[:2]) run; the traceback above says where"
            if "Shape mismatch inside plate" in text:
                advice = "declare the dimensions of an event with .to_event(n)"
            elif "Multiple sample sites" in text:
                advice = (
                    "give each site a name of its own, and make a plate once: "
                    'rows = pyro.plate("data", len(x)), then `with rows:` as often as needed'
                )
        self.mistakes.append(
            f"{failed.role}(x) fails on a batch of shape {shape}: {text}: {advice}"
        )
        self.mistakes.cause = self.mistakes.cause or error

    # --- independence of rows ---------------------------------------------------------------------

    def _independence(self, met: Met) -> None:
        rows = len(met.x)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
        everything = torch.arange(rows)
        if order.equal(everything):
            order = order.flip(0)
        selections = {
            "when rows are permuted": order,
            "when rows are duplicated": everything.repeat(2),
            "in a subset of the rows": order[: (rows + 1) // 2],
        }
        changes: dict[tuple[Role, str], list[str]] = {}
        alone: dict[tuple[Role, str], Tensor] = {}
        for how, index in {"": everything, **selections}.items():
            try:
                together = self._selected(met, index.to(met.x.device))
            except _Failed as failed:
                self._fails(failed, f"it runs on {rows} rows, so write it for any number of them")
                continue
            alone = alone or together
            for (role, name), density in together.items():
                site = met.sites(role).get(name)
                if site is not None and (role, name) in alone:
                    change = _change(alone[role, name], density, index, site["fn"].event_shape)
                    if change:
                        changes.setdefault((role, name), []).append(f"{change} {how}")
        if self.kept and changes:
            kept = ", ".join(dict.fromkeys(self.kept))
            self.notes.append(f"rows were not compared: {kept} draws other noise for other batches")
            return
        for (role, name), found in changes.items():
            is_point = isinstance(base_law(met.sites(role)[name]["fn"]), dist.Delta)
            self.mistakes.add(
                label(role, name),
                f"{'location' if is_point else 'log density'} {', '.join(found)}",
                "rows that are independent of each other",
                self._what_ties_rows(),
            )

    def _selected(self, met: Met, index: Tensor) -> dict[tuple[Role, str], Tensor]:
        """Log densities of selected rows (len(index),), at the latents of those rows."""
        latents: dict[str, Tensor] = {}
        for _, name, site in met:
            if not site["is_observed"]:
                value, axis = site["value"].detach(), met.axis(site)
                if axis is not None:
                    axis -= len(site["fn"].event_shape)
                    latents[name] = value.index_select(axis, index)
                latents.setdefault(name, value)
        x = map_rows(lambda t: t[index], self.x)
        result: dict[tuple[Role, str], Tensor] = {}
        for role in ROLES:
            sites, noise = met.sites(role), NoiseMode(_constant)
            for name, site in self._sites(role, x, latents, noise).items():
                axis = met.axis(sites[name]) if name in sites else None
                # The density of a site that lost its plate may have no rows to compare.
                lost = axis is None and name in met.outside
                if (role, name) in met.scored and not lost and not contract.is_deterministic(site):
                    result[role, name] = by_row(_number(site), axis)
            self.kept += noise.kept
        return result

    def _what_ties_rows(self) -> str:
        for name, module in self.program.named_modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and (module.training or module.running_mean is None):
                return (
                    f"replace {name} ({type(module).__name__}) by nn.LayerNorm or nn.GroupNorm, "
                    "or freeze it with .eval()"
                )
        return "look for a mean, softmax, normalization or reshape that runs over dimension 0"

    # --- gradients --------------------------------------------------------------------------------

    def _gradients(self, met: Met, rsample: bool) -> None:
        parameters = {n: p for n, p in self.program.named_parameters() if p.requires_grad}
        if not parameters:
            self.mistakes.add(
                type(self.program).__name__,
                "no parameter that requires a gradient",
                "at least one",
                "register networks as attributes of the module, or pass them by name to pv.Program",
            )
        self._strangers(met)
        # Estimator A.  Without rsample the draws are detached, and log q reaches the guide by
        # itself, as it does in the sleep phase.
        by, sign = ('AEVB("A")', -1) if rsample else ("WakeSleep()", 1)
        terms = [e.sum() if key[0] == "model" else sign * e.sum() for key, e in met.scored.items()]
        terms = [term for term in terms if term.requires_grad]
        grads: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if parameters and terms:
            total = torch.stack(terms).sum()
            grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        unused, wild = [], []
        finite = all(term.isfinite() for term in terms)
        complete = len(met.scored) == len(met.guide) + len(met.model)
        for name, grad in zip(parameters, grads, strict=True):
            if grad is None and complete:
                unused.append(f'parameter "{name}"')
            elif grad is not None and not grad.isfinite().all() and finite:
                wild.append(f'parameter "{name}"')
        for names, got, expected, advice in (
            (
                unused,
                f"no gradient from {by}",
                "one for all that is to be learnt",
                "freeze it with requires_grad_(False) or use it",
            ),
            (
                wild,
                f"gradient from {by} is not finite",
                "numbers",
                "look for sqrt, log, norm or a division at zero on the way to it",
            ),
        ):
            more = [f"{len(names) - MAX_NAMED} parameters more"] if len(names) > MAX_NAMED else []
            for where in names[:MAX_NAMED] + more:
                self.mistakes.add(where, got, expected, advice)

    def _strangers(self, met: Met) -> None:
        """Find what would be learnt if only the program knew it."""
        known = {id(p) for p in self.program.parameters()}
        store = pyro.get_param_store()
        for (role, name), events in met.scored.items():
            for leaf in _leaves(events):
                if id(leaf) in known:
                    continue
                known.add(id(leaf))
                called = store.param_name(leaf)
                what = f'pyro.param("{called}")' if called else f"a tensor {tuple(leaf.shape)}"
                self.mistakes.add(
                    label(role, name),
                    f"depends on {what} that requires a gradient and would not be trained",
                    "parameters of the program",
                    "wrap the module, pv.Program(module)"
                    if called
                    else "make the module that owns it an attribute of the program, or pass it by "
                    "name, pv.Program(model, guide, net=net)",
                )

    # --- the report -------------------------------------------------------------------------------

    def _report(self, met: Met, rsample: bool) -> Report:
        closed = closed_kl(met.guide, met.model)
        sites = []
        for name in {**met.model, **met.guide}:
            p, q = met.model.get(name), met.guide.get(name)
            site = p or q or {}
            if contract.is_factor(site):
                kind = "factor"
            elif contract.is_deterministic(site):
                kind = "deterministic"
            elif site["is_observed"]:
                kind = "observed"
            elif p is None:
                kind = "auxiliary"
            else:
                kind = "global" if data_frame(p) is None else "latent"
            kl = None
            if kind in ("latent", "global", "auxiliary"):
                kl = "sampled" if closed.get(name) is None else "closed"
            event = tuple(site["fn"].event_shape)
            names = contract.family(p), contract.family(q)
            sites.append(SiteReport(name, kind, event, *names, kl))
        return Report(
            program=type(self.program).__name__,
            num_rows=len(met.x),
            sites=tuple(sites),
            num_parameters=sum(p.numel() for p in self.program.parameters() if p.requires_grad),
            scale=float(met.model[met.observed]["scale"]),
            reparameterized=rsample,
            notes=tuple(self.notes),
        )


def _number(site: Site) -> Tensor:
    """What is compared, one number an event: the log density."""
    fn, batch = base_law(site["fn"]), site["fn"].batch_shape
    if isinstance(fn, dist.Delta):  # its density asks for equality to the last bit
        return fn.v.detach().expand(site["value"].shape).reshape(*batch, -1).sum(-1)
    return log_density(site).detach()


def _change(alone: Tensor, together: Tensor, index: Tensor, event: torch.Size) -> str | None:
    """By how much the densities of selected rows differ from what they were, if they do."""
    if alone.dim():
        alone = alone[index.to(alone.device)]
    if alone.shape != together.shape:
        return f"has shape {tuple(together.shape)} in place of {tuple(alone.shape)}"
    # A density is a sum over an event, whose terms may cancel: a hundred roundings of each.
    size = event.numel() + alone.nan_to_num(0.0, 0.0, 0.0).abs().amax().item()
    gap = (alone - together).abs()
    gap = torch.where(alone.isfinite(), gap.nan_to_num(torch.inf), 0.0)
    if gap.amax().item() <= 100 * torch.finfo(gap.dtype).eps * size:
        return None
    worst = int(gap.flatten().argmax())
    where = f" at row {int(index[worst])}" if gap.dim() else ""
    return f"changes by {gap.flatten()[worst].item():.2g}{where}"


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors at which differentiation of this one ends."""
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)
