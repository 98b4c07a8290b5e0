"""What is written once: the version, and what is meant where callers do not say.

Nothing is imported here, so that the command line can show them before torch is loaded.  Options
that are off where they are not given are None or False in every signature.
"""

from typing import Final

__version__ = "0.1.0"

# Training: fit, compare, and their verbs.  The first three are the paper's.
BATCH_SIZE: Final = 100
LR: Final = 0.02
WEIGHT_PRIOR: Final = 0.0
ENGINE: Final = "auto"
MATMUL_PRECISION: Final = "highest"

# Comparisons
SAMPLES: Final = 150_000
SEEDS: Final = 3

# log p(x)
METHOD: Final = "importance"
NUM_PARTICLES: Final = 1000
NUM_DRAWS: Final = 200
NUM_TEMPERATURES: Final = 100

SEED: Final = 0
