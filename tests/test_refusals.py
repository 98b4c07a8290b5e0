"""What would otherwise be a wrong number without any error: refused, with the next step."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.chains.latents import Latents
from pyro_vae.densities.particles import densities
from pyro_vae.models import bernoulli_vae, linear_gaussian
from pyro_vae.noise import NoiseMode, Stream, keyed
from pyro_vae.objectives import AEVB


def adam():
    return torch.optim.Adam([torch.zeros(1)])


def exponential():
    return torch.optim.lr_scheduler.ExponentialLR(adam(), gamma=0.9)


def small_vae():
    return bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, init_std=None)


def rows(n=30):
    return (torch.rand(n, 6) < 0.4).float()


def calls(x):
    """Every way in which data are scored."""
    return {
        "fit": lambda vae: pv.fit(vae, x, steps=1),
        "validation": lambda vae: pv.fit(vae, rows(), steps=1, validation=x),
        "elbo": lambda vae: pv.elbo(vae, x),
        "log_evidence": lambda vae: pv.log_evidence(vae, x, num_particles=30),
        "arviz": lambda vae: pv.to_inference_data(vae, x, num_draws=10),
    }


@pytest.mark.parametrize("call", calls(None))
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x.mul_(255), "scale="),
        (lambda x: x.mul_(0.5), "soft_targets=True"),
        (lambda x: x[25].fill_(30.0), "expected 0 or 1"),
        (lambda x: x[25, 3].fill_(float("nan")), "not finite in row 25"),
    ],
    ids=["bytes", "grey", "a late row", "nan"],
)
def test_data_that_the_likelihood_gives_no_density_to(call, spoil, said):
    """T15: a Bernoulli scores 255 without complaint, and the more the better."""
    x = rows()
    spoil(x)
    with pytest.raises(ValueError, match=said):
        calls(x)[call](small_vae())


class Sites(pv.Program):
    """A Gaussian program whose plates are what a test makes of them."""

    def __init__(self, model, guide):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.body, self.other = model, guide

    def model(self, x):
        self.body(x)

    def guide(self, x):
        self.other(self, x)


def proper_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 6]).to_event(1), obs=x)


def proper_guide(program, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(program.loc, 1.0))


def guide_of_two(program, x, **infer):
    """One more latent than the model has, which the bound would reward for its entropy."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(program.loc.expand(len(x)), 9.0), infer=infer)
        pyro.sample("z", dist.Normal(0 * a, 1.0))


def guide_of_two_marked(program, x):
    guide_of_two(program, x, is_auxiliary=True)


def guide_of_two_places(program, x):
    """The points belong to data, what is drawn to all of them."""
    a = pyro.sample("a", dist.Normal(program.loc, 9.0), infer={"is_auxiliary": True})
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(a.expand(len(x))))


