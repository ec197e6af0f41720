r"""Sums of low-rank products, kept as factors: nothing as large as a layer is ever formed.

$\sum_k B_k A_k$ is one product of stacked factors, $[B_1 \dots B_K]\,[A_1; \dots; A_K]$, of
rank $\sum_k r_k$ at most (FLoRA, Wang et al., NeurIPS 2024). Its singular value decomposition
is that of a small core: with $L = Q_L R_L$ and $R^\top = Q_R R_R$, $LR = Q_L (R_L R_R^\top)
Q_R^\top$. Arithmetic is float64. The same factors give the same bits on the same build of
NumPy; another LAPACK may round the last bit otherwise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedpact.common.adapter import Weights

Matrix = npt.NDArray[np.float64]
_ROUNDING = 1e-12
# B of shape [d_out, r] and A of shape [r, d_in], in this order.
Pair = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]


def with_tensors(weights: Weights, values: Mapping[str, npt.NDArray[np.floating]]) -> Weights:
    """The weights with some of their tensors replaced; shapes must be the same."""
    changed = Weights(weights.manifest, weights.flat.copy())
    targets = changed.tensors()
    for name, value in values.items():
        targets[name][...] = value
    return changed


def stack(
    pairs: Sequence[Pair], weights: Sequence[float] | None = None
) -> tuple[Matrix, Matrix]:
    r"""FLoRA's stacking: factors L and R with $LR = \sum_k w_k B_k A_k$, exactly.

    Args:
        pairs: B [d_out, r_k] and A [r_k, d_in]; ranks may differ.
        weights: one for each pair; 1 by default.

    Returns:
        L of shape [d_out, R] and R of shape [R, d_in], R the sum of the ranks.
    """
    weights = [1.0] * len(pairs) if weights is None else weights
    left = [
        np.multiply(b, w, dtype=np.float64) for (b, _), w in zip(pairs, weights, strict=True)
    ]
    return np.concatenate(left, axis=1), np.concatenate([a for _, a in pairs], axis=0).astype(
        np.float64
    )


def compress(
    pairs: Sequence[Pair], rank: int, weights: Sequence[float] | None = None
) -> tuple[Matrix, Matrix]:
    r"""The best approximation of $\sum_k w_k B_k A_k$ by factors of one rank (Eckart-Young).

    Args:
        pairs: B [d_out, r_k] and A [r_k, d_in]; ranks may differ.
        rank: of the result. Exact where the sum has no higher one.
        weights: one for each pair; 1 by default.

    Returns:
        $B = U \Sigma$ of shape [d_out, rank] and $A = V^\top$ of shape [rank, d_in]. Rows of A
        are orthonormal, those of singular value zero too (they stay within the rows of the
        A given), as far as there are that many dimensions; the largest value of each is
        positive.
    """
    left, singular, right = _decompose(pairs, weights)
    b = np.zeros((left.shape[0], rank))
    a = np.zeros((rank, right.shape[1]))
    kept = min(rank, len(singular))
    b[:, :kept] = left[:, :kept] * singular[:kept]
    rows = right[:rank]
    a[: len(rows)] = rows
    signs = np.sign(np.take_along_axis(a, np.abs(a).argmax(axis=1)[:, None], axis=1))
    signs[signs == 0] = 1.0
    return b * signs.T, a * signs


def merge(pairs: Sequence[Pair], weights: Sequence[float]) -> tuple[Matrix, Matrix]:
    r"""$\sum_k w_k B_k A_k$ by as few factors as hold it: 1 at least, min(d_out, d_in) at most.

    What is left out is rounding: below $10^{-12}$ of $\sum_k w_k \|B_k\| \|A_k\|$.

    Returns:
        $U \sqrt\Sigma$ of shape [d_out, R] and $\sqrt\Sigma V^\top$ of shape [R, d_in].
    """
    left, singular, right = _decompose(pairs, weights)
    norms = [np.linalg.norm(b) * np.linalg.norm(a) for b, a in pairs]
    kept = max(1, int(np.sum(singular > _ROUNDING * np.dot(weights, norms))))
    roots = np.sqrt(singular[:kept])
    return left[:, :kept] * roots, right[:kept] * roots[:, None]


def _decompose(
    pairs: Sequence[Pair], weights: Sequence[float] | None
) -> tuple[Matrix, Matrix, Matrix]:
    r"""The decomposition $U \Sigma V^\top$ of a weighted sum of products.

    Returns:
        U of shape [d_out, n], the n singular values, V^T of shape [m, d_in] with m at least n.
    """
    left, right = stack(pairs, weights)
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(right.T)
    u, singular, vt = np.linalg.svd(left_core @ right_core.T)
    return left_basis @ u[:, : len(singular)], singular, vt @ right_basis.T


def product_norm(left: Matrix, right: Matrix) -> float:
    r"""Frobenius norm of a product, of its factors' Gram matrices: $\mathrm{tr}(L^\top L R R^\top)$."""
    squared = float(np.sum((left.T @ left) * (right @ right.T)))
    return float(np.sqrt(max(squared, 0.0)))
