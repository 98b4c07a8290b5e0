"""What the tests of data and of its binarization share."""

import torch
from torch import Tensor

BINARIZED = ("threshold", "static", "dynamic")


def positions(*numbers: int) -> Tensor:
    return torch.tensor(numbers)
