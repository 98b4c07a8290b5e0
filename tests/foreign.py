"""Programs in the idioms of public Pyro code: examples, tutorials and the libraries around them.

Each is written as its authors write theirs: plates of any name, several arguments, several
observations, modules announced by ``pyro.module``, discrete latents marked for enumeration.  None
knows this package; ``PROGRAMS`` says how each is wrapped and what data it takes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.nn import functional as F

B = 40


def mlp(*sizes):
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Softplus()]
    return nn.Sequential(*layers[:-1])


class TutorialVAE(nn.Module):
    """Pyro's first tutorial on the subject."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(12, 16, 4), mlp(2, 16, 12)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], 2)))
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            image = torch.sigmoid(self.decoder(z))
            pyro.sample("obs", dist.Bernoulli(image).to_event(1), obs=x.reshape(-1, 12))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.reshape(-1, 12)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class ConditionalVAE(nn.Module):
    """The missing half of an image given the other: ``model(xs, ys)``, no size in the plate."""

    def __init__(self):
        super().__init__()
        self.baseline = mlp(6, 16, 6)
        self.prior_net, self.generation = mlp(12, 16, 4), mlp(2, 16, 6)
        self.recognition = mlp(12, 16, 4)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        with pyro.plate("data"):
            with torch.no_grad():
                y_hat = self.baseline(xs).sigmoid()
            loc, scale = self.prior_net(torch.cat([xs, y_hat], -1)).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1))
            loc = self.generation(zs)
            pyro.sample("y", dist.Bernoulli(logits=loc).to_event(1), obs=ys)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            loc, scale = self.recognition(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1))


