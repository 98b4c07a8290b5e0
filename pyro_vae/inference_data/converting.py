"""From programs and data to the groups of one object, a batch of rows after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_vae.checking.guards import require_numbers
from pyro_vae.cluster import connected
from pyro_vae.densities.missing import usable_rows
from pyro_vae.evidence.weights import warn_about_tails
from pyro_vae.inference_data import assembling
from pyro_vae.inference_data.assembling import Variables
from pyro_vae.inference_data.chains import Batch, Chain, Sizes
from pyro_vae.inference_data.constants import beside, true_values
from pyro_vae.inference_data.datasets import attributes_of, container, notes_of
from pyro_vae.inference_data.draws import Groups, observed_values, rows_at_once
from pyro_vae.inference_data.further import Refined, calibration_places, require_own_latents
from pyro_vae.inference_data.judging import judged
from pyro_vae.inference_data.limits import bytes_of, mebibytes, refuse_size
from pyro_vae.inference_data.naming import Naming, columns_of, refuse_names, rows_of, written
from pyro_vae.inference_data.pieces import batches_of
from pyro_vae.inference_data.programs import (
    Plan,
    Source,
    cast,
    chain_numbers,
    require_alike,
    training_curves,
)
from pyro_vae.inference_data.stores import require_path, store_for
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.progress import counting

GROUPS = (  # in the order in which they are shown
    "posterior", "posterior_refined", "sample_stats", "posterior_predictive", "log_likelihood",
    "prior", "prior_predictive", "prior_sbc", "predictions", "observed_data", "constant_data",
    "predictions_constant_data", "training",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What ``to_inference_data`` was asked for."""

    num_draws: int
    chains: int
    num_prior: int
    predictive: bool
    true_latents: Any
    dims: Any
    coords: Any
    predictions: Any
    num_simulations: int
    refined: Any
    seed: int
    batch_size: int
    max_bytes: int
    out: Any
    progress: bool | Callable | None
    cluster: Any = None


def converted(sources: Sequence[Source], x: Any, options: Options) -> Any:
    """The whole of ``to_inference_data``, after its arguments were checked."""
    wrapped = container()  # before there is anything to lose
    path = None if options.out is None else require_path(options.out)
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(evaluating(source.program))
        conversion = Conversion(sources, x, options)
        conversion.refuse_size(path is None)
        conversion.store = store_for(path, conversion.about, conversion.needed)
        try:
            if options.cluster is not None:
                conversion.cluster = stack.enter_context(connected(options.cluster))
            conversion.fill(None if path is None else path.name)
            datasets = conversion.store.finish()
        except BaseException:
            conversion.store.drop()
            raise
    conversion.warn()
    return wrapped({group: datasets[group] for group in GROUPS if group in datasets})


