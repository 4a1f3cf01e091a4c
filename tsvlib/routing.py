"""Routers: which task an image belongs to, told from what one layer of the base makes of it.

* :class:`ResidualRouter` needs no data: the task whose right singular vectors of the layer leave the least of its input
  (MASS, arXiv 2504.05342, has the same residual).
* :class:`DiscriminantRouter` is fitted to some images of each task: a linear discriminant of random features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .archive import Archive
from .checkpoint import Checkpoint, TensorSpec, open_checkpoint, write_checkpoint
from .errors import ArchiveError, DataError, did_you_mean

RANDOM_FEATURES = 3072
SHRINKAGE = 1e-3  # of the covariance towards a multiple of the identity


class Router(Protocol):
    """Scores tasks by activations."""

    @property
    def tasks(self) -> list[str]: ...

    @property
    def layer(self) -> str:
        """The module whose input it looks at, such as ``transformer.resblocks.11.mlp.c_fc`` of the image encoder."""

    def scores(self, activations: Tensor) -> Tensor:
        """Of inputs (images, d) of the layer: (images, tasks), comparable within a row; a softmax makes weights."""


@dataclass(frozen=True)
class ResidualRouter:
    """How much of an activation lies in the span of each task's right singular vectors."""

    tasks: list[str]
    layer: str
    bases: list[Tensor]
    """Of each task, orthonormal rows (k, d); the same k, so that no task is favoured."""

    @classmethod
    def of(cls, archive: Archive, layer: str, prefix: str = "visual.") -> ResidualRouter:
        """From what an archive holds of a layer.

        Raises:
            ArchiveError: it does not hold the layer's singular vectors for every task.
        """
        name = f"{prefix}{layer}.weight"
        if name not in archive.base_table.specs:
            matrices = [key for key, spec in archive.base_table.specs.items() if len(spec.shape) == 2]
            raise ArchiveError(f"{archive.path}: no parameter {name!r}.{did_you_mean(name, matrices)}")
        found = {task: archive.factors(task, name)[0] for task in archive.tasks}
        if lacking := [task for task, factors in found.items() if factors is None]:
            raise ArchiveError(
                f"{archive.path}: holds no singular vectors of {name!r} for {', '.join(lacking)} (zero, or stored "
                "whole). Choose another layer."
            )
        rows = [torch.linalg.qr(factors.Vh.T).Q.T for factors in found.values() if factors]
        rank = min(len(one) for one in rows)
        return cls(list(found), layer, [one[:rank] for one in rows])

    def scores(self, activations: Tensor) -> Tensor:
        unit = nn.functional.normalize(activations.float(), dim=1)
        inside = torch.stack([(unit @ basis.T).square().sum(1) for basis in self.bases], 1)
        return -(1 - inside).clamp(min=0).sqrt()