def guide_without_plate(program, x):
    pyro.sample("z", dist.Normal(program.loc.expand(len(x)), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide", "said"),
    [
        (proper_model, guide_without_plate, "in the model alone"),
        (proper_model, lambda program, x: None, "in the model and not in the guide"),
        (proper_model, guide_of_two, "in the guide and not in the model"),
        (proper_model, guide_of_two_marked, "in the guide and not in the model"),
        (proper_model, guide_of_two_places, "in the guide and not in the model"),
    ],
    ids=[
        "guide without plate", "latent missing", "latent invented", "called auxiliary",
        "auxiliary elsewhere",
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["fit", "elbo", "log_evidence", "arviz"])
def test_sites_outside_the_plate_or_missing(model, guide, said, call):
    """Each gave bounds that were wrong by nats, and nothing said so."""
    with pytest.raises(ValueError, match=said):
        calls(torch.randn(20, 6))[call](Sites(model, guide))


def test_a_point_guide_has_no_evidence():
    """All weights are equal, so error 0 and khat 0 would call log p(x, z*) exact."""

    def point(program, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(program.loc.expand(len(x))))

    for score in (pv.log_evidence, pv.to_inference_data):
        with pytest.raises(ValueError, match=r'use pv\.log_evidence with proposal="hmc"'):
            score(Sites(proper_model, point), torch.randn(5, 6))


SCORES = {
    "elbo": pv.elbo,
    "log_evidence": lambda program, x: pv.log_evidence(program, x, num_particles=100),
    "arviz": lambda program, x: pv.to_inference_data(program, x, num_draws=10, predictive=False),
}


@pytest.mark.filterwarnings("ignore:khat exceeds")
@pytest.mark.parametrize("score", SCORES)
def test_impossible_parameters_are_no_silent_nan(score):
    """Validation is off where rows are scored; a scale of -1 gave nan, and no word."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = 1 - 2 * x[:, :1]  # negative where x is 1
            law = dist.Normal(z.unsqueeze(-1).expand(-1, 6), scale, validate_args=False)
            pyro.sample("x", law.to_event(1), obs=x)

    program, x = Sites(model, proper_guide), torch.zeros(80, 6)
    assert SCORES[score](program, x) is not None
    x[75] = 1.0  # beyond the rows that are looked at beforehand
    with pytest.raises(ValueError, match=r"not a number for 1 of 80 data \(row 75\)"):
        SCORES[score](program, x)
    with pytest.raises(ValueError, match='"x" of the model: scale of Normal from -1 to 1'):
        SCORES[score](program, x[60:])


def test_a_global_latent_needs_the_plate_to_say_n():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0).expand([len(x), 6]).to_event(1), obs=x)

    def guide(program, x):
        pyro.sample("m", dist.Normal(program.loc, 1.0))

    program, x = Sites(model, guide), torch.randn(30, 6)
    assert pv.elbo(program, x, batch_size=30).shape == (30,)
    with pytest.raises(ValueError, match="subsample_size"):
        pv.elbo(program, x, batch_size=10)


def test_evaluation_is_the_same_twice_under_dropout():
    vae = small_vae()
    vae.posterior.network.append(nn.Dropout(0.9))
    x = rows()
    assert torch.equal(pv.encode(vae, x, seed=0), pv.encode(vae, x, seed=1))
    assert vae.training and vae.posterior.network[-1].training


def test_a_step_and_its_refresh_have_noise_of_their_own():
    from pyro_vae.objectives import Objective, State

    class Both(Objective):
        refresh_every = 1

        def init(self, program, x):
            return State({"r": torch.randn(len(x))}, {})

        def refresh(self, program, x, state):
            return {"r": torch.randn(len(x))}, {}

        def terms(self, program, x, state):
            loss, stats = AEVB("A").terms(program, x, state)
            return loss, {**stats, "gap": (torch.randn(len(x)) - state.rows["r"]).abs()}

    before = torch.get_rng_state()
    vae = small_vae()
    torch.set_rng_state(before)
    run = pv.fit(vae, rows(), Both(), steps=3)
    assert float(run.history.gap.min()) > 0.1
    other = pv.fit(small_vae(), rows(), Both(), steps=1, seed=0)
    again = pv.fit(small_vae(), rows(), Both(), steps=1, seed=0)
    assert torch.equal(other.state.rows["r"], again.state.rows["r"])


def test_the_weight_prior_of_a_subsampled_plate_does_not_depend_on_the_batch():
    """The likelihood of a short batch stands for all N, and so does the prior."""

    class Flat(pv.Program):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1))

        def model(self, x):
            with pyro.plate("data", 5, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(0.0 * self.weight[0, 0], 1.0))
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", 5, subsample_size=len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    program, seen = Flat(), []
    pv.fit(
        program, torch.randn(5, 1), steps=2, batch_size=4, lr=0.1, weight_prior=1.0,
        optimizer=torch.optim.SGD,
        callbacks=[lambda record: seen.append(float(record.program.weight.detach()))],
    )  # fmt: skip
    assert seen == pytest.approx([0.9, 0.81])


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("net",), {}, "subclass pv.Program"),
        (("class",), {}, "pass an instance"),
        (("vae",), {"lr": "0.1"}, "lr is '0.1'"),
        (("vae",), {"seed": 1.5}, "seed is 1.5"),
        (("vae",), {"batch_size": None}, "batch_size is None"),
        (("vae",), {"optimizer": "adam"}, "optimizer is 'adam', expected a class"),
        (("vae",), {"optimizer": adam()}, "optimizer is an instance of Adam, expected a class"),
        (("vae",), {"optimizer": pyro.optim.Adam({"lr": 0.1})}, "PyroOptim.*, expected a class"),
        (("vae",), {"schedule": exponential()}, "ExponentialLR.*, expected a callable"),
        (("vae",), {"callbacks": print}, r"callbacks=\[function\]"),
        (("vae",), {"callbacks": [print, 3]}, r"callbacks is \[.*3\], expected a list"),
        (("vae",), {"callbacks": "print"}, "callbacks is 'print'"),
        (("vae",), {"validation": "test"}, r"validation is 'test', .* data\.validation"),
        (("vae",), {"dtype": "float64"}, r"dtype is 'float64', .* torch\.float64"),
    ],
)
def test_wrong_arguments_of_fit(arguments, options, said):
    program = {"net": nn.Linear(2, 2), "class": pv.VAE, "vae": small_vae()}[arguments[0]]
    with pytest.raises((TypeError, ValueError), match=said):
        pv.fit(program, rows(), steps=1, **options)


def test_a_run_or_a_whole_data_set_in_the_wrong_place():
    run = pv.fit(small_vae(), rows(), steps=1)
    with pytest.raises(TypeError, match=r"run\.program"):
        pv.log_evidence(run, rows())
    with pytest.raises(TypeError, match=r"pass data\.train"):
        pv.fit(small_vae(), pv.datasets.load("digits"), steps=1)
    with pytest.raises(TypeError, match=r"pass data.rows\(\)"):
        data = pv.datasets.load("digits").train
        AEVB().differentiable_loss(small_vae().model, small_vae().guide, data)


def test_rows_of_the_wrong_width_name_their_shape():
    with pytest.raises(ValueError, match=r"shape \(30, 5\), expected 6 numbers .* model for 5"):
        pv.fit(small_vae(), rows()[:, :5], steps=1)


@pytest.mark.parametrize("call", [*calls(None), "check", "encode"])
def test_images_that_are_not_flattened_are_refused_with_the_way(call):
    images = rows().reshape(30, 2, 3)
    more = {"check": lambda vae: pv.check(vae, images), "encode": lambda v: pv.encode(v, images)}
    with pytest.raises(ValueError, match=r"2, 3\), expected \(?6.* x\.reshape\(len\(x\), -1\)"):
        {**calls(images), **more}[call](small_vae())


@pytest.mark.parametrize(
    "call", [*calls(None), "check", "wake-sleep", "encode", "reconstruct", "sample", "arviz",
             "hmc", "from the guide"],
)  # fmt: skip
def test_errors_of_a_program_come_without_pyros_table_of_shapes(call):
    """Under Pyro's ``get_trace`` each of them ended with the shapes of all parameters and sites."""

    def broken(x):
        proper_model(x)
        raise ValueError("the trouble")

    x = rows()
    more = {
        "check": lambda program: pv.check(program, x),
        "wake-sleep": lambda program: pv.fit(program, x, pv.objectives.WakeSleep(), steps=1),
        "encode": lambda program: pv.encode(program, x),
        "reconstruct": lambda program: pv.reconstruct(program, x),
        "sample": lambda program: pv.sample(program, 3, like=x),
        "arviz": lambda program: pv.to_inference_data(program, x),
        "hmc": lambda program: Latents.of(program, x),
        "from the guide": lambda program: latents.from_guide(program, x),
    }
    latents = Latents.of(Sites(proper_model, proper_guide), x)
    model, guide = broken, proper_guide
    if call in ("encode", "from the guide"):
        model, guide = proper_model, lambda program, x: broken(x)
    with pytest.raises(ValueError, match="the trouble") as caught:
        {**calls(x), **more}[call](Sites(model, guide))
    assert "Trace Shapes" not in str(caught.value)
    assert "traceback" not in str(caught.value)


def test_arrays_that_run_backwards_train():
    pv.fit(small_vae(), rows().numpy()[::-1], steps=1)
    pv.fit(small_vae(), rows().numpy().astype(">f4"), steps=1)
    pv.fit(small_vae(), rows().numpy().astype(np.uint8), steps=1)


def test_khat_of_rounding_ties_and_empty_weights():
    """Rounding of float32 is no tail; ties and zero weights leave the fit to what is there."""
    from pyro_vae.evidence.weights import pareto_khat

    exact = torch.full((1000, 4), -300.0) + 1e-5 * torch.randn(1000, 4)
    assert (pareto_khat(exact.float()) == 0).all()
    normal = torch.randn(2000, 1, dtype=torch.float64)
    mostly_zero = normal.clone()
    mostly_zero[:1900] = -float("inf")
    assert float(pareto_khat(mostly_zero)) < 1.0
    two_values = torch.where(normal > 0, 0.0, -5.0)
    assert float(pareto_khat(two_values)) == 0.0


def test_an_autoguide_is_refused_with_the_reason():
    from pyro.infer.autoguide import AutoNormal

    decoder = nn.Linear(2, 6)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    program = pv.Program(model, AutoNormal(model), decoder=decoder)
    with pytest.raises(TypeError, match='parameters for every row of the latent "z"'):
        pv.fit(program, (torch.rand(9, 6) < 0.4).float(), steps=1, progress=False)


def test_a_delta_with_a_density_of_its_own_is_sampled_not_closed():
    """torch's KL from a Delta forgets log_density: estimators A and B must agree on it."""

    def pushed(program, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(program.loc, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u))

    program, x = Sites(proper_model, pushed), torch.randn(50, 6).double()
    program.double()
    sampled = pv.elbo(program, x, num_particles=1, seed=3)
    with NoiseMode(keyed(*Stream.BOUND.key(3, 0))), torch.no_grad():
        d = densities(program, x)
    torch.testing.assert_close(sampled, d.log_w[0])


def test_an_auxiliary_draw_whose_image_is_the_latent_changes_nothing():
    """An AutoGuide's form, of a global latent beside one of each datum: the same log weights."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            mean = z.unsqueeze(-1).expand(-1, 6)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def plain(program, x):
        pyro.sample("m", dist.Normal(2 * program.loc, 2.0))
        proper_guide(program, x)

    def pushed(program, x):
        u = pyro.sample("u", dist.Normal(program.loc, 1.0), infer={"is_auxiliary": True})
        pyro.sample("m", dist.Delta(2 * u, log_density=-torch.tensor(2.0).log()))
        proper_guide(program, x)

    x, found = torch.randn(8, 6).double(), []
    for guide in (plain, pushed):
        with NoiseMode(keyed(5)), torch.no_grad():
            d = densities(Sites(model, guide).double(), x)
        found.append((d.log_w, d.global_log_p - d.global_log_q))
    torch.testing.assert_close(found[0], found[1])


def test_linear_gaussian_evidence_in_float32_is_not_called_bad():
    """Exact guide, 200 dimensions: the weights differ by rounding alone."""
    torch.manual_seed(0)
    program = linear_gaussian.build(200, posterior="full")
    program.guide_is_exact_posterior()
    evidence = pv.log_evidence(program, torch.randn(20, 200))
    assert float(evidence.khat.max()) < 0.7


def test_validation_of_another_width_is_refused_before_training():
    """It would fail in the middle of the run, inside a matrix product."""
    program = linear_gaussian.build(3, latent_dim=2)
    with pytest.raises(ValueError, match=r"a row of validation is \(2,\), expected \(3,\)"):
        pv.fit(program, torch.randn(8, 3), steps=1, validation=torch.randn(8, 2))


def test_one_part_of_a_data_set_cannot_be_compared_on():
    """Half of what compare needs would be missing."""
    data = pv.datasets.load("digits")
    with pytest.raises(TypeError, match="data is Data, expected a DataSet"):
        pv.compare(data.train, builds={}, objectives=[])


@pytest.mark.parametrize("seed", [10**20, -(10**20)])
def test_a_seed_beyond_64_bits_is_refused(seed):
    """It enters a hash as 64 bits."""
    program = linear_gaussian.build(3, latent_dim=2)
    with pytest.raises(ValueError, match=r"seed is .*, expected a whole number below 2\*\*62"):
        pv.log_evidence(program, torch.randn(2, 3), num_particles=5, seed=seed)


@pytest.mark.parametrize("std", [-1.0, 0.0, float("nan")])
def test_an_impossible_initialization_is_refused_by_name(std):
    """torch's message does not know whose it is."""
    with pytest.raises(ValueError, match="init_std is"):
        bernoulli_vae.build(4, latent_dim=2, hidden_dim=3, init_std=std)