class SemiSupervised(nn.Module):
    """Kingma's M2: a digit's class, seen or summed out, and its style."""

    def __init__(self):
        super().__init__()
        self.encoder_y, self.encoder_z = mlp(12, 16, 3), mlp(15, 16, 4)
        self.decoder = mlp(5, 16, 12)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            zeros, ones = xs.new_zeros(len(xs), 2), xs.new_ones(len(xs), 2)
            zs = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            alpha = xs.new_ones(len(xs), 3) / 3.0
            ys = pyro.sample("y", dist.OneHotCategorical(alpha), obs=ys)
            loc = self.decoder(torch.cat(_both(zs, ys), -1)).sigmoid()
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                alpha = self.encoder_y(xs).softmax(-1)
                ys = pyro.sample(
                    "y", dist.OneHotCategorical(alpha), infer={"enumerate": "parallel"}
                )
            loc, scale = self.encoder_z(torch.cat(_both(xs, ys), -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def _both(a, b):
    """Two tensors with one batch shape, as Pyro's ``broadcast_shape`` helpers make them."""
    shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return a.expand(*shape, a.shape[-1]), b.expand(*shape, b.shape[-1])


class DeepMarkov(nn.Module):
    """Sequences of unequal length: masks, a site for each step, a guide that looks back."""

    def __init__(self, steps=3):
        super().__init__()
        self.steps = steps
        self.emitter, self.trans = mlp(2, 8, 4), mlp(2, 8, 4)
        self.rnn = nn.RNN(4, 6, batch_first=True)
        self.combiner = mlp(8, 8, 4)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def model(self, mini_batch, mini_batch_mask, annealing_factor=1.0):
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(len(mini_batch), 2)
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in range(1, self.steps + 1):
                loc, scale = self.trans(z_prev).chunk(2, -1)
                with poutine.scale(None, annealing_factor):
                    z_t = pyro.sample(
                        f"z_{t}",
                        dist.Normal(loc, F.softplus(scale) + 0.1)
                        .mask(mini_batch_mask[:, t - 1 : t] > 0)
                        .to_event(1),
                    )
                pyro.sample(
                    f"obs_x_{t}",
                    dist.Bernoulli(logits=self.emitter(z_t))
                    .mask(mini_batch_mask[:, t - 1 : t] > 0)
                    .to_event(1),
                    obs=mini_batch[:, t - 1, :],
                )
                z_prev = z_t

    def guide(self, mini_batch, mini_batch_mask, annealing_factor=1.0):
        pyro.module("dmm", self)
        hidden, _ = self.rnn(mini_batch.flip(1))
        hidden = hidden.flip(1)
        z_prev = self.z_q_0.expand(len(mini_batch), 2)
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in range(1, self.steps + 1):
                loc, scale = self.combiner(torch.cat([z_prev, hidden[:, t - 1]], -1)).chunk(2, -1)
                with poutine.scale(None, annealing_factor):
                    z_prev = pyro.sample(
                        f"z_{t}",
                        dist.Normal(loc, F.softplus(scale) + 0.1)
                        .mask(mini_batch_mask[:, t - 1 : t] > 0)
                        .to_event(1),
                    )


class AmortizedLDA(nn.Module):
    """Documents of words; the topic of a word is summed out, the topics are global."""

    def __init__(self, vocabulary=8, topics=3, words=5):
        super().__init__()
        self.sizes = vocabulary, topics, words
        self.net = mlp(vocabulary, 16, topics)
        self.topic_words = nn.Parameter(torch.randn(topics, vocabulary))

    def model(self, data):
        vocabulary, topics, words = self.sizes
        with pyro.plate("topics", topics):
            topic_words = pyro.sample(
                "topic_words", dist.Dirichlet(torch.ones_like(self.topic_words[0]))
            )
        with pyro.plate("documents", 400, subsample_size=len(data), dim=-1):
            doc_topics = pyro.sample(
                "doc_topics", dist.Dirichlet(self.topic_words.new_full((topics,), 0.7))
            )
            with pyro.plate("words", words, dim=-2):
                word_topics = pyro.sample(
                    "word_topics",
                    dist.Categorical(doc_topics),
                    infer={"enumerate": "parallel"},
                )
                pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data.T)

    def guide(self, data):
        vocabulary, topics, _ = self.sizes
        with pyro.plate("topics", topics):
            pyro.sample("topic_words", dist.Dirichlet(F.softplus(self.topic_words) + 0.5))
        counts = F.one_hot(data, vocabulary).to(self.topic_words).sum(1)
        with pyro.plate("documents", 400, subsample_size=len(data), dim=-1):
            pyro.sample("doc_topics", dist.Dirichlet(F.softplus(self.net(counts)) + 0.5))


class ProdLDA(nn.Module):
    """Counts of words under a logistic normal of topics, with batch normalization in both nets."""

    def __init__(self, vocabulary=8, topics=3):
        super().__init__()
        self.topics = topics
        self.encoder = nn.Sequential(nn.Linear(vocabulary, 16), nn.Softplus())
        self.heads = nn.ModuleList([nn.Linear(16, topics), nn.Linear(16, topics)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(topics, affine=False) for _ in range(2)])
        self.beta = nn.Linear(topics, vocabulary, bias=False)
        self.bn = nn.BatchNorm1d(vocabulary, affine=False)
        self.drop = nn.Dropout(0.2)

    def model(self, docs):
        pyro.module("decoder", self.beta)
        with pyro.plate("documents", docs.shape[0]):
            loc = docs.new_zeros((docs.shape[0], self.topics))
            logtheta = pyro.sample("logtheta", dist.Normal(loc, 1.0).to_event(1))
            theta = F.softmax(logtheta, -1)
            count_param = F.softmax(self.bn(self.beta(self.drop(theta))), dim=1)
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, count_param), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            hidden = self.encoder(docs)
            loc, log_var = (n(h(hidden)) for n, h in zip(self.norms, self.heads, strict=True))
            pyro.sample("logtheta", dist.Normal(loc, (0.5 * log_var).exp()).to_event(1))


class FlowPrior(nn.Module):
    """A prior that is a trained flow, in a plate called "batch"."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(5, 16, 4), mlp(2, 16, 5)
        self.flows = nn.ModuleList(
            [dist.transforms.affine_coupling(2, hidden_dims=[8]) for _ in range(2)]
        )

    def model(self, x):
        base = dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.TransformedDistribution(base, list(self.flows)))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("batch", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class MixtureVAE(nn.Module):
    """A Gaussian mixture in latent space, whose index the guide does not have."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(5, 16, 4), mlp(2, 16, 5)
        self.means = nn.Parameter(torch.randn(3, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            weights = x.new_ones(3) / 3
            c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.means[c], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class CausalEffect(nn.Module):
    """Proxies, a treatment and an outcome of one hidden confounder: three observations."""

    def __init__(self):
        super().__init__()
        self.x_nn, self.t_nn = mlp(2, 16, 8), mlp(2, 8, 1)
        self.y0_nn, self.y1_nn = mlp(2, 8, 2), mlp(2, 8, 2)
        self.z_nn = mlp(6, 16, 4)

    def model(self, x, t=None, y=None, size=None):
        with pyro.plate("data", size or x.size(0), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc, scale = self.x_nn(z).chunk(2, -1)
            x = pyro.sample("x", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.t_nn(z).squeeze(-1)), obs=t)
            params0, params1 = self.y0_nn(z), self.y1_nn(z)
            loc, scale = torch.where(t.bool().unsqueeze(-1), params1, params0).unbind(-1)
            pyro.sample("y", dist.Normal(loc, F.softplus(scale) + 0.1), obs=y)

    def guide(self, x, t=None, y=None, size=None):
        with pyro.plate("data", size or x.size(0), subsample=x):
            seen = torch.cat([x, t.unsqueeze(-1), y.unsqueeze(-1)], -1)
            loc, scale = self.z_nn(seen).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1))


