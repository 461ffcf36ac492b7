"""The numbers of a synthetic checkpoint in R1's native FP8, drawn fast and in bands of rows.

Drawing billions of normals takes minutes, so a matrix of each shape is drawn once (its *prototype*,
quantized block by block as R1 was), and every stored matrix is made from it:

    rows shuffled in bands of 128, signs of rows and columns flipped, scales times a factor

which keeps the native form: the largest code of a block is 448. No two matrices are alike. A
tensor's numbers depend on the seed and its name alone, so a checkpoint with more layers begins with
the blocks of one with fewer.

Shape legend: O output rows, I input columns, R row blocks, C column blocks; B rows of a band.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCK = 128
"""Rows and columns of R1's blocks."""
E4M3_MAX = 448.0
SIGN_BIT = 0x80
OUTLIER_STRIDE = 256
"""One channel in so many is an outlier: one of a small model, eight of one that is 2048 wide."""
OUTLIER_NORM = 8.0
"""How much larger the norms' weights make the activations there."""
OUTLIER_COLUMN = 4.0
"""How much larger the weights are in such a column."""
SCALE_SPREAD = 0.2
"""Standard deviation of the logarithm of a matrix's factor."""
NORM_SPREAD = 0.1
BAND_ROWS = 1024
"""Rows of a BF16 matrix that are drawn at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prototype:
    """A matrix in the native form that all of its shape are made from."""

    codes_OI: Codes
    """E4M3, as bytes."""
    scale_RC: Floats


class Numbers:
    """Numbers by name; keeps a prototype of every shape that was asked for."""

    def __init__(self, seed: int) -> None:
        """Of that seed."""
        self._seed = seed
        self._prototypes: dict[tuple[int, int], Prototype] = {}

    def codes(self, name: str, shape: tuple[int, int]) -> Iterator[Codes]:
        """A matrix's E4M3 codes in bands of 128 rows; the last may be shorter."""
        prototype, variation = self._variation(name, shape)
        for band, source in enumerate(variation.bands):
            rows = slice(band * BLOCK, (band + 1) * BLOCK)
            codes_BI = prototype.codes_OI[source * BLOCK : (source + 1) * BLOCK]
            yield codes_BI ^ variation.flips_O[rows, None] ^ variation.flips_I

    def scale(self, name: str, shape: tuple[int, int]) -> Floats:
        """The scales (R, C) of that matrix."""
        prototype, variation = self._variation(name, shape)
        return prototype.scale_RC[variation.bands] * variation.factor

    def normal(self, name: str, shape: tuple[int, ...], deviation: float) -> Iterator[Floats]:
        """Normal numbers in bands of rows."""
        generator = self._generator(name)
        for first in range(0, shape[0], BAND_ROWS):
            n_rows = min(BAND_ROWS, shape[0] - first)
            drawn = generator.standard_normal((n_rows, *shape[1:]), dtype=np.float32)
            yield drawn * np.float32(deviation)

    def norm(self, name: str, width: int) -> Floats:
        """Weights of a norm: around 1, larger in the outlier channels."""
        generator = self._generator(name)
        weights_I = 1 + NORM_SPREAD * generator.standard_normal(width, dtype=np.float32)
        weights_I[_outliers(generator, width)] *= OUTLIER_NORM
        return weights_I

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng((self._seed, zlib.crc32(name.encode())))

    def _variation(self, name: str, shape: tuple[int, int]) -> tuple[Prototype, "_Variation"]:
        if shape not in self._prototypes:
            self._prototypes[shape] = _draw_prototype(shape, self._generator(f"{shape}"))
        return self._prototypes[shape], _Variation.draw(self._generator(name), shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Variation:
    bands: NDArray[np.int64]
    """Which band of the prototype stands where."""
    flips_O: Codes
    flips_I: Codes
    factor: np.float32

    @classmethod
    def draw(cls, generator: np.random.Generator, shape: tuple[int, int]) -> "_Variation":
        n_rows, n_columns = shape
        # A last band that is shorter stays where it is.
        whole = generator.permutation(n_rows // BLOCK)
        rest = np.arange(n_rows // BLOCK, math.ceil(n_rows / BLOCK))
        return cls(
            bands=np.concatenate([whole, rest]),
            flips_O=_flips(generator, n_rows),
            flips_I=_flips(generator, n_columns),
            factor=np.float32(math.exp(SCALE_SPREAD * generator.standard_normal())),
        )


def _flips(generator: np.random.Generator, count: int) -> Codes:
    return generator.integers(0, 2, count, dtype=np.uint8) * np.uint8(SIGN_BIT)


def _outliers(generator: np.random.Generator, width: int) -> NDArray[np.int64]:
    return generator.choice(width, max(1, width // OUTLIER_STRIDE), replace=False)


def _draw_prototype(shape: tuple[int, int], generator: np.random.Generator) -> Prototype:
    """Weights of deviation 1/sqrt(I), so that outputs are about as large as inputs."""
    n_rows, n_columns = shape
    codes_OI = np.empty(shape, dtype=np.uint8)
    scale_RC = np.empty((math.ceil(n_rows / BLOCK), math.ceil(n_columns / BLOCK)), dtype=np.float32)
    deviation_I = np.full(n_columns, 1 / math.sqrt(n_columns), dtype=np.float32)
    deviation_I[_outliers(generator, n_columns)] *= OUTLIER_COLUMN
    for row, first in enumerate(range(0, n_rows, BLOCK)):
        n_band = min(BLOCK, n_rows - first)
        w_BI = generator.standard_normal((n_band, n_columns), dtype=np.float32) * deviation_I
        for column, left in enumerate(range(0, n_columns, BLOCK)):
            tile = w_BI[:, left : left + BLOCK]
            scale = np.float32(np.abs(tile).max() / E4M3_MAX)
            scale_RC[row, column] = scale
            tile /= scale
        codes_OI[first : first + n_band] = _to_e4m3(w_BI)
    return Prototype(codes_OI=codes_OI, scale_RC=scale_RC)


def _to_e4m3(values: Floats) -> Codes:
    return torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
