"""The gradient laboratory: variance, signal and bias where they are known, and what it counts."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy.stats import kstest
from torch import nn

import pyro_vae as pv
from pyro_vae.densities.particles import densities
from pyro_vae.gradients import lab as laboratory
from pyro_vae.gradients.lab import BLOCKS
from pyro_vae.gradients.moments import chance, squared_length
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives import (
    AEVB,
    IWAE,
    Autoencoder,
    DReG,
    MonteCarloEM,
    Objective,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae.program.base import Program

from .oracles import LogisticRows, SubsampledRows

F64 = torch.float64
ONE = torch.ones(1, 1, dtype=F64)  # a batch of the one datum x = 1


class Gaussian(Program):
    """z ~ N(0, 1), x ~ N(z, 1); the posterior at x is N(x / 2, 1 / 2); q = N(mean, scale^2)."""

    def __init__(self, mean=0.5, scale=0.5**0.5):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=F64))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=F64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, self.log_scale.exp()))


def each(name):
    """Every parameter a group of its own."""
    return name


@pytest.fixture(scope="module", autouse=True)
def captured_once():
    """One capture for each objective and batch of a Gaussian, whose parameters are its arguments.

    A test that is about captures themselves has a subclass of its own.
    """
    made, gradient_source = {}, laboratory.gradient_source

    def source(program, objective, x, state):
        if type(program) is not Gaussian or not isinstance(objective, Objective):
            return gradient_source(program, objective, x, state)
        key = type(objective), repr(objective), x.shape
        if key not in made:
            made[key] = gradient_source(program, objective, x, state)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "gradient_source", source)
        yield


def lab(program, objectives, x=ONE, *, draws=2000, **options):
    return pv.gradient_report(program, x, objectives, num_draws=draws, progress=False, **options)


def cell(report, group, objective, column):
    return float(report.table().loc[(group, repr(objective)), column])


# --- against numbers known by hand ----------------------------------------------------------------


def test_fact_12_at_the_posterior_A_has_the_larger_variance_and_STL_none():
    r"""With z = m + s e and s^2 = 1/2 the gradients by m are A: 1 - 2 z, of variance 4 s^2 = 2;
    B: (x - z) - m, of variance s^2 = 1/2; STL: 1 - 2 z + (z - m) / s^2 = 0 for each draw."""
    a, b, stl = AEVB("A"), AEVB("B"), StickingTheLanding()
    report = lab(Gaussian(), [b, a, stl], groups=each)

    for objective, variance in ((a, 2.0), (b, 0.5)):
        measured = cell(report, "mean", objective, "variance")
        error = cell(report, "mean", objective, "variance ±")
        assert abs(measured - variance) < 4.5 * error
        # The variance of n normal draws has the standard error sqrt(2 / n), 25 blocks 14% of that.
        assert 0.5 < error / (variance * math.sqrt(2 / 2000)) < 1.5
        assert cell(report, "mean", objective, "norm") < 4 * math.sqrt(variance / 2000)
    assert cell(report, "mean", stl, "variance") < 1e-28


def test_signal_to_noise_is_the_ratio_by_hand():
    """At mean m the gradient by m is 1 - 2 m on average, and A's deviation is 2 s."""
    report = lab(Gaussian(mean=-1.0, scale=0.5), [AEVB("A")], groups=each, draws=4000)

    assert cell(report, "mean", AEVB("A"), "norm") == pytest.approx(3.0, abs=4.5 / 4000**0.5)
    measured = cell(report, "mean", AEVB("A"), "snr")
    error = cell(report, "mean", AEVB("A"), "snr ±")
    assert abs(measured - 3.0) < 4.5 * error
    # delta method, normal draws: (1 + snr^2 / 2) / n
    assert 0.5 < error / math.sqrt((1 + 4.5) / 4000) < 1.5


