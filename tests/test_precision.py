"""``matmul_precision="medium"``: large products in bfloat16, everything else as it was."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae import torch_internals
from pyro_vae.engine import choosing
from pyro_vae.engine.capture import capture, still_holds
from pyro_vae.engine.functions import NO_PRIOR
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.products import in_bfloat16
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives import AEVB

pytestmark = pytest.mark.skipif(
    not torch_internals.has_bfloat16_products(), reason="this processor has no bfloat16 products"
)
WIDE = {"steps": 12, "batch_size": 100, "progress": False, "lr": 0.01}


def wide(seed=0):
    """Its hidden layers take 12 million multiplications a batch, its latent ones 120,000."""
    torch.manual_seed(seed)
    return bernoulli_vae.build(400, latent_dim=2, hidden_dim=300)


@pytest.fixture(scope="module")
def rows():
    return (torch.rand(400, 400, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def fit(rows, precision="medium", **options):
    program = wide()
    return program, pv.fit(program, rows, matmul_precision=precision, **(WIDE | options))


def flat(program):
    return torch.cat([p.detach().flatten() for p in program.parameters()])


# --- the products -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((100, 400), (400, 300))]


def half(a, b):
    return (a.bfloat16() @ b.bfloat16()).float()


def test_a_large_product_is_that_of_bfloat16(matrices):
    a, b = matrices
    rough = in_bfloat16(lift(lambda a, b: [a @ b], a, b))
    assert rough.rough
    assert torch.equal(rough(a, b, noise=[])[0], half(a, b))
    assert not torch.equal(half(a, b), a @ b)


def test_a_bias_is_added_in_single_precision(matrices):
    a, b = matrices
    bias = torch.linspace(0, 1, 300)
    rough = in_bfloat16(lift(lambda a, b, c: [torch.addmm(c, a, b)], a, b, bias))
    assert torch.equal(rough(a, b, bias, noise=[])[0], half(a, b) + bias)
    scaled = in_bfloat16(lift(lambda a, b, c: [torch.addmm(c, a, b, beta=2)], a, b, bias))
    assert torch.equal(scaled(a, b, bias, noise=[])[0], torch.addmm(bias, a, b, beta=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_small_products_stay(matrices, dtype):
    a, b = (m.to(dtype) for m in matrices)
    same = in_bfloat16(lift(lambda a, b: [a @ b], a, b))
    assert not same.rough and torch.equal(same(a, b, noise=[])[0], a @ b)
    a, b = matrices[0][:50], matrices[1][:, :50]
    small = in_bfloat16(lift(lambda a, b: [a @ b], a, b))
    assert not small.rough and torch.equal(small(a, b, noise=[])[0], a @ b)


# --- training -----------------------------------------------------------------------------------


def test_it_learns_the_same_up_to_three_digits_and_says_so(rows):
    descent = {"engine": "eager", "optimizer": torch.optim.SGD, "lr": 1e-5}  # linear in gradients
    exact, run = fit(rows, "highest", **descent)
    assert run.manifest["matmul_precision"] == "highest"
    rough, other = fit(rows, **descent)
    assert other.manifest["matmul_precision"] == "medium"
    moved, apart = (flat(exact) - flat(wide())).norm(), (flat(rough) - flat(exact)).norm()
    assert 1e-5 * moved < apart < 0.02 * moved
    losses = [r.history["loss"].iloc[-1] for r in (run, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_machine_code_does_it_too(rows):
    eager, _ = fit(rows, engine="eager")
    compiled, run = fit(rows, engine="compiled")
    exact, _ = fit(rows, "highest", engine="eager")
    assert (run.manifest["engine"], run.manifest["matmul_precision"]) == ("compiled", "medium")
    moved = (flat(exact) - flat(wide())).norm()
    assert 1e-5 * moved < (flat(compiled) - flat(exact)).norm()  # it is not in full precision
    assert (flat(compiled) - flat(eager)).norm() < 0.05 * moved


def test_replicas_and_an_objective_with_state_do_it_too(rows):
    alone, _ = fit(rows, engine="eager")
    exact, _ = fit(rows, "highest", engine="eager")
    program = wide()
    first, _ = pv.fit(program, rows, matmul_precision="medium", engine="eager", replicas=2, **WIDE)
    moved = (flat(exact) - flat(wide())).norm()
    assert (flat(first.program) - flat(alone)).norm() < 0.02 * moved
    assert 1e-5 * moved < (flat(first.program) - flat(exact)).norm()
    fit(rows, objective=pv.objectives.MonteCarloEM(2), engine="eager", steps=2)


def test_a_rough_graph_is_not_taken_for_another_program(rows):
    """A callback has the program compared with its graph, which is the exact one."""
    program = wide()
    graph = capture(program, AEVB(), rows[:100]).at("medium")
    args = (rows[:100], torch.ones(100), {}, {})
    assert still_holds(graph, program, AEVB(), NO_PRIOR, args)
    with torch.no_grad():
        assert graph.grads.rough and not graph.exact.rough
    run = fit(rows, engine="eager", callbacks=[lambda record: None], steps=4)[1]
    assert run.manifest["engine"] == "eager" and not run.manifest["engine_reason"]


# --- what is refused ----------------------------------------------------------------------------


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 400)

    def forward(self, z):
        import pyro.distributions as dist

        logits = self.net(z)
        return dist.Bernoulli(logits=logits / 2 if logits.max() > 9 else logits).to_event(1)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"precision": "high"}, r"'high', expected one of 'highest', 'medium' \(TF32 is torch\."),
        ({"precision": "low"}, r"'low', expected one of 'highest', 'medium'$"),
        ({"precision": None}, r"None, expected one of"),
        ({"engine": "pyro"}, r"there is none \(engine=\"pyro\" runs the program as it is\)"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused(rows, given, match):
    with pytest.raises(ValueError, match=match):
        fit(rows, **given)


def test_a_program_without_a_graph_is_refused(rows):
    program = pv.VAE.build(rows, latent_dim=2, hidden_dim=300, likelihood=Branching())
    with pytest.raises(ValueError, match=r"products of a captured graph.*not captured"):
        pv.fit(program, rows, matmul_precision="medium", **WIDE)


def test_a_processor_without_it_is_refused(rows, monkeypatch):
    monkeypatch.setattr(choosing, "has_bfloat16_products", lambda: False)
    with pytest.raises(ValueError, match="this processor has no instructions"):
        fit(rows)


def test_a_run_does_not_change_it_halfway(rows, tmp_path):
    fit(rows, engine="eager", out=tmp_path)
    with pytest.raises(ValueError, match="matmul_precision is 'highest', the checkpoint has 'med"):
        fit(rows, "highest", engine="eager", out=tmp_path, resume=True)


def test_where_no_product_is_large_it_is_said_and_changes_nothing(rows):
    small = {"batch_size": 10, "engine": "eager"}
    with pytest.warns(pv.PyroVaeWarning, match="no matrix product of a step takes 8,388,608"):
        rough, _ = fit(rows, **small)
    exact, _ = fit(rows, "highest", **small)
    assert torch.equal(flat(rough), flat(exact))


def test_a_comparison_trains_every_run_in_it(rows):
    data = pv.datasets.split(pv.datasets.from_array(rows))

    def scores(precision):
        return pv.compare(
            data, builds={"wide": wide}, objectives=[AEVB(), pv.objectives.WakeSleep()], seeds=2,
            samples=1200, proposal="guide", num_particles=20, engine="eager", progress=False,
            optimizer=torch.optim.Adam, matmul_precision=precision,
        )  # fmt: skip

    rough, exact = scores("medium"), scores("highest")
    for key, run in rough.runs.items():
        assert run.manifest["matmul_precision"] == "medium"
        other, start = (flat(p) for p in (exact.runs[key].program, wide()))
        assert 1e-5 < (flat(run.program) - other).norm() / (other - start).norm() < 0.05
