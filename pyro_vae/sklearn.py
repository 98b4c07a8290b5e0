r"""A variational auto-encoder as a scikit-learn estimator.

.. math:: p(x) = \int p(z)\, p(x \mid z)\, dz, \qquad z \to \text{transform}, \qquad
          \log p(x) \to \text{score\_samples}

For pipelines, grids and cross-validation: a reduction to J numbers a row that knows how probable a
row is::

    >>> import numpy as np
    >>> from pyro_vae.sklearn import VAE
    >>> X = np.random.default_rng(0).normal(size=(200, 5)) * [1, 1e3, 1e6, 1, 1]
    >>> vae = VAE(latent_dim=2, samples=5_000, random_state=0).fit(X)
    >>> vae.transform(X).shape, vae.inverse_transform(np.zeros((3, 2))).shape
    ((200, 2), (3, 5))

The pieces are those of ``pv.VAE.build`` and ``pv.fit``; ``estimator.program_`` is the program, with
which everything else of the package goes on.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_vae import errors, likelihoods
from pyro_vae.evidence import log_evidence
from pyro_vae.models import vae as models_vae
from pyro_vae.noise import Stream, seeded
from pyro_vae.predictive import decode, encode, sample
from pyro_vae.program.inputs import as_tensor
from pyro_vae.training import fit

__all__ = ["VAE"]

SAMPLES = 60_000  # rows x updates, at the least, where no budget is named
LEAST_EPOCHS = 10


class VAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Auto-Encoding Variational Bayes with the methods of scikit-learn.

    Trained in single precision and used in double, on dense rows: a sparse matrix is made dense,
    or refused where it would not fit into memory.  Covariates, several observed entries and images
    with axes are for ``pv.fit``.

    Args:
        latent_dim: J.
        hidden_dim: width of the hidden layer of encoder and decoder, where no ``network`` is given.
        likelihood: "auto", or a part such as ``pv.likelihoods.Poisson()``.  "auto" is Bernoulli for
            data that are zeros and ones throughout, and else a Gaussian whose mean is any number
            and whose noise is learnt for each column.
        prior, posterior: parts; by default a standard normal, and the Gaussian that suits it.
        network: of both, such as ``pv.networks.MLP(hidden=(64, 64), activation="relu")``.
        standardize: whether columns are brought to mean 0 and standard deviation 1 for training.
            "auto" does so for the Gaussian that "auto" chose.  All that comes out is in the units
            of X again, log densities among it.
        objective: what is learnt by; by default ``pv.objectives.AEVB()``.
        samples, epochs: the budget, rows x updates or passes; by default 60,000 samples and at
            least 10 passes.
        batch_size: rows a minibatch.
        optimizer, lr: a class of ``torch.optim`` and its step size; by default Adam, 0.01.
        early_stopping: evaluations of held-out rows without a rise after which training ends, with
            the best weights; None trains to the end on all rows.
        validation_fraction: the share of rows that early stopping holds out.
        missing: NaN means that a number is missing.
        score_method: how ``score_samples`` estimates log p(x): a ``method`` of
            ``pv.log_evidence``.
        num_particles: draws for each row there.
        device: "cpu" or "cuda".
        engine: as of ``pv.fit``.
        random_state: of initial weights, order, noise and held-out rows.
        verbose: show a line of progress.

    Attributes:
        program_: the trained ``pv.VAE``, of standardized rows where ``mean_`` is not None.
        mean_, scale_: what standardized the columns, or None.
        history_: a pandas frame, the learning curve.
        manifest_: settings and versions.
        n_iter_: updates taken.
        n_features_in_, feature_names_in_: as everywhere.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> vae = VAE(2, samples=20_000, random_state=0).fit(load_iris().data)
        >>> vae.get_feature_names_out()
        array(['vae0', 'vae1'], dtype=object)
        >>> vae.sample(3, random_state=0).shape
        (3, 4)
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        hidden_dim: int = 64,
        likelihood: Any = "auto",
        prior: Any = None,
        posterior: Any = None,
        network: Any = None,
        standardize: bool | str = "auto",
        objective: Any = None,
        samples: int | None = None,
        epochs: float | None = None,
        batch_size: int = 100,
        optimizer: Any = None,
        lr: float | None = None,
        early_stopping: int | None = None,
        validation_fraction: float = 0.1,
        missing: bool = False,
        score_method: str = "importance",
        num_particles: int = 200,
        device: str | None = None,
        engine: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden_dim = hidden_dim
        self.likelihood = likelihood
        self.prior = prior
        self.posterior = posterior
        self.network = network
        self.standardize = standardize
        self.objective = objective
        self.samples = samples
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.missing = missing
        self.score_method = score_method
        self.num_particles = num_particles
        self.device = device
        self.engine = engine
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on rows X (N, D); y is ignored.

        Raises:
            ValueError: fewer than two rows, NaN without ``missing=True``, an impossible option.
        """
        X = self._checked(X, reset=True)
        random = check_random_state(self.random_state)
        self.seed_ = int(random.randint(2**31 - 1))
        law, standardize = self._law(X)
        moments: tuple[Any, Any] = _moments(X) if standardize else (None, None)
        self.mean_, self.scale_ = moments
        x = self._standardized(X).float()
        held_out = None
        if self.early_stopping is not None:
            share = errors.within("validation_fraction", self.validation_fraction, "(0, 1)")
            count = max(1, round(share * len(x)))
            if count == len(x):
                raise ValueError(
                    f"validation_fraction is {share} of {len(x)} rows, which leaves none to train "
                    "on: take a smaller share, or more rows"
                )
            order = torch.from_numpy(random.permutation(len(x)))
            held_out, x = x[order[:count]], x[order[count:]]
        with seeded(*Stream.PARAMETERS.key(self.seed_)):
            program = models_vae.build(
                x,
                latent_dim=self.latent_dim,
                hidden_dim=self.hidden_dim,
                prior=self.prior,
                likelihood=law,
                posterior=self.posterior,
                network=self.network,
                missing=self.missing,
                init_std=None,  # torch's own, which learns small tables faster than the paper's
            )
        samples = self.samples
        if samples is None and self.epochs is None:
            samples = max(SAMPLES, LEAST_EPOCHS * len(x))
        default = self.optimizer is None
        run = fit(
            program,
            x,
            self.objective,
            samples=samples,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=torch.optim.Adam if default else self.optimizer,
            lr=0.01 if default and self.lr is None else self.lr,
            seed=self.seed_,
            device=self.device,
            engine=self.engine,
            validation=held_out,
            early_stopping=self.early_stopping,
            progress=bool(self.verbose),
        )
        self.program_ = program.double()
        self.history_, self.manifest_ = run.history, run.manifest
        self.n_iter_ = run.manifest["steps"]
        self._n_features_out = int(self.latent_dim)
        return self

    def transform(self, X: Any) -> Any:
        """The mean of q(z | x) of each row, (N, J)."""
        check_is_fitted(self)
        X = self._checked(X)
        return _array(encode(self.program_, self._standardized(X)), like=X)

    def inverse_transform(self, X: Any) -> Any:
        """The mean of p(x | z) at latents X (N, J), (N, D); of categories the most probable one."""
        check_is_fitted(self)
        Z = check_array(X, dtype=[np.float64, np.float32], input_name="X")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {Z.shape[1]} columns, expected the {self._n_features_out} of transform(X)"
            )
        return _array(self._restored(decode(self.program_, torch.from_numpy(Z.copy()))), like=Z)

    def score_samples(self, X: Any) -> Any:
        """log p(x) of each row, (N,), nats in the units of X: by ``score_method``."""
        check_is_fitted(self)
        X = self._checked(X)
        evidence = log_evidence(
            self.program_,
            self._standardized(X),
            method=self.score_method,  # type: ignore[arg-type]
            num_particles=self.num_particles,
            seed=self.seed_,
            progress=bool(self.verbose),
        )
        log_p = evidence.value.numpy(force=True)
        if self.scale_ is not None:  # of a number that is missing there is no density
            there = ~np.isnan(X)
            log_p = log_p - np.where(there, np.log(self.scale_), 0.0).sum(1)
        return log_p

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of log p(x), nats a row; y is ignored."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Rows drawn from the model, (n_samples, D)."""
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return self._restored(sample(self.program_, n_samples, seed=seed)).numpy(force=True)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = bool(self.missing)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_n_features_out")

    def _checked(self, X: Any, *, reset: bool = False) -> Any:
        """Rows (N, D) of finite reals (NaN where they may be missing), dense."""
        try:
            X = validate_data(
                self,
                X,
                reset=reset,
                accept_sparse="csr",
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan" if self.missing else True,
                ensure_min_samples=2 if reset else 1,
            )
        except ValueError as error:
            if self.missing or "contains NaN" not in str(error):
                raise
            raise ValueError(  # scikit-learn's own advice is to take another estimator
                "X contains NaN, expected finite numbers: fit pv.sklearn.VAE(missing=True), for "
                "which NaN is a number that nobody knows, or impute first"
            ) from error
        return X if isinstance(X, np.ndarray) else as_tensor(X, "X").numpy()

    def _law(self, X: Any) -> tuple[Any, bool]:
        """The likelihood, and whether columns are standardized for it."""
        if self.standardize not in ("auto", True, False):
            raise ValueError(f'standardize is {self.standardize!r}, expected True, False or "auto"')
        law, chosen = self.likelihood, False
        if isinstance(law, str):
            if law != "auto":
                raise ValueError(
                    f'likelihood is {law!r}, expected "auto" or a part, pv.likelihoods.Poisson()'
                )
            binary = bool(((X == 0) | (X == 1) | np.isnan(X)).all())
            gaussian = likelihoods.Gaussian(sigmoid_mean=False, sigma="pixel", floor=0.01)
            law, chosen = (likelihoods.Bernoulli() if binary else gaussian), not binary
        return law, chosen if self.standardize == "auto" else bool(self.standardize)

    def _standardized(self, X: Any) -> Tensor:
        if self.mean_ is not None:
            X = (X - self.mean_) / self.scale_
        return as_tensor(X, "X").double()

    def _restored(self, means: Tensor | dict[str, Tensor]) -> Tensor:
        """x in the units of X, from the values of each site."""
        parts = means if isinstance(means, dict) else {"x": means}
        plain = {n: v.argmax(-1).double() if v.dim() > 2 else v for n, v in parts.items()}
        joined: Any = getattr(self.program_.likelihood, "joined", None)
        x = joined(plain) if isinstance(means, dict) else plain["x"]
        if self.mean_ is None:
            return x
        return x * x.new_tensor(self.scale_) + x.new_tensor(self.mean_)


def _moments(X: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each column, of the numbers that are there; a constant's is 1.

    In double precision, in units of each column's largest number, so that no square leaves what
    such numbers can be, and about the mean, so that a large offset costs none.
    """
    X = X.astype(np.float64)
    there = ~np.isnan(X)
    count = np.maximum(there.sum(0), 1)
    unit = np.abs(np.where(there, X, 0.0)).max(0)
    unit = np.where(unit > 0, unit, 1.0)
    x = np.where(there, X / unit, 0.0)
    mean = x.sum(0) / count
    scale = np.sqrt((np.where(there, x - mean, 0.0) ** 2).sum(0) / count)
    constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean * unit, np.where(constant, 1.0, scale * unit)


def _array(values: Any, like: Any) -> Any:
    return values.numpy(force=True).astype(like.dtype, copy=False)
