r"""The contract of a program, looked over once before any training.

Few mistakes in a probabilistic program raise.  An observation of the wrong shape broadcasts, a
latent that the guide forgot is drawn from the prior, a parameter that nothing uses stays where it
was, and numbers come out all the same.  :func:`check` runs model and guide a few times on a few
rows and says what is wrong, where, and what to do.

Everything per datum (evidence, weights, k-hat, replicated particles) rests on the independence of
rows.  Let l_s(x, z) (B,) be the log densities of a site s at data x and latents z.  Then

.. math:: l_s(x_I, z_I) = l_s(x, z)_I

must hold for every list I of row numbers, everything else that is random being equal.  Three lists
are tried: a permutation, all rows twice, and a subset.  Batch normalization passes the first two,
because they leave the mean and the variance of a batch as they are; the subset finds it out.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.densities import (
    Site,
    _RowsAreTheBatch,
    closed_kl,
    data_frame,
    is_x_itself,
    log_density,
    sites_of,
)
from pyro_vae.inputs import as_rows
from pyro_vae.lifting import Noise, NoiseMode, keyed, seed_of, seeded
from pyro_vae.program import Rows, map_rows, num_rows, observed_rows

MAX_ROWS = 64
MAX_NAMED = 10  # parameters with one mistake that are named, before "and 52 more"

Role = Literal["model", "guide"]
PLATE = 'with pyro.plate("data", len(x)):'


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
    """What a program that passed consists of; ``print(report)`` shows it as a table.

    Attributes:
        program: the name of its class.
        num_rows: B, the rows it was tried on.
        sites: one :class:`SiteReport` a site.
        num_parameters: numbers to be learnt.
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

    def __str__(self) -> str:
        table = [("site", "kind", "event", "model", "guide", "KL")]
        for s in self.sites:
            row = (s.name, s.kind, str(s.event_shape), s.model, s.guide, s.kl)
            table.append(tuple(cell or "-" for cell in row))  # type: ignore[arg-type]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [f"{self.program}: no mistake found on {self.num_rows} rows"]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(cells)}".rstrip())
        through = "reparameterized" if self.reparameterized else "not reparameterized: no AEVB"
        lines.append(f"  {self.num_parameters:,} parameters; N / B = {self.scale:g}; {through}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__


def check(program: nn.Module, x: Any) -> Report:
    """Find the mistakes of a program before any training, and leave it as it was.

    At most 64 rows are used.  Modules stay in the mode they are in, so a program that is to be
    trained in training mode is checked in training mode.

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
        >>> import torch
        >>> from pyro_vae.models import bernoulli_vae
        >>> vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=3)
        >>> check(vae, torch.tensor([[0.0, 1.0] * 3, [1.0, 0.0] * 3]))
        BernoulliVAE: no mistake found on 2 rows
          site  kind      event  model      guide   KL
          z     latent    (2,)   Normal     Normal  closed
          x     observed  (6,)   Bernoulli  -       -
          66 parameters; N / B = 1; reparameterized
    """
    for name in ("model", "guide"):
        if not isinstance(program, nn.Module) or not callable(getattr(program, name, None)):
            raise TypeError(
                f"program is {type(program).__name__}, expected a module with model(x) and "
                "guide(x): subclass pv.Program, or wrap two functions, pv.Program(model, guide)"
            )
    rows = _first_rows(program, x)
    checker = _Checker(program, rows)
    with (
        _left_as_it_was(program),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        report = checker.run()
    if report is None:
        lines = dict.fromkeys(checker.problems)
        found = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        message = "\n".join(
            [f"{type(program).__name__} has {found}:", *(f"  {line}" for line in lines)]
        )
        raise ValueError(message) from checker.cause
    return report


def _first_rows(program: nn.Module, x: Any) -> Rows:
    if callable(getattr(x, "batch", None)):
        device = getattr(getattr(x, "x", None), "device", None)
        x = x.batch(torch.arange(min(len(x), MAX_ROWS), device=device), 0)
    for name, entry in x.items() if isinstance(x, dict) else [("x", x)]:
        if hasattr(entry, "shape") and not len(entry.shape):
            raise ValueError(f'x: entry "{name}" is a single number, expected (B, ...)')
    if isinstance(x, dict):
        num_rows(as_rows(x, program))  # entries of one length, before they are cut to one
        x = {name: entry[:MAX_ROWS] for name, entry in x.items()}
    elif hasattr(x, "shape"):
        x = x[:MAX_ROWS]
    rows = map_rows(Tensor.detach, as_rows(x, program))
    if num_rows(rows) < 2:
        raise ValueError(
            "x has 1 row, expected at least 2: that rows are independent shows in no single one"
        )
    return rows


@contextlib.contextmanager
def _left_as_it_was(program: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back, and drop those that appeared."""
    before = []
    for module in program.modules():
        for tensors in (module._parameters, module._buffers):
            known = {
                name: (t, None if t is None or nn.parameter.is_lazy(t) else t.detach().clone())
                for name, t in tensors.items()
            }
            before.append((tensors, known))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensors, known in before:
                tensors.clear()  # type: ignore[attr-defined]
                for name, (tensor, values) in known.items():
                    if values is not None and not torch.equal(tensor, values):
                        tensor.copy_(values)
                    tensors[name] = tensor  # type: ignore[index]


class _Fixed(Messenger):
    """Gives latents the values it is told."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg) -> None:
        if msg["value"] is None and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def _constant(index: int, noise: Noise) -> Tensor:
    """Noise that is the same in every row, so that dropout leaves rows comparable."""
    value = {"normal": 0.6, "uniform": 0.37, "exponential": 1.0}[noise.kind]
    return torch.full(noise.shape, value, dtype=noise.dtype, device=noise.device)


class _Failed(Exception):
    """Code of the program raised; holds the sites that were met before."""

    def __init__(self, role: Role, x: Rows, sites: dict[str, Site]) -> None:
        super().__init__(role)
        self.role, self.x, self.sites = role, x, sites


class _Checker:
    """One look at a program; collects ``problems``, a line each."""

    def __init__(self, program: nn.Module, x: Rows) -> None:
        self.program, self.x, self.num_rows = program, x, num_rows(x)
        self.observed: str = getattr(program, "observed", "x")
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.cause: BaseException | None = None
        self.outside: set[str] = set()  # sites of a datum that are outside the data plate
        self.scored: dict[tuple[Role, str], Tensor] = {}  # log densities, with their gradients
        self.kept: list[str] = []  # random operations that noise cannot stand for

    def run(self) -> Report | None:
        """The report, or None where there are problems."""
        try:
            return self._look()
        except _Failed as failed:
            self.fails(failed)
            return None

    def _look(self) -> Report | None:
        guide = self._sites("guide", self.x, {}, seed=0)
        latents = {name: site["value"] for name, site in guide.items() if not site["is_observed"]}
        reparameterized = all(getattr(guide[name]["fn"], "has_rsample", False) for name in latents)
        if not reparameterized:
            latents = {name: value.detach() for name, value in latents.items()}
        try:
            model = self._sites("model", self.x, latents, seed=1)
        except _Failed as failed:  # often the consequence of a shape that is wrong before
            self._shapes(failed.sites)
            raise
        self._plates(guide, model)
        self._latents(guide, model)
        self._shapes(model)
        self._observation(model)
        self._values("guide", guide)
        self._values("model", model)
        self._scales(guide, model)
        self._rows(guide, model)
        self._gradients(reparameterized)
        return None if self.problems else self._report(guide, model, reparameterized)

    def _problem(self, role: Role | None, name: str, text: str) -> None:
        where = f'site "{name}"' if role is None else f'site "{name}" of the {role}'
        self.problems.append(f"{where}: {text}")

    def fails(self, failed: _Failed, rows: str = "") -> None:
        """Report that the program's own code raised."""
        error = failed.__cause__
        text = (str(error).strip().splitlines() or [""])[0]
        if isinstance(failed.x, dict):
            shape = ", ".join(f"{name}: {tuple(t.shape)}" for name, t in failed.x.items())
        else:
            shape = str(tuple(failed.x.shape))
        if rows:
            advice = f"this is {rows} on which it runs; write it for any number of rows"
        elif "Shape mismatch inside plate" in text:
            advice = "declare the dimensions of an event with .to_event(n)"
        else:
            advice = f"the traceback above says where; program.{failed.role}(x[:2]) must run"
        self.problems.append(
            f"{failed.role}(x) fails on a batch of shape {shape}: {type(error).__name__}: {text} "
            f"({advice})"
        )
        self.cause = self.cause or error

    def _sites(
        self, role: Role, x: Rows, latents: dict[str, Tensor], seed: int | None = None
    ) -> dict[str, Site]:
        """The sites of model or guide at given latents; without a seed at constant noise."""
        noise = NoiseMode(_constant if seed is None else keyed(seed))
        tracer = poutine.trace()
        try:
            with seeded(0), noise, _RowsAreTheBatch(), _Fixed(latents), tracer:
                getattr(self.program, role)(x)
        except Exception as error:
            raise _Failed(role, x, sites_of(tracer.trace)) from error
        if seed is None:
            self.kept += noise.kept
        return sites_of(tracer.trace)

    # --- where sites live -------------------------------------------------------------------------

    def _plates(self, guide: dict[str, Site], model: dict[str, Site]) -> None:
        observed = model.get(self.observed)
        others = set()  # plates of another name that hold the observed rows
        if observed is not None and data_frame(observed) is None:
            others = {f.name for f in observed["cond_indep_stack"]}
        for role, name, site in _both(guide, model):
            frame, extra = data_frame(site), _undeclared(site)
            batch = tuple(site["fn"].batch_shape)
            misnamed = others & {f.name for f in site["cond_indep_stack"]}
            if _is_deterministic(site):
                continue
            if frame is not None and frame.dim is None:
                self._problem(
                    role, name, 'pyro.plate("data", ...) is a for loop here, expected one batch '
                    f"of rows: write `{PLATE}`",
                )
                self.outside.add(name)
            elif frame is not None and extra:
                self._problem(
                    role, name, f"batch shape {batch} has dimensions {extra} that no plate "
                    "declares, expected the rows alone: declare the others as parts of an event "
                    "with .to_event(n)",
                )
            elif frame is None and misnamed:
                self._problem(
                    role, name, f'lives in pyro.plate("{min(misnamed)}", ...), expected the rows '
                    f'in a plate named "data": write `{PLATE}`',
                )
                self.outside.add(name)
            elif frame is None and (extra or name == self.observed):
                self._problem(
                    role, name, f'batch shape {batch} outside pyro.plate("data", ...), expected '
                    f"rows inside it: indent the statement under `{PLATE}`"
                    + ("" if name == self.observed else ", or, if it is global, use .to_event(n)"),
                )
                self.outside.add(name)
        for name in guide.keys() & model.keys() - self.outside:
            where = {r: data_frame(s[name]) is not None for r, s in _roles(guide, model)}
            if where["guide"] != where["model"]:
                inside, outside = ("guide", "model") if where["guide"] else ("model", "guide")
                self._problem(
                    None, name, f'inside pyro.plate("data", ...) in the {inside} and outside in '
                    f"the {outside}, expected the same in both: a latent belongs to a datum or "
                    "is global",
                )
                self.outside.add(name)

    def _scales(self, guide: dict[str, Site], model: dict[str, Site]) -> None:
        frames = {(r, n): data_frame(s) for r, n, s in _both(guide, model) if data_frame(s)}
        first = frames.get(("model", self.observed)) or next(iter(frames.values()), None)
        for role, name, site in _both(guide, model):
            frame = frames.get((role, name))
            size, scale = self.num_rows, 1.0
            if frame is not None:
                total = frame.full_size or frame.size
                scale = total / frame.size
                if frame.size != size:
                    self._problem(
                        role, name, f'pyro.plate("data", ...) has {frame.size} rows, expected '
                        f"the {size} of x: pass len(x), or subsample_size=len(x)",
                    )
                if total != (first.full_size or first.size):
                    self._problem(
                        role, name, f'pyro.plate("data", ...) has size {total}, expected '
                        f"{first.full_size or first.size} as at the observed site: give the plate "
                        "one size in model and guide",
                    )
            got = float(site["scale"])
            if abs(got - scale) > 1e-6 * scale:
                self._problem(
                    role, name, f"log density scaled by {got:g}, expected {scale:g}: subsample "
                    'only pyro.plate("data", ...), and weigh terms in an objective of your own '
                    "in place of poutine.scale",
                )

    def _latents(self, guide: dict[str, Site], model: dict[str, Site]) -> None:
        for name, site in model.items():
            if not site["is_observed"] and name not in guide and name != self.observed:
                self._problem(
                    "model", name, "missing in the guide, expected each latent in both: add "
                    f'pyro.sample("{name}", ...) to the guide, else it is drawn from the prior',
                )
        for name, site in guide.items():
            known = name in model or site["infer"].get("is_auxiliary")
            if not site["is_observed"] and not known:
                self._problem(
                    "guide", name, "missing in the model, expected each latent in both: add it "
                    'to the model, or mark it with infer={"is_auxiliary": True}',
                )
            elif site["is_observed"] and not _is_factor(site) and not _is_deterministic(site):
                self._problem(
                    "guide", name, "observed in the guide, expected latents alone: drop obs=...",
                )

    def _shapes(self, model: dict[str, Site]) -> None:
        for name, site in model.items():
            if name in self.outside or _is_factor(site) or _is_deterministic(site):
                continue
            fn = site["fn"]
            got, expected = tuple(site["value"].shape), tuple(fn.batch_shape + fn.event_shape)
            if got == expected:
                continue
            text = f"{expected} = batch {tuple(fn.batch_shape)} + event {tuple(fn.event_shape)}"
            if site["is_observed"]:
                advice = "it would broadcast; reshape x, or let the likelihood return this shape"
                self._problem("model", name, f"observed shape {got}, expected {text}: {advice}")
            else:
                advice = "give model and guide the same event shape"
                self._problem("model", name, f"the guide draws {got}, expected {text}: {advice}")

    def _observation(self, model: dict[str, Site]) -> None:
        observed = [
            name
            for name, site in model.items()
            if site["is_observed"] and not _is_factor(site) and not _is_deterministic(site)
        ]
        if self.observed not in observed:
            site = model.get(self.observed)
            got = "it is a latent" if site is not None and not site["is_observed"] else "none found"
            rename = f'pass obs=x to pyro.sample("{self.observed}", ...)'
            if observed:
                got = f"observed sites are {', '.join(observed)}"
                rename += f', or say which it is, pv.Program(..., observed="{observed[0]}")'
            self._problem("model", self.observed, f"{got}, expected an observed site: {rename}")
            return
        if not is_x_itself(model[self.observed]["value"], observed_rows(self.x)):
            self._problem(
                "model", self.observed, "observes something computed from x, expected obs=x "
                "itself or a view of it: put the function into the likelihood, or transform the "
                "data before they enter",
            )
        for name in observed:
            if name != self.observed:
                self._problem(
                    "model", name, f'observed as well as "{self.observed}", expected one observed '
                    "site: join the two into one x with one likelihood, or condition on the value "
                    "as a covariate, without pyro.sample",
                )

    # --- values -----------------------------------------------------------------------------------

    def _values(self, role: Role, sites: dict[str, Site]) -> None:
        for name, site in sites.items():
            bad = _bad_parameter(site["fn"])
            outside = None if role == "guide" or bad else self._outside_support(site)
            if bad:
                self._problem(role, name, bad)
            if outside:
                self._problem(role, name, outside)
            try:
                events = log_density(site)
                by_row = _by_row(events, self._axis(site))
            except Exception as error:
                if not self.problems:  # else it is a consequence
                    text = (str(error).strip().splitlines() or [""])[0]
                    fn = _name_of(site["fn"])
                    self._problem(
                        role, name, f"{fn}.log_prob fails: {text}; expected a density (B,): "
                        "compare the shapes of the value and of the distribution",
                    )
                    self.cause = self.cause or error
                continue
            self.scored[role, name] = events
            finite = by_row.isfinite()
            if bad or outside or finite.all():
                continue
            row = int((~finite).flatten().nonzero()[0])
            value = float(by_row.flatten()[row])
            where = f"at row {row}" if finite.dim() else "(global)"
            self._problem(
                role, name, f"log density {value} {where}, expected a finite number: "
                + self._why_not_finite(row if finite.dim() else 0),
            )

    def _why_not_finite(self, row: int) -> str:
        for name, entry in self.x.items() if isinstance(self.x, dict) else [("x", self.x)]:
            if entry.is_floating_point() and not entry[row].isfinite().all():
                return f'"{name}" is not finite in that row; drop it or impute it'
        return "bound scales away from zero and logits away from infinity"

    def _outside_support(self, site: Site) -> str | None:
        """What is wrong with the value of a site, if it is impossible under its distribution."""
        value = site["value"].detach()
        try:
            support = site["fn"].support
            inside = support.check(value)
        except Exception:  # no support that could be asked: its density has to judge
            return None
        if isinstance(site["mask"], Tensor):
            mask = site["mask"].reshape(site["mask"].shape + (1,) * (inside.dim() - site["mask"].dim()))
            inside = inside | ~mask.bool()
        if site["mask"] is False or inside.all() or not value.numel():
            return None
        if value.is_floating_point() and not value.isfinite().all():
            return None  # the density is not finite either, and says in which row
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        low, high = value.min().item(), value.max().item()
        binary = support is constraints.boolean
        bound = getattr(support, "upper_bound", None)
        unit = isinstance(bound, (int, float)) and bound == 1
        if not site["is_observed"]:
            advice = "choose a guide with the support of the prior"
        elif low >= 0 and high > 1 and (binary or unit):
            divisor = 16 if high <= 16 else 255 if high <= 255 else round(high)
            binarize = ', binarize="threshold"' if binary else ""
            advice = f"divide by {divisor}, pv.datasets.from_array(x, scale={divisor}{binarize})"
        elif low >= 0 and binary:
            advice = (
                'binarize the data, pv.datasets.from_array(x, binarize="threshold"), or build the '
                "likelihood with soft_targets=True"
            )
        else:
            advice = "shift or scale x, or choose a likelihood for such values"
        expected = "0 or 1" if binary else _one_line(support)
        return f"values from {low:g} to {high:g}, expected {expected}: {advice}"

    # --- independence of rows ---------------------------------------------------------------------

    def _axis(self, site: Site) -> int | None:
        """The batch dimension of a site that counts rows, from the right; None if it is global."""
        frame, batch = data_frame(site), site["fn"].batch_shape
        if frame is not None and frame.dim is not None:
            return frame.dim
        found = [dim for dim in range(-len(batch), 0) if batch[dim] == self.num_rows]
        return found[0] if found and site["name"] in self.outside else None

    def _rows(self, guide: dict[str, Site], model: dict[str, Site]) -> None:
        axes = {(role, name): self._axis(site) for role, name, site in _both(guide, model)}
        latents: dict[str, tuple[Tensor, int | None]] = {}
        for role, name, site in _both(model=model, guide=guide):
            if not site["is_observed"]:
                axis, events = axes[role, name], len(site["fn"].event_shape)
                if axis is not None or name not in latents:
                    value = site["value"].detach()
                    latents[name] = value, None if axis is None else axis - events

        def by_row(index: Tensor) -> dict[tuple[Role, str], Tensor]:
            index = index.to(observed_rows(self.x).device)
            x = map_rows(lambda t: t[index], self.x)
            fixed = {
                name: value if axis is None else value.index_select(axis, index)
                for name, (value, axis) in latents.items()
            }
            return {
                (role, name): _by_row(log_density(site).detach(), axes[role, name])
                for role in _ROLES
                for name, site in self._sites(role, x, fixed).items()
                if (role, name) in self.scored
                # A part of a latent that lost its plate has no rows that could be compared.
                and not (name in self.outside and axes[role, name] is None)
            }

        everything = torch.arange(self.num_rows)
        generator = torch.Generator().manual_seed(seed_of(0))
        order = torch.randperm(self.num_rows, generator=generator)
        selections = {
            "when rows are permuted": order,
            "when rows are duplicated": everything.repeat(2),
            "in a subset of the rows": order[: (self.num_rows + 1) // 2],
        }
        changes: dict[tuple[Role, str], list[str]] = {}
        try:
            alone = by_row(everything)
        except _Failed as failed:
            return self.fails(failed, "the same batch")
        for how, index in selections.items():
            try:
                together = by_row(index)
            except _Failed as failed:
                self.fails(failed, f"{len(index)} of the {self.num_rows} rows")
                continue
            for key in alone.keys() & together.keys():
                name = key[1]
                site = (guide if key[0] == "guide" else model)[name]
                change = _change(alone[key], together[key], index, site["fn"].event_shape.numel())
                if change:
                    changes.setdefault(key, []).append(f"{change} {how}")
        if self.kept and changes:
            kept = ", ".join(dict.fromkeys(self.kept))
            self.notes.append(f"rows were not compared: {kept} draws other noise for each batch")
            return
        for role, name in itertools.product(_ROLES, {**guide, **model}):
            if (role, name) in changes:
                self._problem(
                    role, name, f"log density {', '.join(changes[role, name])}, expected rows "
                    f"that are independent of each other: {self._what_ties_rows()}",
                )

    def _what_ties_rows(self) -> str:
        for name, module in self.program.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.training or module.running_mean is None:
                    return (
                        f"replace {name} ({type(module).__name__}) by nn.LayerNorm or "
                        "nn.GroupNorm, or freeze it with .eval()"
                    )
        return "look for a mean, softmax, normalization or reshape that runs over dimension 0"

    # --- gradients --------------------------------------------------------------------------------

    def _gradients(self, reparameterized: bool) -> None:
        parameters = {n: p for n, p in self.program.named_parameters() if p.requires_grad}
        if not parameters:
            self.problems.append(
                f"{type(self.program).__name__} has no parameter that requires a gradient, "
                "expected at least one: register networks as attributes of the module, or pass "
                "them by name to pv.Program"
            )
        self._strangers(parameters)
        # Estimator A; without rsample the draws are detached, and +log q reaches the guide as the
        # sleep phase does.
        sign = -1 if reparameterized else 1
        total = torch.zeros(())
        for (role, _), events in self.scored.items():
            total = total + (events.sum() if role == "model" else sign * events.sum()).cpu()
        if not parameters or not total.requires_grad:
            grads: tuple[Tensor | None, ...] = (None,) * len(parameters)
        else:
            grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        by = 'AEVB("A")' if reparameterized else "WakeSleep()"
        self._name(
            [name for name, g in zip(parameters, grads, strict=True) if g is None],
            f"no gradient from {by}, expected one: freeze it with requires_grad_(False) or use it",
        )
        if total.isfinite():
            bad = [
                name
                for name, g in zip(parameters, grads, strict=True)
                if g is not None and not g.isfinite().all()
            ]
            self._name(
                bad, f"gradient from {by} is not finite, expected numbers: look for sqrt, log or "
                "norm at zero on the way to it",
            )

    def _name(self, parameters: list[str], text: str) -> None:
        self.problems += [f'parameter "{name}": {text}' for name in parameters[:MAX_NAMED]]
        if len(parameters) > MAX_NAMED:
            self.problems.append(f"and {len(parameters) - MAX_NAMED} more parameters: {text}")

    def _strangers(self, parameters: dict[str, Tensor]) -> None:
        """Find tensors that would be learnt if only the program knew them."""
        known = {id(p) for p in parameters.values()}
        store = pyro.get_param_store()
        for (role, name), events in self.scored.items():
            for leaf in _leaves(events):
                if id(leaf) in known:
                    continue
                known.add(id(leaf))
                called = store.param_name(leaf)
                what = f'pyro.param("{called}")' if called else f"a tensor {tuple(leaf.shape)}"
                self._problem(
                    role, name, f"depends on {what} that requires a gradient, expected parameters "
                    "of the program: register the module that owns it as an attribute, or pass it "
                    "by name, pv.Program(model, guide, net=net)",
                )

    # --- the report -------------------------------------------------------------------------------

    def _report(
        self, guide: dict[str, Site], model: dict[str, Site], reparameterized: bool
    ) -> Report:
        closed = closed_kl(guide, model)
        sites = []
        for name in {**model, **guide}:
            p, q = model.get(name), guide.get(name)
            site: Site = p or q  # type: ignore[assignment]
            kind = "latent" if p is not None else "auxiliary"
            if _is_factor(site) or _is_deterministic(site):
                kind = "factor" if _is_factor(site) else "deterministic"
            elif site["is_observed"]:
                kind = "observed"
            elif p is not None and data_frame(site) is None:
                kind = "global"
            kl = None
            if kind in ("latent", "global", "auxiliary"):
                kl = "sampled" if closed.get(name) is None else "closed"
            sites.append(
                SiteReport(
                    name,
                    kind,
                    tuple(site["fn"].event_shape),
                    None if p is None else _name_of(p["fn"]),
                    None if q is None else _name_of(q["fn"]),
                    kl,
                )
            )
        return Report(
            type(self.program).__name__,
            self.num_rows,
            tuple(sites),
            sum(p.numel() for p in self.program.parameters() if p.requires_grad),
            float(model[self.observed]["scale"]),
            reparameterized,
            tuple(self.notes),
        )


_ROLES: tuple[Role, ...] = ("guide", "model")


def _roles(guide: dict[str, Site], model: dict[str, Site]) -> list[tuple[Role, dict[str, Site]]]:
    return [("guide", guide), ("model", model)]


def _both(guide: dict[str, Site], model: dict[str, Site]) -> Iterator[tuple[Role, str, Site]]:
    for role, sites in _roles(guide, model):
        for name, site in sites.items():
            yield role, name, site


def _is_factor(site: Site) -> bool:
    return isinstance(site["fn"], dist.Unit)


def _is_deterministic(site: Site) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _undeclared(site: Site) -> list[int]:
    """The batch dimensions of a site, from the right, that no plate declares."""
    declared = {frame.dim for frame in site["cond_indep_stack"]}
    batch = site["fn"].batch_shape
    return [dim for dim in range(-len(batch), 0) if batch[dim] != 1 and dim not in declared]


def _by_row(events: Tensor, axis: int | None) -> Tensor:
    """Sum over all batch dimensions but that of the rows: (B,), or () for a global site."""
    if axis is None:
        return events.sum()
    return events.movedim(axis, 0).flatten(1).sum(1) if events.dim() > 1 else events


def _change(alone: Tensor, together: Tensor, index: Tensor, events: int) -> str | None:
    """By how much a row's density differs from rounding, if it does."""
    if alone.dim():
        alone = alone[index.to(alone.device)]
    if alone.shape != together.shape:
        return f"has shape {tuple(together.shape)}"
    # A density is a sum over an event, whose terms may cancel; a hundred roundings of each.
    size = events + alone.nan_to_num(0.0, 0.0, 0.0).abs().amax().item()
    gap = (alone - together).abs()
    gap = torch.where(alone.isfinite() | together.isfinite(), gap.nan_to_num(torch.inf), 0.0)
    if gap.amax().item() <= 100 * torch.finfo(gap.dtype).eps * size:
        return None
    row = int(gap.flatten().argmax())
    where = f" at row {int(index[row])}" if gap.dim() else ""
    return f"changes by {gap.flatten()[row].item():.2g} nats{where}"


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


def _base(fn: Any) -> Any:
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _name_of(fn: Any) -> str:
    return type(_base(fn)).__name__


def _one_line(constraint: Any) -> str:
    return " ".join(str(constraint).split())[:80]


def _bad_parameter(fn: Any) -> str | None:
    """What is wrong with a distribution's parameters; with validation off nobody else asks."""
    base = _base(fn)
    for name, constraint in getattr(base, "arg_constraints", {}).items():
        value = base.__dict__.get(name)  # others are computed from those that were given
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        value = value.detach()
        if value.is_floating_point() and not value.isfinite().all():
            continue  # shows in the density, with its row
        if not constraint.check(value).all():
            return (
                f"{name} of {type(base).__name__} has values from {value.min().item():g} to "
                f"{value.max().item():g}, expected {_one_line(constraint)}: map the network's "
                "output there, with softplus, exp or sigmoid"
            )
    return None