def test_bias_is_the_distance_by_hand():
    """An auto-encoder drops the KL term, whose gradient by m is m, and sets z to m."""
    plain = Autoencoder()
    report = lab(Gaussian(mean=0.3), [AEVB("A"), plain], groups=each)

    noise = math.sqrt(2.0 / 2000)  # of A's mean; the auto-encoder has none
    assert cell(report, "mean", plain, "bias") == pytest.approx(0.3, abs=4.5 * noise)
    assert cell(report, "mean", plain, "bias p") < 1e-6
    assert math.isnan(cell(report, "mean", AEVB("A"), "bias p"))  # the reference itself


def test_a_batch_averages_its_rows():
    many = ONE.expand(10, 1).clone()
    report = lab(Gaussian(), [AEVB("A")], many, groups=each)

    measured = cell(report, "mean", AEVB("A"), "variance")
    assert abs(measured - 0.2) < 4.5 * cell(report, "mean", AEVB("A"), "variance ±")


def test_draws_taken_together_are_those_taken_one_by_one(monkeypatch):
    kinds = [AEVB("A"), IWAE(3), WakeSleep()]
    x = torch.tensor([[0.3], [2.0]], dtype=F64)
    together = lab(Gaussian(mean=0.3), kinds, x, draws=75).dataset.drop_vars("seconds")
    monkeypatch.setattr(laboratory, "MOST_ENTRIES", 1)
    one_by_one = lab(Gaussian(mean=0.3), kinds, x, draws=75).dataset.drop_vars("seconds")

    for name, values in together.data_vars.items():
        np.testing.assert_allclose(values, one_by_one[name], rtol=1e-7, atol=1e-12)


def test_an_operation_that_cannot_be_batched_takes_draws_one_by_one(monkeypatch):
    def refuses(function):
        def run(*noise):
            raise RuntimeError("no batching rule")

        return run

    together = lab(Gaussian(), [AEVB("A")], draws=75).dataset.drop_vars("seconds")
    monkeypatch.setattr(torch, "vmap", refuses)
    one_by_one = lab(Gaussian(), [AEVB("A")], draws=75).dataset.drop_vars("seconds")

    np.testing.assert_allclose(together.variance, one_by_one.variance, rtol=1e-9)


def test_a_length_of_zero_says_what_would_have_gone_unnoticed():
    """At the posterior A's gradient by m is zero on average: sd 2 of 2000 draws hides some 0.03."""
    report = lab(Gaussian(), [AEVB("B"), AEVB("A")], groups=each)
    for column in ("snr", "bias"):
        measured, error = (cell(report, "mean", AEVB("A"), c) for c in (column, f"{column} ±"))
        assert measured < 0.1 and 0.005 < error < 0.2


def test_a_subsampled_plate_gives_the_gradient_per_datum():
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]], dtype=F64)
    # LogisticRows holds parameters of each row, so a batch is all there is.
    whole, part = LogisticRows(), SubsampledRows(50)
    part.load_state_dict(whole.state_dict())

    tables = [lab(program, [AEVB("A")], x, draws=50).table() for program in (whole, part)]

    for column in ("norm", "variance", "snr"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-9)


# --- the statistics -------------------------------------------------------------------------------


def blocks_of(rng, covariance_root, mean=0.0):
    noise = rng.normal(size=(BLOCKS, covariance_root.shape[0])) @ covariance_root.T
    return noise + mean


@pytest.mark.parametrize("kind", ["one parameter", "thirty", "two hundred that move together"])
def test_p_values_of_equal_means_are_uniform(kind):
    rng = np.random.default_rng(0)
    root = {
        "one parameter": np.eye(1),
        "thirty": np.diag(np.linspace(0.1, 1, 30)),
        "two hundred that move together": rng.normal(size=(200, 3)) @ rng.normal(size=(3, 200)),
    }[kind]
    p = []
    for _ in range(600):
        blocks = blocks_of(rng, root)
        p.append(chance(blocks @ blocks.T, len(root)))
    # The degrees of freedom are estimated from 25 blocks, so the match is close and not perfect.
    assert kstest(p, "uniform").statistic < 0.08
    assert np.mean(np.array(p) < 0.01) < 0.025


