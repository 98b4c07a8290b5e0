"""Programs in the idioms of public Pyro code: examples, tutorials and the libraries around them.

Each is written as its authors write theirs: plates of any name, several arguments, several
observations, modules announced by ``pyro.module``, discrete latents marked for enumeration.  None
knows this package; ``foreign_data.PROGRAMS`` says what data each takes.
"""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.nn import functional as F


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
        _, topics, words = self.sizes
        with pyro.plate("topics", topics):
            topic_words = pyro.sample(
                "topic_words", dist.Dirichlet(torch.ones_like(self.topic_words[0]))
            )
        with pyro.plate("documents", 40, subsample=data, dim=-1):
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
        with pyro.plate("documents", 40, subsample=data, dim=-1):
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
