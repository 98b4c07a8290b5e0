"""Programs with finite latents in the model alone, and their densities by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv

PARALLEL = {"enumerate": "parallel"}


class Encoder(nn.Module):
    """z ~ q(z | x), the same guide for all."""

    def __init__(self, data_dim: int = 4):
        super().__init__()
        self.encoder = nn.Linear(data_dim, 4)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


class Mixture(Encoder):
    """z ~ sum_c p(c) N(m_c, 1), x | z: the prior of a GM-VAE."""

    states: ClassVar[dict[str, int]] = {"c": 3}

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 4)
        self.means, self.logits = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(self.means[c], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Both(Mixture):
    """z and x depend on one-hot c, and on b, which depends on c."""

    states: ClassVar[dict[str, int]] = {"c": 3, "b": 2}

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.logits), infer=PARALLEL)
            b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * c[..., 0]), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(c @ self.means, 1.0).to_event(1))
            mean = self.decoder(z) + b[..., None] - c[..., :1]
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


class Chain(Encoder):
    """A hidden Markov chain of four steps whose emissions depend on z; rows end early."""

    states: ClassVar[dict[str, int]] = {f"c_{t}": 2 for t in range(4)}

    def __init__(self):
        super().__init__()
        self.rows, self.level = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2))

    def model(self, x):
        lengths = 2 + (x[:, 0] > 0).long() * 2
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
        c = 0
        for t in pyro.markov(range(4)):
            with data, pyro.poutine.mask(mask=t < lengths):
                c = pyro.sample(f"c_{t}", dist.Categorical(logits=self.rows[c]), infer=PARALLEL)
                mean = self.level[c] + z[..., 0]
                pyro.sample(f"x_{t}", dist.Normal(mean, 1.0), obs=x[:, t])


class Topics(nn.Module):
    """Latent Dirichlet allocation: a topic for each word, words in a plate inside documents."""

    states: ClassVar[dict[str, int]] = {"topic": 2}

    def __init__(self):
        super().__init__()
        self.words, self.encoder = nn.Parameter(torch.randn(2, 5)), nn.Linear(4, 2)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Dirichlet(x.new_ones(len(x), 1, 2, dtype=self.words.dtype)))
            with pyro.plate("words", 4, dim=-1):
                topic = pyro.sample("topic", dist.Categorical(z), infer=PARALLEL)
                pyro.sample("x", dist.Categorical(logits=self.words[topic]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            c = self.encoder(x.to(self.words.dtype)).exp().unsqueeze(-2)
            pyro.sample("z", dist.Dirichlet(c))


PROGRAMS: dict[str, type[nn.Module]] = {
    "mixture": Mixture,
    "both": Both,
    "chain": Chain,
    "topics": Topics,
}


def data_for(kind: str, rows: int = 5) -> Tensor:
    return torch.randint(5, (rows, 4)) if kind == "topics" else torch.randn(rows, 4)


def configurations(kind: str) -> list[dict[str, tuple[int, ...]]]:
    """All values of what is enumerated: for words, of all words of a document together."""
    states: dict[str, int] = PROGRAMS[kind].states  # type: ignore[assignment]
    each = {
        n: itertools.product(range(k), repeat=4 if n == "topic" else 1) for n, k in states.items()
    }
    return [dict(zip(each, values, strict=True)) for values in itertools.product(*each.values())]


def by_brute_force(
    kind: str, module: nn.Module, x: Tensor, z: Tensor, observed: bool = True
) -> Tensor:
    """log of the sum over all configurations of p(c, z, x), or of p(c, z), by row (B,)."""
    terms = []
    for configuration in configurations(kind):
        given = {"z": z}
        for name, state in configuration.items():
            value = torch.tensor(state).expand(len(x), len(state))
            if name == "c" and kind == "both":
                value = torch.eye(3, dtype=z.dtype)[value]
            elif name == "b":
                value = value.to(z.dtype)
            given[name] = value if name == "topic" else value[:, 0]
        trace = pyro.poutine.trace(pyro.poutine.condition(_function(module), data=given))
        nodes = trace.get_trace(x).nodes
        total: Tensor | float = 0.0
        for name, node in nodes.items():
            if node["type"] != "sample" or name in ("data", "words"):
                continue
            if name.startswith("x") and not observed:
                continue
            log = node["fn"].log_prob(node["value"])
            if name.startswith("x") and node["mask"] is not None:
                log = log * node["mask"]
            total = total + log.reshape(len(x), -1).sum(-1)
        terms.append(total)
    return torch.stack(terms).logsumexp(0)


def _function(module: nn.Module) -> Callable:
    return module.model  # type: ignore[return-value]


def program_for(kind: str) -> tuple[nn.Module, pv.Program]:
    module = PROGRAMS[kind]()
    return module, pv.Program(module)
