"""A cache of factors on disk, keyed by content: the delta's own values, the rank, the mode and the algorithm."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from .checkpoint import TensorSpec, open_checkpoint, tensor_bytes, write_checkpoint
from .errors import CheckpointError
from .factors import Factors, factorise
from .singular_vectors import Mode
from .task_vector import TaskMatrix

ALGORITHM = 2  # raise it when factors come out differently


@dataclass(frozen=True)
class FactorCache:
    """Stands in front of ``factorise``, as a ``FactorSource``: computes each matrix's factors once.

    A file that is missing, truncated or unreadable is computed anew.
    """

    folder: Path

    def __call__(self, matrix: TaskMatrix, k: int, mode: Mode) -> Factors:
        """The top-k factors of one task matrix, read if they are there, else computed and kept."""
        delta = matrix.load()
        if not delta.any():  # nothing worth a file
            return factorise(matrix, k, mode)
        file = self._file(delta, k, mode)
        try:
            return self._read(file, matrix, k)
        except (CheckpointError, SafetensorError, KeyError):
            found = factorise(TaskMatrix(matrix.key, matrix.task, matrix.shape, lambda: delta), k, mode)
            self._write(file, found)
            return found

    def _file(self, delta: Tensor, k: int, mode: Mode) -> Path:
        key = hashlib.sha256(f"{ALGORITHM} {mode} {k} {delta.dtype} {tuple(delta.shape)}\n".encode())
        key.update(tensor_bytes(delta))
        name = key.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    @staticmethod
    def _read(file: Path, matrix: TaskMatrix, k: int) -> Factors:
        stored = open_checkpoint(file)
        U, S, Vh = stored["U"], stored["S"], stored["Vh"]
        if len(S) != k:
            raise CheckpointError(f"{file}: has rank {len(S)}, not {k}.")
        return Factors(
            U, S, Vh, float(stored.metadata["gap"]), stored.metadata["mode"], key=matrix.key, task=matrix.task
        )

    @staticmethod
    def _write(file: Path, factors: Factors) -> None:
        parts = {"U": factors.U, "S": factors.S, "Vh": factors.Vh}
        specs = {name: TensorSpec(tuple(part.shape), part.dtype) for name, part in parts.items()}
        write_checkpoint(file, specs, parts.items(), {"gap": repr(factors.gap), "mode": factors.mode})
