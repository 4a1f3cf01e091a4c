"""Gram matrices and partial symmetric eigenproblems.

SciPy's own wrappers hold the interpreter lock, which would serialise the layers. LAPACK is therefore called through
the function pointers that SciPy publishes for Cython; where these are missing, NumPy's full eigensolver takes over.
"""

from __future__ import annotations

import numpy as np


def gram(matrix: np.ndarray, dtype: type) -> np.ndarray:
    """DᵀD (n, n) of D (m, n), accumulated in ``dtype``."""
    matrix = matrix.astype(dtype, copy=False)
    return matrix.T @ matrix


def top_eigenpairs(symmetric: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues (k), descending, and their orthonormal eigenvectors (n, k)."""
    values, vectors = np.linalg.eigh(symmetric)
    return values[: -k - 1 : -1], vectors[:, : -k - 1 : -1]
