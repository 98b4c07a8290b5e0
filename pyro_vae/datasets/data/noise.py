"""Uniform noise as a function of (seed, epoch, row, pixel), with no generator behind it.

Resampled binarization must not depend on who asks: a row has to get the same pixels whether it
stands in a batch of 100 or alone, on one thread or eight, in a fresh run or a resumed one. A
generator has a state that all of these move; a hash of the coordinates has none.

Each row gets a 64-bit key by the finalizer of splitmix64 (Steele, Lea & Flood 2014). Its two
halves enter a 32-bit multiply-xorshift hash of the pixel number ("lowbias32", C. Wellons,
hash-prospector) at two places, so that rows cannot be shifted copies of each other. Pixels are
hashed in 32 bits because that takes half the memory traffic of 64, and this runs at every step.
Only integer arithmetic modulo a power of two is used: every device gives the same bits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive numbers over all bits
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_PERMUTATION = _MASK  # an epoch that no training reaches
# Numbers hashed at once: they stay in the cache, and below the size from which torch shares an
# operation out to threads, which on a busy machine takes ten times as long as the operation.
_CHUNK = 32_000


def uniforms(rows: Tensor, dim: int, *, seed: int, epoch: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24.

    Args:
        rows: row numbers, int64 (B,).
        dim: numbers per row, D.
        seed, epoch: integers >= 0; every pair is a stream of its own.

    Returns:
        (B, D) on the device of `rows`; row i depends on `rows[i]`, `seed` and `epoch` alone.
    """
    return _pixels(_row_keys(rows, seed, epoch), _pixel_keys(dim, rows.device))


def bernoulli(probability: Tensor, rows: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Draw 0/1 pixels with the given probabilities: `uniform < probability`.

    Args:
        probability: (B, ...) float32 in [0, 1].
        rows: row numbers, int64 (B,), on the same device.
        seed, epoch: as in `uniforms`.

    Returns:
        0/1 tensor of the shape and dtype of `probability`.
    """
    flat = probability.reshape(len(rows), -1)
    dim = flat.shape[1]
    size = max(1, _CHUNK // dim)
    pixel_keys = _pixel_keys(dim, rows.device)
    keys = _row_keys(rows, seed, epoch).split(size)
    drawn = torch.empty_like(flat)
    for some, chance, out in zip(keys, flat.split(size), drawn.split(size), strict=True):
        torch.lt(_pixels(some, pixel_keys), chance, out=out)
    return drawn.reshape(probability.shape)


def permutation(size: int, *, seed: int) -> Tensor:
    """A random order of 0..size-1, int64, that no version of a library can change."""
    return _row_keys(torch.arange(size), seed, _PERMUTATION).argsort(stable=True)


def first_of_permutation(size: int, count: int, *, seed: int) -> Tensor:
    """The first `count` of `permutation(size)`, in ascending order, int64.

    In a little more memory than they take: those come first whose keys are the smallest, so keys
    are made twice, once to see below which value they lie.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.int64)
    bins, found = torch.zeros(1 << 16, dtype=torch.int64), []
    for rows in _in_pieces(size):
        top = _row_keys(rows, seed, _PERMUTATION).bitwise_right_shift_(48).add_(1 << 15)
        bins += torch.bincount(top, minlength=len(bins))
    most = int(torch.searchsorted(bins.cumsum(0), count)) - (1 << 15)
    for rows in _in_pieces(size):
        keys = _row_keys(rows, seed, _PERMUTATION)
        near = keys.bitwise_right_shift(48) <= most
        found.append(torch.stack([keys[near], rows[near]]))
    keys, rows = torch.cat(found, 1)
    return rows[keys.argsort(stable=True)[:count]].sort().values


def _in_pieces(size: int, piece: int = 1 << 22) -> Iterator[Tensor]:
    for start in range(0, size, piece):
        yield torch.arange(start, min(start + piece, size))


def _row_keys(rows: Tensor, seed: int, epoch: int) -> Tensor:
    """64 random bits for each row, int64 (B,)."""
    stream = _mix(_mix(seed + _GOLDEN) + epoch)
    # The same mixing as `_mix`, on tensors: int64 products wrap, right shifts drag the sign.
    h = rows.mul(_signed(_GOLDEN, 64)).add_(_signed(stream, 64))
    scratch = torch.empty_like(h)
    _xor_shift(h, 30, scratch).mul_(_signed(_FIRST, 64))
    _xor_shift(h, 27, scratch).mul_(_signed(_SECOND, 64))
    return _xor_shift(h, 31, scratch)


def _pixel_keys(dim: int, device: torch.device) -> Tensor:
    """32 bits for each pixel, int32 (D,)."""
    return torch.arange(dim, dtype=torch.int32, device=device).mul_(_signed(0x9E3779B9, 32))


def _pixels(row_keys: Tensor, pixel_keys: Tensor) -> Tensor:
    """Uniform numbers (B, D) from the keys of rows (B,) and pixels (D,)."""
    halves = row_keys.view(torch.int32).view(-1, 2)
    h = pixel_keys + halves[:, :1]  # (B, D)
    scratch = torch.empty_like(h)
    _xor_shift(h, 16, scratch).mul_(_signed(0x7FEB352D, 32)).bitwise_xor_(halves[:, 1:])
    _xor_shift(h, 15, scratch).mul_(_signed(0x846CA68B, 32))
    _xor_shift(h, 16, scratch)
    # The upper 24 bits: as many as a float32 holds exactly, so 1.0 never comes out.
    return h.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _xor_shift(h: Tensor, shift: int, scratch: Tensor) -> Tensor:
    """h ^= h >> shift in place; the mask removes the copies of the sign bit."""
    mask = (1 << (8 * h.element_size() - shift)) - 1
    torch.bitwise_right_shift(h, shift, out=scratch)
    return h.bitwise_xor_(scratch.bitwise_and_(mask))


def _signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned constant, as torch wants it."""
    return value - (1 << bits) if value >> (bits - 1) else value