def test_a_difference_is_found_and_its_length_is_not_inflated_by_noise():
    """The plain length of the average, in 400 dimensions, is sqrt(0.05^2 + 400 / 25 0.05^2)."""
    rng = np.random.default_rng(1)
    mean = np.full(400, 0.05 / 20)
    lengths, naive = [], []
    for _ in range(200):
        blocks = blocks_of(rng, 0.05 * np.eye(400), mean)
        products = blocks @ blocks.T
        lengths.append(squared_length(products))
        naive.append(np.linalg.norm(blocks.mean(0)))
    error = np.std(lengths) / math.sqrt(200)
    assert abs(np.mean(lengths) - 0.05**2) < 4.5 * error
    assert np.mean(naive) > 0.2


class KLTooLarge(Objective):
    """A mutant of A: 1.05 times its KL term."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        return -(d.log_likelihood + 1.05 * (d.log_prior - d.log_q)).mean(0)


def test_unbiased_gradients_show_no_bias_and_a_mutant_does():
    program = Gaussian(mean=2.0, scale=0.3)
    unbiased = [AEVB("A"), StickingTheLanding(), ScoreFunction(4)]
    report = lab(program, [AEVB("B"), *unbiased, KLTooLarge()])

    for objective in unbiased:
        assert cell(report, "guide", objective, "bias p") > 1e-4
    assert cell(report, "guide", KLTooLarge(), "bias p") < 1e-6


# --- the questions that it answers ----------------------------------------------------------------


@pytest.mark.parametrize(("scale", "lower"), [(0.5**0.5, "B"), (0.1, "A")])
def test_whether_B_has_the_lower_variance_depends_on_the_program(scale, lower):
    r"""At m = x / 2 = 1/2, with z = m + s e, the gradients by log s are

    A: 1 + (x - 2 z) s e = 1 - 2 s^2 e^2, of variance 8 s^4;
    B: 1 - s^2 + (x - z) s e = 1 - s^2 + s e / 2 - s^2 e^2, of variance s^2 / 4 + 2 s^4;

    so A is the quieter one from s^2 < 1/24 on."""
    report = lab(Gaussian(mean=0.5, scale=scale), [AEVB("B"), AEVB("A")], groups=each)

    expected = {"A": 8 * scale**4, "B": scale**2 / 4 + 2 * scale**4}
    assert min(expected, key=expected.get) == lower
    for estimator, variance in expected.items():
        measured = cell(report, "log_scale", AEVB(estimator), "variance")
        error = cell(report, "log_scale", AEVB(estimator), "variance ±")
        assert abs(measured - variance) < 4.5 * error < 0.5 * variance


def test_the_guides_signal_falls_with_k_for_iwae_and_rises_for_dreg_where_the_guide_is_wider():
    """Rainforth et al. (2018): IWAE's falls as 1 / sqrt(K); Tucker et al. (2019): DReG's rises as
    sqrt(K).  From 16 to 64 that is a factor of two."""
    program = Gaussian(mean=1.5, scale=0.9)
    kinds = [IWAE(16), IWAE(64), DReG(16), DReG(64)]
    report = lab(program, kinds, groups=lambda name: "guide", draws=10_000)
    iwae, more_iwae, dreg, more_dreg = (cell(report, "guide", o, "snr") for o in kinds)

    assert 1.5 < iwae / more_iwae < 3.0
    assert 1.7 < more_dreg / dreg < 2.3
    assert cell(report, "guide", DReG(16), "bias p") > 1e-4  # against IWAE(16), its target


class Coin(Program):
    """c ~ Bernoulli(1/2), x | c ~ N(+-1, 1), with a guide of one logit a side of the line."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.place = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            pyro.sample(
                "x", dist.Normal((2 * c[..., None] - 1) * self.place, 1.0).to_event(1), obs=x
            )

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=self.gain * x[:, 0]))