class Conversion:
    """What is known before anything is drawn, and how the groups are filled.

    Attributes:
        plans: one for each program.
        naming: of dimensions.
        needed: bytes of the result.
        store: where variables go.
        cluster: a client of the one that draws, where one does.
    """

    store: Any
    cluster: Any = None

    def __init__(self, sources: Sequence[Source], x: Any, options: Options) -> None:
        self.sources, self.x, self.options = sources, x, options
        o, several = options, len(sources) > 1
        self.rows: Rows = usable_rows(x, sources[0].program)
        self.count = num_rows(self.rows)
        self.particles = o.num_draws if several else o.num_draws * o.chains  # of each program
        self.plans = [
            Plan.of(s.program, x, self.rows, o.predictive, o.batch_size, self.particles)
            for s in sources
        ]
        require_alike(self.plans)
        first = self.plans[0]
        require_own_latents(first, o)
        self.new_rows: Rows | None = None
        if o.predictions is not None:
            self.new_rows = usable_rows(o.predictions, first.program)
        self.chains = chain_numbers(sources) if several else np.arange(o.chains)
        truths = true_values(o.true_latents, first, self.count)
        self.constants, likes = beside(x, self.rows, first, truths)
        self.of_all = {f"true_{name}" for name in truths if name in first.shared}
        self.naming = self._named(likes)
        self.needed, self.most = bytes_of(
            first,
            self.count,
            self.particles * len(sources),
            o.num_prior * len(sources),
            o.predictive,
            0 if self.new_rows is None else num_rows(self.new_rows),
            o.refined is not None,
        )
        self.khat: list[np.ndarray] = []

    def _named(self, likes: dict[str, str]) -> Naming:
        o, plan = self.options, self.plans[0]
        naming = Naming(
            plan.look,
            o.dims,
            o.coords,
            rows_of(self.x, self.count),
            self.chains,
            columns_of(self.x, self.rows, plan.observed),
        )
        alone = plan.of_the_model_alone
        names = [*plan.form.latents, *alone, *plan.observed, *self.constants]
        refuse_names(names, naming.has_labels)
        for name, shape in plan.shapes.items():
            naming.add(name, shape, of_data=name in plan.own)
        for name, site in alone.items():
            naming.add(name, site.rows_first(site.value).shape[1:])
        for name, value in plan.observed.items():
            naming.add(name, value.shape[1:])
        for name, value in self.constants.items():
            shape = np.shape(value)[0 if name in self.of_all else 1 :]
            naming.add(name, shape, of_data=name not in self.of_all, like=likes.get(name, ""))
        naming.done()
        self._attributes = attributes_of(
            plan.program, self.x, seed=o.seed, num_draws=o.num_draws, chains=len(self.chains)
        ) | {f"site_{written(n)}": n for n in names if written(n) != n}
        self._notes = notes_of(bool(plan.shared), bool(plan.own), len(self.plans) > 1)
        return naming

    def refuse_size(self, in_memory: bool) -> None:
        if in_memory:
            most = self.options.max_bytes
            refuse_size(self.needed, self.most, self.count, self.particles, most)

    def about(self, group: str) -> dict[str, Any]:
        """The attributes of a group."""
        note = {"note": self._notes[group]} if group in self._notes else {}
        # Of local latents az.loo is wrong, whatever the draws.
        loo = {"loo_is_valid": int(not self.plans[0].own)} if group == "log_likelihood" else {}
        return {**({} if group == "training" else self._attributes), **note, **loo}

    def warn(self) -> None:
        if self.khat:
            warn_about_tails(
                torch.from_numpy(np.concatenate(self.khat)),
                "the guide's draws miss a part of their posterior; see "
                'sample_stats["khat"] before you read the draws as a posterior',
            )

    # --- groups -----------------------------------------------------------------------------------

    def fill(self, name: str | None) -> None:
        """Draw everything into the store; ``name`` is that of a file."""
        o = self.options
        size, programs = rows_at_once(self.rows, o.batch_size), len(self.plans)
        sizes = Sizes(self.particles, o.num_prior, o.predictive, size, o.seed)
        drawing = []
        for number, plan in enumerate(self.plans):
            refined = None if o.refined is None else Refined(plan.program, number, programs, o)
            drawing.append(Chain(plan, self.rows, number, sizes, refined))
        self._put_whole()
        if o.num_simulations:
            self._put("prior_sbc", calibration_places(self.plans, self.rows, o, self.naming))
        if self.plans[0].shared:
            self._put_draws([chain.shared() for chain in drawing], of_data=False)
        label = f"{name or 'the result'}, {mebibytes(self.needed)} MiB"
        told = False if name is None and o.progress is None else o.progress
        total = self.count + (0 if self.new_rows is None else num_rows(self.new_rows))
        if told is None and not sys.stderr.isatty():  # where no line stands until a minute is over
            print(f"{label}: {total:,} data", file=sys.stderr, flush=True)
        with counting(told, total, label=label) as advance:
            self._put_batches(drawing, advance)
            if self.new_rows is not None:
                self._put_predictions(drawing, self.new_rows, advance)

    def _put(
        self, group: str, variables: Variables, start: int = 0, naming: Naming | None = None
    ) -> None:
        rows = self.count if naming is None else num_rows(self.new_rows)  # type: ignore[arg-type]
        self.store.put(group, variables, naming or self.naming, start, rows)

    def _put_draws(
        self,
        parts: Sequence[Groups],
        start: int = 0,
        naming: Naming | None = None,
        *,
        of_data: bool = True,
    ) -> None:
        groups = assembling.draws(parts, len(self.chains), naming or self.naming, of_data=of_data)
        for group, variables in groups.items():
            self._put(group, variables, start, naming)

    def _put_whole(self) -> None:
        of_all = {n: v for n, v in self.constants.items() if n in self.of_all}
        of_data = {n: v for n, v in self.constants.items() if n not in of_all}
        self._put("observed_data", assembling.whole(self.plans[0].observed, self.naming))
        if self.constants:
            variables = assembling.whole(of_data, self.naming)
            variables |= assembling.whole(of_all, self.naming, of_data=False)
            self._put("constant_data", variables)
        curves = training_curves(self.sources, self.chains)
        if curves is not None:
            self.store.add("training", curves)

    def _put_batches(self, drawing: Sequence[Chain], advance: Callable[[int], Any]) -> None:
        joint: dict[int, list[Joint]] = {}  # by the number of the first row
        shared, own = bool(self.plans[0].shared), bool(self.plans[0].own)
        for start, batch in batches_of(drawing, "batches", self.rows, self.cluster):
            stats = assembling.kl_terms([b.kl for b in batch], self.plans[0].terms, self.naming)
            if any(later > start for later in joint):  # of all rows: the last batch has its word
                stats = {name: v for name, v in stats.items() if "data" in v.dims}
            joint[start] = [Joint.of(each) for each in batch] if shared else []
            if not shared:
                stats |= self._judged([each.draws["sample_stats"] for each in batch], ("data",))
            if self.options.refined is not None:
                stats |= assembling.statistics([each.refined for each in batch])
            self._put_draws([each.draws for each in batch], start)
            self._put("sample_stats", stats, start)
            advance(batch[0].size)
        if shared:
            tables = [together(each) for each in zip(*map(joint.get, sorted(joint)), strict=True)]
            stats = {} if own else self._judged(tables, ())
            self._put_draws([{"sample_stats": table} for table in tables], of_data=False)
            self._put("sample_stats", stats)

    def _judged(self, tables: Sequence[dict[str, np.ndarray]], rows: tuple[str, ...]) -> Variables:
        """Statistics of the weights, which join the tables of densities."""
        found = []
        for table in tables:
            table["log_weight"] = table["lp"] - table["log_q"]
            found.append(judged(table["lp"], table["log_q"]))
            require_numbers(torch.from_numpy(found[-1]["log_evidence"]).reshape(-1), "log p(x)")
            self.khat.append(found[-1]["khat"].reshape(-1))
        return assembling.statistics(found, rows)

    def _put_predictions(
        self, drawing: Sequence[Chain], rows: Rows, advance: Callable[[int], Any]
    ) -> None:
        given, plan, count = self.options.predictions, self.plans[0], num_rows(rows)
        naming = self.naming.of_other_rows(rows_of(given, count))
        constants, _ = beside(given, rows, plan, {})
        for name, value in constants.items():
            naming.add(name, np.shape(value)[1:])
        seen = cast(observed_values(plan.program, rows, self.options.batch_size), plan.whole)
        self._put(
            "predictions_constant_data", assembling.whole({**seen, **constants}, naming), 0, naming
        )
        for start, batch in batches_of(drawing, "predictions", rows, self.cluster):
            self._put_draws([each.draws for each in batch], start, naming)
            advance(batch[0].size)


class Joint(NamedTuple):
    """Log densities (K,) where rows share latents: of a batch of rows, and of what is shared."""

    rows: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]

    @classmethod
    def of(cls, batch: Batch) -> Joint:
        """Taken out of the batch's draws."""
        tables = batch.draws.pop("sample_stats")
        shared = {name: batch.joint[name].astype(np.float64) for name in tables}
        return cls({n: t.sum(1, dtype=np.float64) for n, t in tables.items()}, shared)


def together(parts: Sequence[Joint]) -> dict[str, np.ndarray]:
    """The log densities of all rows, in their order, and of what they share."""
    return {
        name: sum((p.rows[name] for p in parts), given) for name, given in parts[0].shared.items()
    }
