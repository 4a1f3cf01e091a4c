"""Gram matrices and symmetric eigenproblems on the CPU.

SciPy's own wrappers hold the interpreter lock, which would serialise the layers. BLAS and LAPACK are therefore called
through the function pointers that SciPy publishes for Cython; where these are missing, NumPy's product and full
eigensolver, which also release the lock, take over.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_ROWS = 256  # rows converted at a time: they stay in the cache, and a token embedding is not doubled in memory
_MOST = 4  # with more than 1/4 of the eigenvectors asked for, all of them are faster
_FEW = 13  # with fewer than 1/13, dstemr is faster than dsterf and dstein
_BLOCK = 32  # LAPACK's block size for its workspace
_Routine = Callable[..., None]


class LapackError(RuntimeError):
    """A LAPACK routine is missing or reported a failure; the caller takes the other way."""


def gram(matrix: np.ndarray, dtype: type) -> np.ndarray:
    """DᵀD (n, n) of D (m, n), accumulated in ``dtype`` (float32 or float64). Only its upper half is filled."""
    m, n = matrix.shape
    try:
        multiply = _routine("cython_blas", _letter(dtype) + "syrk")
    except LapackError:
        matrix = matrix.astype(dtype, copy=False)
        return matrix.T @ matrix
    upper: np.ndarray = np.zeros((n, n), dtype)
    one = _real(1, dtype)
    by_columns = matrix.flags.f_contiguous and not matrix.flags.c_contiguous
    for start in range(0, m, _ROWS):
        rows: np.ndarray = matrix[start : start + _ROWS].astype(dtype, order="F" if by_columns else "C", copy=False)
        # To Fortran, an array in C order is its transpose, and this upper half is the lower one.
        transposed, leading = (b"T", len(rows)) if by_columns else (b"N", n)
        multiply(b"L", transposed, n, len(rows), one, np.asarray(rows), leading, one, upper, n)
    return upper


def eigenpairs(upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues (n), ascending, and orthonormal eigenvectors (n, n), by divide and conquer.

    Args:
        upper: symmetric (n, n), float32 or float64; only its upper half is read.
    """
    n, dtype = len(upper), upper.dtype.type
    try:
        solve = _routine("cython_lapack", _letter(dtype) + "syevd")
        vectors, values = np.array(upper), np.empty(n, dtype)
        work, integers = np.empty(1 + 6 * n + 2 * n * n, dtype), np.empty(3 + 5 * n, np.intc)
        solve(b"V", b"L", n, vectors, n, values, work, len(work), integers, len(integers), _Information())
    except LapackError:
        return np.linalg.eigh(upper, UPLO="U")
    return values, vectors.T


def top_eigenpairs(upper: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues (k), descending, and orthonormal eigenvectors (n, k).

    Args:
        upper: symmetric (n, n), float32 or float64; only its upper half is read.
        k: between 1 and n.
    """
    try:
        if _MOST * k <= len(upper):
            return _partial_eigenpairs(np.array(upper), k)
    except LapackError:
        pass
    values, vectors = eigenpairs(upper)
    return values[: -k - 1 : -1], vectors[:, : -k - 1 : -1]


def _partial_eigenpairs(upper: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Tridiagonalise (overwriting ``upper``), solve for the top of the spectrum, transform back."""
    n, letter, dtype = len(upper), _letter(upper.dtype.type), upper.dtype.type
    tridiagonalise, transform = (_routine("cython_lapack", letter + name) for name in ("sytrd", "ormtr"))
    diagonal, off_diagonal, tau = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype)
    work = np.empty(_BLOCK * n, dtype)
    tridiagonalise(b"L", n, upper, n, diagonal, off_diagonal, tau, work, len(work), _Information())
    few = _FEW * k <= n
    values, vectors = (_by_representations if few else _by_inverse_iteration)(diagonal, off_diagonal, k)
    transform(b"L", b"L", b"N", n, k, upper, n, tau, vectors, n, work, len(work), _Information())
    return values[::-1], vectors[::-1].T


def _by_representations(diagonal: np.ndarray, off_diagonal: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues, ascending, and eigenvectors (k, n) of a tridiagonal matrix, which is overwritten."""
    n, dtype = len(diagonal), diagonal.dtype.type
    values, vectors, support = np.empty(n, dtype), np.empty((k, n), dtype), np.empty(2 * k, np.intc)
    work, integers = np.empty(18 * n, dtype), np.empty(10 * n, np.intc)
    unused, found, high_accuracy = _real(0, dtype), ctypes.c_int(), ctypes.c_int(1)
    _routine("cython_lapack", _letter(dtype) + "stemr")(
        b"V", b"I", n, diagonal, off_diagonal, unused, unused, n - k + 1, n, found, values, vectors, n, k, support,
        high_accuracy, work, len(work), integers, len(integers), _Information(),
    )  # fmt: skip
    if found.value != k:
        raise LapackError(f"{found.value} of {k} eigenvalues found")
    return values[:k], vectors


def _by_inverse_iteration(diagonal: np.ndarray, off_diagonal: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`_by_representations`; faster for more than a few vectors, but quadratic in their number."""
    n, dtype = len(diagonal), diagonal.dtype.type
    values, rest = diagonal.copy(), off_diagonal.copy()
    _routine("cython_lapack", _letter(dtype) + "sterf")(n, values, rest, _Information())
    values, vectors = values[-k:], np.empty((k, n), dtype)
    block, end, failed = np.ones(n, np.intc), np.full(1, n, np.intc), np.empty(k, np.intc)
    work, integers = np.empty(5 * n, dtype), np.empty(n, np.intc)
    _routine("cython_lapack", _letter(dtype) + "stein")(
        n, diagonal, off_diagonal, k, values, block, end, vectors, n, work, integers, failed, _Information()
    )
    return values, vectors


class _Information(ctypes.c_int):
    """LAPACK's last argument: 0 if all went well."""


@cache
def _routine(module: str, name: str) -> _Routine:
    """A BLAS or LAPACK routine that is called without the interpreter lock, with arrays, bytes, ints and ctypes."""
    try:
        capsule = importlib.import_module(f"scipy.linalg.{module}").__pyx_capi__[name]
    except (ImportError, AttributeError, KeyError) as error:
        raise LapackError(f"SciPy has no {module}.{name}") from error
    signature = _capsule_name(capsule)
    if b"int *" not in signature:
        raise LapackError(f"{name} takes integers of an unknown size")
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(b",") + 1))(
        _capsule_pointer(capsule, signature)
    )

    def call(*arguments: Any) -> None:
        owned = [ctypes.c_int(argument) if isinstance(argument, int) else argument for argument in arguments]
        function(*map(_pointer, owned))
        last = owned[-1]
        if isinstance(last, _Information) and last.value:
            raise LapackError(f"{name} failed with {last.value}")

    return call


def _pointer(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    if isinstance(argument, bytes):
        return ctypes.cast(ctypes.c_char_p(argument), ctypes.c_void_p)
    return ctypes.addressof(argument)


_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _real(value: float, dtype: type) -> ctypes.c_double | ctypes.c_float:
    return ctypes.c_double(value) if dtype is np.float64 else ctypes.c_float(value)


def _letter(dtype: type) -> str:
    return "d" if dtype is np.float64 else "s"