def test_enumeration_is_an_exact_reference_for_discrete_latents():
    x = torch.tensor([[2.0], [-0.5], [1.0]], dtype=F64)
    exact = TraceEnum_ELBO(max_plate_nesting=1)
    kinds = [ScoreFunction(10), ReweightedWakeSleep(10)]
    report = lab(Coin(), kinds, x, draws=200, reference=exact)

    assert report.dataset.attrs["reference"] == "EnumeratedELBO()"
    for group in ("model", "guide"):
        assert cell(report, group, ScoreFunction(10), "bias p") > 1e-4
    assert cell(report, "guide", ReweightedWakeSleep(10), "bias p") < 1e-6  # it has another target

    alone = lab(Coin(), [exact], x, draws=50).table()
    assert (alone["variance"] < 1e-28).all()


# --- groups, costs, manners -----------------------------------------------------------------------


class Shared(Gaussian):
    """The prior's mean is the guide's too, and the guide has a point besides."""

    def __init__(self):
        super().__init__()
        self.noise = nn.Parameter(torch.tensor(0.0, dtype=F64))
        self.point = nn.Parameter(torch.tensor(0.2, dtype=F64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            spread = self.noise.exp()
            pyro.sample("x", dist.Normal((z + w)[..., None], spread).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, self.log_scale.exp()))
            pyro.sample("w", dist.Delta(self.point))


def test_groups_are_by_what_depends_on_a_parameter():
    groups = lab(Shared(), [AEVB("A")], draws=50).dataset.attrs["groups"]

    assert groups == "both: mean; guide: log_scale, point; model: noise"


def test_a_flow_that_knows_its_own_draws_alone_has_its_groups():
    class Planar(Gaussian):
        def __init__(self):
            super().__init__()
            self.flow = dist.transforms.Planar(1).double()

        def guide(self, x):
            base = dist.Normal(self.mean, self.log_scale.exp()).expand([len(x), 1]).to_event(1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    groups = lab(Planar(), [AEVB("A")], draws=50).dataset.attrs["groups"]
    assert groups.startswith("guide: mean, log_scale, flow.")


def test_groups_may_be_a_mapping_or_a_function():
    names = {"mean": "place", "log_scale": "width"}
    by_mapping = lab(Gaussian(), [AEVB()], draws=50, groups=names)
    by_function = lab(Gaussian(), [AEVB()], draws=50, groups=names.__getitem__)

    assert list(by_mapping.dataset.group.values) == ["place", "width"]
    assert by_mapping.dataset.identical(
        by_function.dataset.assign(seconds=by_mapping.dataset.seconds)
    )


def test_multiplications_are_those_of_the_layers():
    """Forward once; backward twice, but for the first layer, whose input needs no gradient."""
    D, H, J, B, K = 12, 7, 3, 5, 4
    program = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H)
    encoder, decoder = D * H + H * 2 * J, J * H + H * D
    x = (torch.rand(B, D) < 0.5).float()
    report = lab(program, [AEVB(), IWAE(K)], x, draws=50)

    once, many = (cell(report, "model", o, "multiplications") for o in (AEVB(), IWAE(K)))
    assert once == B * (3 * encoder - D * H + 3 * decoder)
    assert many == B * (3 * encoder - D * H + K * 3 * decoder)


def test_it_leaves_the_program_its_gradients_and_the_generator_alone():
    class Own(Gaussian):
        pass

    program = Own()
    program.mean.grad = torch.tensor(7.0, dtype=F64)
    before, generator = copy.deepcopy(program.state_dict()), torch.get_rng_state()

    quiet = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    lab(program, [AEVB(), ScoreFunction(), quiet], draws=50)

    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    assert program.mean.grad == 7.0
    assert program.log_scale.grad is None
    assert torch.equal(generator, torch.get_rng_state())


def test_the_same_seed_gives_the_same_report():
    class Own(Gaussian):
        pass

    first, second = (lab(Own(), [AEVB(), WakeSleep()], draws=50, seed=3) for _ in range(2))
    other = lab(Gaussian(), [AEVB(), WakeSleep()], draws=50, seed=4)

    assert first.dataset.drop_vars("seconds").identical(second.dataset.drop_vars("seconds"))
    assert not np.array_equal(first.dataset.variance, other.dataset.variance)


def test_a_baseline_is_brought_to_rest_before_draws_count():
    cold = lab(Gaussian(mean=3.0), [ScoreFunction()], warmup=0)
    warm = lab(Gaussian(mean=3.0), [ScoreFunction()], warmup=200)

    variances = [cell(report, "guide", ScoreFunction(), "variance") for report in (cold, warm)]
    assert variances[1] < 0.5 * variances[0]


def test_control_flow_on_data_is_no_hindrance():
    class Branching(Gaussian):
        def guide(self, x):
            return super().guide(x) if x.sum() > -1e9 else super().guide(-x)

    report = lab(Branching(), [AEVB("A")], groups=each, draws=300)
    measured = cell(report, "mean", AEVB("A"), "variance")
    assert abs(measured - 2.0) < 4.5 * cell(report, "mean", AEVB("A"), "variance ±")


def test_what_cannot_be_measured_is_refused():
    class Wild(Gaussian):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
                fit = dist.Normal((z[..., None] * 1e200) ** 2, 1.0).to_event(1)
                pyro.sample("x", fit, obs=x)

    twice = [TraceEnum_ELBO(num_particles=2), TraceEnum_ELBO(num_particles=3), AEVB(), AEVB()]
    for arguments, message in (
        (dict(objectives=twice), r"num_particles=3\)', .* expected different ones"),
        (dict(objectives=[AEVB()], warmup=-1), "warmup is -1"),
        (dict(objectives=[AEVB()], groups="layer"), "groups is 'layer', expected a mapping"),
        (dict(objectives=[MonteCarloEM()]), r"MonteCarloEM\(\) follow a Markov chain"),
        (dict(objectives=[]), "expected a list of at least one"),
        (dict(objectives=[AEVB(), AEVB()]), "expected different ones"),
        (dict(objectives=[AEVB()], num_draws=49), "expected a whole number from 50 on"),
        (dict(objectives=[AEVB()], groups={"mean": "a"}), 'no entry for parameter "log_scale"'),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pv.gradient_report(Gaussian(), ONE, **arguments)
    with pytest.raises(ValueError, match=r"draw 0 .* not finite: the model's site .x."):
        lab(Wild(), [AEVB("A")], draws=50)


def test_the_report_reads_plots_and_saves(tmp_path):
    report = lab(Gaussian(mean=0.3), [AEVB(), AEVB("A"), IWAE(2), Autoencoder()], draws=50)
    figure = report.plot(tmp_path / "gradients.png")
    report.save(tmp_path / "gradients.nc")

    assert "50 draws for a batch of 1 rows; bias against AEVB()" in repr(report)
    assert (tmp_path / "gradients.png").stat().st_size > 10_000
    assert (tmp_path / "gradients.nc").exists()
    snr, _, bias = figure.axes
    labels = [text.get_text() for text in snr.get_yticklabels()]
    assert labels == ["AEVB", "AEVB('A')", "IWAE(2)", "Autoencoder"]
    assert bias.get_title(loc="left") == "bias against AEVB"
    assert "reference" in [text.get_text() for text in bias.texts]


def test_progress_is_told():
    records = []
    pv.gradient_report(Gaussian(), ONE, [AEVB()], num_draws=50, progress=records.append)

    assert [record.step for record in records] == list(range(2, 51, 2))
