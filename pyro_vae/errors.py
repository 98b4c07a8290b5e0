"""The one warning class of the package: numbers that are at risk."""


class PyroVaeWarning(UserWarning):
    """A number is at risk: an unreliable estimate, a value at its bound, a sampled KL term."""
