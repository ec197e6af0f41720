"""Randomness that nobody can predict: for sampling and for noise.

Who can guess the generator's state can take the noise away, so under DP every random number
comes from AES-256 in counter mode, keyed by the operating system's entropy. There is no seed
that anyone could choose or learn. (Opacus' own `secure_mode` needs `torchcsprng`, which no
longer installs; torch's CPU generator takes 32 bits of its seed, few enough to try them all.)

The methods are named as `numpy.random.Generator` names them, so that a simulation or a test
may pass one of those, with a seed, in its place: a run like that is not private.
"""

import secrets
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedpact.common.records import IntArray

_KEY_BYTES, _NONCE_BYTES = 32, 16
_MANTISSA_BITS = 53
# Opacus' defence against floating-point attacks (Holohan and Braghin 2021, section 5.1): the
# sum of 2n normals over the root of 2n, with n = 2, leaves 2^159 preimages to search.
_SUMMANDS = 4

Shape = int | tuple[int, ...]


class Randomness(Protocol):
    """What sampling and noise draw from."""

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Uniform values in [0, 1), shape [size]."""
        ...

    def standard_normal(self, size: Shape) -> npt.NDArray[np.float64]:
        """Normal values of mean 0 and variance 1, in this shape."""
        ...

    def permutation(self, x: int) -> IntArray:
        """The numbers below `x`, each once, in random order."""
        ...


class SecureRandom:
    """AES-256 in counter mode, with a key of its own from the operating system."""

    def __init__(self) -> None:
        key, nonce = secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
        self._stream = Cipher(AES256(key), CTR(nonce)).encryptor()

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Uniform multiples of 2^-53 in [0, 1), shape [size]."""
        bits = self._bits(size) >> np.uint64(64 - _MANTISSA_BITS)
        return np.ldexp(bits.astype(np.float64), -_MANTISSA_BITS)

    def standard_normal(self, size: Shape) -> npt.NDArray[np.float64]:
        """Normal values, each the scaled sum of four by Box and Muller (1958)."""
        wanted = int(np.prod(size))
        pairs = -(-wanted * _SUMMANDS // 2)
        # 1 - u is in (0, 1], so that its logarithm is finite.
        radius = np.sqrt(-2.0 * np.log1p(-self.random(pairs)))
        angle = 2.0 * np.pi * self.random(pairs)
        normals = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
        summands = normals[: wanted * _SUMMANDS].reshape(_SUMMANDS, wanted)
        scaled: npt.NDArray[np.float64] = summands.sum(axis=0) / np.sqrt(_SUMMANDS)
        return scaled.reshape(size)

    def permutation(self, x: int) -> IntArray:
        """The numbers below `x` in the order of as many random ones."""
        return np.argsort(self._bits(x), kind="stable")

    def _bits(self, size: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(8 * size)), dtype="<u8")