@dataclass(frozen=True)
class DiscriminantRouter:
    """Log-likelihoods, up to what is common to all tasks, under Gaussians of one covariance.

    Of the standardised activations and of random ReLU features of them, so that tasks need not be linearly separable.
    """

    tasks: list[str]
    layer: str
    weights: Tensor
    """(d + random features, tasks)."""
    offsets: Tensor
    """(tasks)."""
    mean: Tensor
    """Of each activation, (d)."""
    scale: Tensor
    """Standard deviation of each activation, (d)."""

    @classmethod
    def fit(
        cls,
        activations: Mapping[str, Tensor],
        layer: str,
        shrinkage: float = SHRINKAGE,
        random_features: int = RANDOM_FEATURES,
    ) -> DiscriminantRouter:
        """From some activations (images, d) of each task; each task counts alike, however many it gives.

        Raises:
            DataError: a task without images.
        """
        for task, rows in activations.items():
            if not len(rows):
                raise DataError(f"task {task!r}: no image to fit a router to.")
        every = torch.cat([rows.float() for rows in activations.values()])
        mean, scale = every.mean(0), every.std(0, correction=0).clamp(min=1e-6)
        count = min(random_features, len(every) // 4)  # more could not be told from few images
        expanded = [_expanded(rows, mean, scale, count) for rows in activations.values()]
        means = torch.stack([rows.mean(0) for rows in expanded])
        covariance = torch.zeros(means.shape[1], means.shape[1])
        for rows, centre in zip(expanded, means, strict=True):
            covariance += (rows - centre).T @ (rows - centre) / (len(rows) * len(expanded))
        covariance += shrinkage * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
        weights = torch.linalg.solve(covariance.double(), means.T.double())
        offsets = -0.5 * (weights * means.T).sum(0)
        return cls(list(activations), layer, weights.float(), offsets.float(), mean, scale)

    def scores(self, activations: Tensor) -> Tensor:
        random_features = len(self.weights) - len(self.mean)
        return _expanded(activations, self.mean, self.scale, random_features) @ self.weights + self.offsets

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        tensors = {"weights": self.weights, "offsets": self.offsets, "mean": self.mean, "scale": self.scale}
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        write_checkpoint(path, specs, tensors.items(), {"kind": "router", "layer": self.layer, "tasks": self.tasks})

    @classmethod
    def load(cls, file: str | Path | Checkpoint) -> DiscriminantRouter:
        """Read what :meth:`save` wrote.

        Raises:
            ArchiveError: it is no router.
        """
        opened = file if isinstance(file, Checkpoint) else open_checkpoint(file)
        if opened.metadata.get("kind") != "router":
            raise ArchiveError(f"{opened.source}: is no router. Make one with 'tsv route --save'.")
        parts = (opened[name] for name in ("weights", "offsets", "mean", "scale"))
        return cls(opened.metadata["tasks"], opened.metadata["layer"], *parts)


def _expanded(activations: Tensor, mean: Tensor, scale: Tensor, count: int) -> Tensor:
    """Standardised activations and so many random ReLU features of them, (images, d + count)."""
    rows = (activations.float() - mean) / scale
    random = np.random.RandomState(0)  # NumPy promises that its stream never changes, so it need not be stored
    directions = torch.from_numpy(random.standard_normal((len(mean), count)) / len(mean) ** 0.5).float()
    shifts = torch.from_numpy(random.standard_normal(count) / 2).float()
    return torch.cat([rows, (rows @ directions + shifts).relu()], 1)


def chosen_tasks(scores: Tensor, most: int = 1, threshold: float = 0.2, temperature: float = 1.0) -> list[list[int]]:
    """The tasks to use for each image, best first: those whose softmax weight reaches a threshold, at least one.

    Args:
        scores: (images, tasks).
        most: tasks at most.
        threshold: least weight, in (0, 1).
        temperature: divides the scores.
    """
    weights, order = (scores / temperature).softmax(1).sort(1, descending=True)
    enough = (weights[:, :most] >= threshold).sum(1).clamp(min=1)
    return [row[:count].tolist() for row, count in zip(order, enough.tolist(), strict=True)]


def last_layer(encoder: nn.Module, kind: str) -> str:
    """The name of the last module that ends in ``kind``, such as ``mlp.c_fc``.

    Raises:
        DataError: the encoder has none.
    """
    names = [name for name, _ in encoder.named_modules() if name.endswith(kind)]
    if not names:
        raise DataError(f"the image encoder has no module {kind!r}; name the layer to route by.")
    return names[-1]


def layer_inputs(encoder: nn.Module, layer: str, batches: Sequence[Tensor]) -> Tensor:
    """What a module of an encoder is given for images, (images, d): of the class token, where there are tokens.

    Args:
        encoder: the image encoder, as :class:`tsvlib.clip.Clip` holds it; with the base's weights.
        layer: a module of it.
        batches: preprocessed images.

    Raises:
        DataError: the encoder has no such module.
    """
    modules = dict(encoder.named_modules())
    if layer not in modules:
        raise DataError(f"the image encoder has no module {layer!r}.{did_you_mean(layer, modules)}")
    found: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0][:, 0] if given[0].ndim == 3 else given[0])

    hook = modules[layer].register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            for batch in batches:
                encoder(batch)
    finally:
        hook.remove()
    return torch.cat(found).float().clone()
