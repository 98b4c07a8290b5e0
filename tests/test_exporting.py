"""Exported encoders and decoders: the program's numbers at any number of rows, in torch alone."""

import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bayesian_vae, hierarchical_vae

X = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
BITS, COUNTS = X.round(), (4 * X).floor()
SIZES = {"latent_dim": 2, "hidden_dim": 4}
L = pv.likelihoods


class Own(pv.Program):
    """A user's, with ``len(x)`` in its plates."""

    def __init__(self, law=dist.Normal):
        super().__init__()
        self.encoder, self.decoder, self.law = nn.Linear(6, 4), nn.Linear(2, 6), law

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", self.law(mean, scale.exp()).to_event(1))


class OnItself(Own):
    """Each number of x depends on the one before."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decoder(z) + x.roll(1, -1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


class Branching(Own):
    def guide(self, x):
        if x.sum() > 0:
            super().guide(x)


def built(data, **options):
    torch.manual_seed(0)
    return pv.VAE.build(data, **SIZES, **options), data


SIZED = L.Gaussian(sigmoid_mean=False), [0, 1, 2]
MIXED = {"likelihood": L.Columns({"sizes": SIZED, "kind": (L.Categorical(), [3, 4, 5])})}
FULL = {"likelihood": L.NegativeBinomial(), "posterior": pv.posteriors.FullNormal()}
FLOW = {"likelihood": L.Laplace(), "posterior": pv.posteriors.AutoregressiveFlow()}
GAPS = torch.where(X < 0.2, torch.nan, X)
GIVEN = {"x": BITS, "y": X[:, :2]}
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).round()
CASES = {
    "bernoulli": lambda: built(BITS),
    "counts": lambda: built(COUNTS, **FULL),
    "heavy tails": lambda: built(X, likelihood=L.StudentT()),
    "categories": lambda: built(COUNTS, likelihood=L.Categorical()),
    "mixed columns": lambda: built(torch.cat([X[:, :3], COUNTS[:, 3:]], 1), **MIXED),
    "missing": lambda: built(GAPS, likelihood=L.Gaussian(sigmoid_mean=False), missing=True),
    "covariates": lambda: built(GIVEN),
    "convolutional": lambda: built(IMAGES, network=pv.networks.Convolutional(channels=(2, 4))),
    "shared weights": lambda: (bayesian_vae.build(6, num_data=12, **SIZES), BITS),
    "a user's": lambda: (Own(), BITS),
}  # fmt: skip


def some(x, count):
    return {n: t[:count] for n, t in x.items()} if isinstance(x, dict) else x[:count]


QUICK = ("bernoulli", "missing", "covariates", "a user's")


@pytest.mark.parametrize(
    "make",
    [pytest.param(m, marks=() if n in QUICK else pytest.mark.slow) for n, m in CASES.items()],
    ids=CASES,
)
def test_the_graphs_have_the_numbers_of_the_program(make):
    program, x = make()
    graphs = pv.export(program, x)
    encoder, decoder = graphs.encoder.module(), graphs.decoder.module()
    for count in (1, 4, len(BITS)):
        rows = some(x, count)
        mean, sd = encoder(rows)
        torch.testing.assert_close(mean, pv.encode(program, rows))
        assert sd.shape == mean.shape and (sd > 0).all()
        given = ({"y": rows["y"]},) if isinstance(x, dict) else ()
        found = decoder(2 * mean, *given)
        expected = pv.decode(program, 2 * mean, like=rows)
        torch.testing.assert_close(found, expected)
    drawn = pv.summarize(program, some(x, 3), num_draws=4000, progress=False)["z"]
    expected = torch.as_tensor(drawn.sel(metric="sd").values).float()
    torch.testing.assert_close(encoder(some(x, 3))[1], expected, rtol=0.06, atol=1e-3)


@pytest.mark.slow  # torch is loaded anew
def test_files_are_read_by_torch_alone(tmp_path):
    program, x = built(BITS)
    folder = pv.export(program, x).save(tmp_path / "model")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; e, d = (torch.export.load(f'model/{n}.pt2').module() for n in "
        "('encoder', 'decoder')); mean, sd = e(torch.load('x.pt')); "
        "torch.save((mean, sd, d(mean)), 'found.pt'); "
        "assert not {'pyro', 'pyro_vae'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    mean, _, back = torch.load(tmp_path / "found.pt")
    assert sorted(p.name for p in folder.iterdir()) == ["decoder.pt2", "encoder.pt2"]
    torch.testing.assert_close(mean, pv.encode(program, x))
    torch.testing.assert_close(back, pv.reconstruct(program, x))


class Discrete(pv.Program):
    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            law = dist.Normal(k.float().unsqueeze(-1), 1.0).expand([len(x), 6])
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=x[:, :3]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: (Discrete(), X), '"k" is discrete'),
        (lambda: built(X, **FLOW), "has no mean"),
        (lambda: (Own(dist.Cauchy), BITS), "has no mean"),
        (lambda: (OnItself(), X), "depends on x itself"),
        (lambda: (Branching(), BITS), "without control flow"),
        (lambda: (hierarchical_vae.build(6), BITS), "torch.cat and convolutions"),
        (lambda: (Own(), BITS[:1]), "at least 2"),
    ],
    ids=["discrete", "flow", "no mean", "on itself", "branches", "fixes the rows", "one row"],
)  # fmt: skip
def test_what_has_no_such_graph_is_refused_in_words(make, said):
    program, x = make()
    with pytest.raises(ValueError, match=said):
        pv.export(program, x)