class AttendInferRepeat(nn.Module):
    """Two objects that are there or not: Bernoulli switches, and what hangs on them masked."""

    def __init__(self):
        super().__init__()
        self.decode, self.predict = mlp(2, 16, 6), mlp(6, 16, 10)

    def model(self, data):
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0), device=data.device):
            image, present = torch.zeros_like(data), data.new_ones(len(data))
            for t in range(2):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * present))
                what = pyro.sample(
                    f"z_what_{t}", dist.Normal(data.new_zeros(len(data), 2), 1.0).to_event(1)
                )
                image = image + present.unsqueeze(-1) * self.decode(what)
            pyro.sample("obs", dist.Normal(image, 0.5).to_event(1), obs=data)

    def guide(self, data):
        pyro.module("predict", self.predict)
        with pyro.plate("data", data.size(0), device=data.device):
            params, present = self.predict(data), data.new_ones(len(data))
            for t in range(2):
                probs = params[:, t].sigmoid() * present
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(probs))
                loc, scale = params[:, 2 + 4 * t : 6 + 4 * t].chunk(2, -1)
                pyro.sample(f"z_what_{t}", dist.Normal(loc, scale.exp()).to_event(1))


class SingleCell(nn.Module):
    """Counts of genes with a library size for each cell: a log-normal and a normal latent."""

    def __init__(self, genes=6):
        super().__init__()
        self.z_net, self.l_net, self.decoder = (
            mlp(genes, 16, 4),
            mlp(genes, 8, 2),
            mlp(2, 16, genes),
        )
        self.theta = nn.Parameter(torch.zeros(genes))

    def model(self, x):
        pyro.module("scvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1.0):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            library = pyro.sample("l", dist.LogNormal(x.new_tensor(3.0), x.new_tensor(0.5)))
            mu = library.unsqueeze(-1) * self.decoder(z).softmax(-1)
            theta = F.softplus(self.theta) + 0.1
            law = dist.NegativeBinomial(total_count=theta, logits=(mu + 1e-6).log() - theta.log())
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(self, x):
        pyro.module("scvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1.0):
            logs = (1 + x).log()
            loc, scale = self.z_net(logs).chunk(2, -1)
            l_loc, l_scale = self.l_net(logs).unbind(-1)
            pyro.sample("l", dist.LogNormal(l_loc, F.softplus(l_scale) + 0.05))
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.05).to_event(1))


class ImageToSpectrum(nn.Module):
    """An image is encoded, a spectrum is observed: the guide never sees what the model scores."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
        self.decoder = mlp(2, 16, 7)

    def model(self, images, spectra):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(images.new_zeros(len(images), 2), 1.0).to_event(1))
            pyro.sample("spectrum", dist.Normal(self.decoder(z), 0.3).to_event(1), obs=spectra)

    def guide(self, images, spectra):
        with pyro.plate("data"):
            loc, scale = self.conv(images).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.05).to_event(1))


class RotatedVAE(nn.Module):
    """A spatial transformer: an angle turns the grid on which the image is decoded."""

    def __init__(self, side=4):
        super().__init__()
        self.side = side
        axis = torch.linspace(-1, 1, side)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        self.register_buffer("grid", grid)
        self.encoder = mlp(side * side, 16, 6)
        self.coordinates, self.latents, self.out = nn.Linear(2, 8), nn.Linear(2, 8), nn.Linear(8, 1)

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            phi, content = z[:, :1], z[:, 1:]
            turn = torch.stack([phi.cos(), phi.sin(), -phi.sin(), phi.cos()], -1).view(-1, 2, 2)
            h = self.coordinates(self.grid @ turn) + self.latents(content).unsqueeze(1)
            image = self.out(h.tanh()).squeeze(-1)
            pyro.sample("obs", dist.Bernoulli(logits=image).to_event(1), obs=x.view(len(x), -1))

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x.view(len(x), -1)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, F.softplus(scale) + 0.05).to_event(1))


class RandomWeights(PyroModule):
    """A regression whose weights are ``PyroSample``s, shared by all data."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 3.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)
        return mean


