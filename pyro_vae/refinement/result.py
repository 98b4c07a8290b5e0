"""Draws that are better than the guide's, with what says how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pyro_vae.evidence.weights import MOST_RHAT

Method = Literal["hmc", "psis", "guide"]


@dataclass(frozen=True, eq=False, repr=False)
class Refinement:
    """Draws from p(z | x), or from something nearer to it than the guide.

    Attributes:
        method: "hmc", "psis" or "guide".
        values: by latent site, (S, N, ...).  Of chains, those of the first chain come first.
        chains: C, of "hmc"; the draws of a datum are C series of S / C.
        khat: "psis": Pareto shape of the guide's weights, (N,); above 0.7 resampling did not mend
            the guide.  "guide": the same of the refitted guide.
        ess: how many independent draws the draws that were picked from are worth, "psis"; or those
            of the chains, in their worst coordinate, "hmc"; (N,).  "guide": None, they are
            independent.
        rhat: "hmc": how far a datum's chains are from telling the same, (N,); above 1.1 they have
            not met, each in a mode of its own say, and how often a mode is drawn hangs on where
            chains started.
        accept: "hmc": the mean acceptance of a datum's chains, (N,).
        elbo_before, elbo: "guide": nats, (N,), of the guide as it is and refitted.
        elbo_error: "guide": the standard error of their difference.
        rising: "guide": by how much the ELBO still rose in the last quarter of the run, nats; where
            it did, more ``steps`` help.

    All but the draws are float64.
    """

    method: Method
    values: dict[str, Tensor]
    chains: int = 1
    khat: Tensor | None = None
    ess: Tensor | None = None
    rhat: Tensor | None = None
    accept: Tensor | None = None
    elbo_before: Tensor | None = None
    elbo: Tensor | None = None
    elbo_error: Tensor | None = None
    rising: Tensor | None = None

    @property
    def num_draws(self) -> int:
        """S."""
        return len(next(iter(self.values.values())))

    @property
    def num_data(self) -> int:
        """N."""
        return next(iter(self.values.values())).shape[1]

    def __repr__(self) -> str:
        sites = ", ".join(self.values)
        said = [f"{self.num_draws} draws of {sites} for each of {self.num_data} data"]
        if self.method == "hmc" and self.ess is not None and self.rhat is not None:
            apart = int((~(self.rhat <= MOST_RHAT)).sum())
            said.append(f"from {self.chains} HMC chains each")
            said.append(f"worth {float(self.ess.median()):.0f} independent ones in the median")
            said.append(f"R-hat above {MOST_RHAT} for {apart}")
        elif self.method == "psis" and self.khat is not None and self.ess is not None:
            bad = int((~(self.khat <= 0.7)).sum())
            said.append("the guide's, resampled by their Pareto-smoothed weights")
            said.append(f"median ESS {float(self.ess.median()):.0f}")
            said.append(f"khat not below 0.7 for {bad}")
        elif self.elbo is not None and self.elbo_before is not None:
            gain = self.elbo - self.elbo_before
            said.append("from the guide's family refitted to each")
            said.append(
                f"mean ELBO {float(self.elbo_before.mean()):.3f} before and "
                f"{float(self.elbo.mean()):.3f} after, largest gain {float(gain.max()):.3f} nats "
                f"at datum {int(gain.argmax())}"
            )
        return f"Refinement({self.method}: {'; '.join(said)})"
