"""Factors kept in a cache, under the content of the two tensors that they come from."""

from __future__ import annotations

from dataclasses import dataclass

from .cache import Cache, Entry
from .factors import Factors, canonical_rank, factorise
from .singular_vectors import Mode
from .store import digest_of
from .task_vector import TaskMatrix
from .versions import arithmetic, source_digest

KIND = "factors"
CODE = ("tsvlib.singular_vectors", "tsvlib.lapack", "tsvlib.factors", "tsvlib.task_vector")


@dataclass(frozen=True)
class FactorCache:
    """Stands in front of ``factorise``, as a ``FactorSource``: computes each matrix's factors once.

    They are kept at the canonical rank at which they are computed, and every rank that has the same one is a slice of
    them: a ninth task does not make the factors of the other eight useless.
    """

    cache: Cache

    def __call__(self, matrix: TaskMatrix, k: int, mode: Mode) -> Factors:
        """The top-k factors of one task matrix, read if they are there, else computed and kept."""
        rank = canonical_rank(k, matrix.shape, mode)

        def compute() -> Entry:
            found = factorise(matrix, rank, mode)
            about = {"gap": repr(found.gap), "mode": found.mode, "squared_norm": found.squared_norm}
            return Entry({"U": found.U, "S": found.S, "Vh": found.Vh}, about)

        return _factors(self.cache.tensors(KIND, factor_key(matrix, rank, mode), compute), matrix).truncated(k)

    def find(self, matrix: TaskMatrix, k: int, mode: Mode = "exact") -> Factors | None:
        """The top-k factors of one task matrix if they are there; nothing is computed."""
        found = self.cache.find(KIND, factor_key(matrix, canonical_rank(k, matrix.shape, mode), mode))
        return _factors(found, matrix).truncated(k) if found else None


def _factors(entry: Entry, matrix: TaskMatrix) -> Factors:
    parts, about = entry
    gap, norm = float(about["gap"]), about["squared_norm"]
    return Factors(parts["U"], parts["S"], parts["Vh"], gap, about["mode"], matrix.key, matrix.task, norm)


def factor_key(matrix: TaskMatrix, rank: int, mode: Mode) -> str:
    """Of the content of the matrix, the code and the libraries that factorise it, rank and mode."""
    return digest_of(f"{KIND} {source_digest(CODE)} {arithmetic()} {mode} {rank} {matrix.content()}")