class JointVAE(nn.Module):
    """Continuous and discrete codes side by side, the class summed out, no size in the plate."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(12, 16, 7), mlp(5, 16, 12)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data"):
            z = pyro.sample("latent_cont", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            alpha = x.new_ones(len(x), 3) / 3
            y = pyro.sample("latent_disc", dist.OneHotCategorical(alpha))
            logits = self.decoder(torch.cat(_both(z, y), -1))
            law = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
            pyro.sample("obs", law, obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data"):
            loc, scale, alpha = self.encoder(x).split([2, 2, 3], -1)
            law = dist.Normal(loc, F.softplus(scale) + 0.05).to_event(1)
            pyro.sample("latent_cont", law)
            law = dist.OneHotCategorical(alpha.softmax(-1))
            pyro.sample("latent_disc", law, infer={"enumerate": "parallel"})


# --- what they are wrapped as, and trained on -----------------------------------------------------


def bits(n, dim, seed=0):
    chance = torch.rand(dim, generator=torch.Generator().manual_seed(seed))
    return torch.bernoulli(chance.expand(n, dim), generator=torch.Generator().manual_seed(seed + 1))


def real(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.randn(2, dim, generator=generator)


def classes(n):
    return F.one_hot(torch.arange(n) % 3, 3).float()


def counts(n, dim, high):
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(5, high, (n, 1), generator=generator)
    return torch.poisson(sizes * torch.rand(n, dim, generator=generator) / dim, generator=generator)


def sequences(n):
    lengths = 1 + torch.arange(n) % 3
    mask = (torch.arange(3) < lengths.unsqueeze(-1)).float()
    return {"mini_batch": bits(n, 12).view(n, 3, 4) * mask.unsqueeze(-1), "mini_batch_mask": mask}


def causal(n):
    x, t = real(n, 4), bits(n, 1, 5).squeeze(-1)
    return {"x": x, "t": t, "y": x[:, 0] + t}


@dataclass(frozen=True)
class Foreign:
    """One program: how it is built, on what, and by which of Pyro's objectives its authors train.

    Attributes:
        module: makes the author's own module.
        data: (number of rows) -> what ``pv.fit`` is given.
        elbo: Pyro's objective, and its arguments.
        captured: whether a step of it is a graph.
        per_datum: whether there is a log p(x) of a datum: no latent is shared.
        in_parts: whether it takes minibatches: plates of shared latents count those rows alone.
        mistake: the one thing that ``check`` rightly says of it.
    """

    module: Any
    data: Any
    elbo: tuple[Any, dict[str, Any]] = (Trace_ELBO, {})
    captured: bool = True
    per_datum: bool = True
    in_parts: bool = True
    mistake: str = ""


def summed(nesting=1):
    return TraceEnum_ELBO, {"max_plate_nesting": nesting}


PROGRAMS = {
    "tutorial VAE": Foreign(TutorialVAE, lambda n: bits(n, 12)),
    "conditional VAE": Foreign(
        ConditionalVAE, lambda n: {"xs": bits(n, 6), "ys": bits(n, 6, 2)},
        mistake='parameter "wrapped.baseline.0.weight": no gradient',
    ),
    "semi-supervised, unlabelled": Foreign(SemiSupervised, lambda n: {"xs": bits(n, 12)}, summed()),
    "semi-supervised, labelled": Foreign(
        SemiSupervised, lambda n: {"xs": bits(n, 12), "ys": classes(n)},
        mistake='parameter "wrapped.encoder_y.0.weight": no gradient',
    ),
    "deep Markov model": Foreign(DeepMarkov, sequences),
    "amortized LDA": Foreign(
        AmortizedLDA, lambda n: torch.arange(5 * n).view(n, 5).pow(2) % 8, summed(2),
        per_datum=False,
    ),
    "ProdLDA": Foreign(ProdLDA, lambda n: counts(n, 8, 30), captured=False),
    "flow prior": Foreign(FlowPrior, lambda n: real(n, 5)),
    "GM-VAE": Foreign(MixtureVAE, lambda n: real(n, 5), summed()),
    "causal effect VAE": Foreign(CausalEffect, causal),
    "attend, infer, repeat": Foreign(AttendInferRepeat, lambda n: real(n, 6)),
    "single cell": Foreign(SingleCell, lambda n: counts(n, 6, 60)),
    "image to spectrum": Foreign(
        ImageToSpectrum, lambda n: {"images": bits(n, 16).view(n, 1, 4, 4), "spectra": real(n, 7)}
    ),
    "spatial transformer": Foreign(RotatedVAE, lambda n: bits(n, 16).view(n, 4, 4)),
    "random weights": Foreign(
        RandomWeights, lambda n: {"x": real(n, 2), "y": real(n, 1).squeeze(-1)}, per_datum=False,
        in_parts=False,
    ),
    "joint VAE": Foreign(JointVAE, lambda n: bits(n, 12), summed()),
}  # fmt: skip
