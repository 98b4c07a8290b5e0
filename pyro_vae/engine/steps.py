"""A training step: it answers what learners are asked, and moves their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_vae.engine.learner import Answer, Ask, Learner
from pyro_vae.engine.sources import GradientSource


class Step:
    """What the training loop talks to.

    Attributes:
        engine: its name.
        reason: why this engine, one line; empty where it is what was asked for.
        graph: the captured step that it runs, where there is one.
        made: where an error has stopped it, what it had answered of what it was asked, by learner;
            the last of them is the one that was at work.
    """

    engine: str
    reason: str
    graph: Any = None
    made: Sequence[tuple[Learner, list[Answer]]] = ()

    def bind(self, learners: Sequence[Learner]) -> None:
        """Work for these learners from now on."""
        raise NotImplementedError

    def displaced(self) -> bool:
        """Whether somebody has put others in place of the tensors that :meth:`bind` found."""
        return False

    def release(self) -> None:
        """Leave the learners' parameters and optimizers as if they had been alone."""

    def answer(self, asks: Sequence[Sequence[Ask]]) -> list[list[Answer]]:
        """Do what is asked of each learner.

        Raises:
            ValueError: at the first update whose loss or gradient is not finite.
        """
        raise NotImplementedError

    def most_at_once(self, asks: Sequence[Ask], seconds: float) -> int:
        """How many updates may be asked for at a time, after these asks took so long."""
        return 1


class OneByOne(Step):
    """Gradients from a source, then the optimizer's own update: one learner after another.

    Args:
        source: of the gradients.
        partial: in its place for batches that are filled up, where that must not be seen.
    """

    def __init__(self, source: GradientSource, partial: GradientSource | None = None) -> None:
        self.source, self.partial = source, partial
        self.engine, self.reason = source.engine, source.reason
        self.graph = getattr(source, "graph", None)

    def bind(self, learners: Sequence[Learner]) -> None:
        self._learners = [(learner, self.source.on(learner.program)) for learner in learners]

    def answer(self, asks: Sequence[Sequence[Ask]]) -> list[list[Answer]]:
        made: list[tuple[Learner, list[Answer]]] = []
        self.made = made
        for (learner, source), its in zip(self._learners, asks, strict=True):
            made.append((learner, []))
            for ask in its:
                made[-1][1].append(_one(learner, self._source_of(source, ask), ask))
        return [answers for _, answers in made]

    def _source_of(self, source: GradientSource, ask: Ask) -> GradientSource:
        whole = self.partial is None or bool(ask.weight.all())
        return source if whole else self.partial  # type: ignore[return-value]


def _one(learner: Learner, source: GradientSource, ask: Ask) -> Answer:
    if ask.refresh:
        return Answer.of(*source.refresh(learner.parameters, *ask[1:]))
    grads, sums = source.grads(learner.parameters, *ask[1:])
    # Of several ranks a RankedSource has added up theirs: the one place of that.
    return learner.update(grads, sums, ask)
