"""Accuracy over the mixed images of all tasks, where a router and not the user says which task each belongs to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .archive import Archive
from .checkpoint import Checkpoint
from .clip import Clip, load_clip
from .errors import ArchiveError, TSVWarning
from .factors import Factors, factorise
from .head import zero_shot_head
from .merging import merge
from .progress import Progress
from .routing import DiscriminantRouter, ResidualRouter, Router, chosen_tasks, last_layer, layer_inputs
from .singular_vectors import Mode
from .suite import Suite
from .task_vector import TaskMatrix

_BATCH = 128


@dataclass(frozen=True)
class Routed:
    """What routing gave over the mixed stream; shares of all images of a task, 0 to 1."""

    routing: dict[str, float]
    """Task -> images whose best task is their own."""
    end: dict[str, float]
    """Task -> images that got their own task's right class."""
    oracle: dict[str, float]
    """Task -> the same, had the router always been right."""
    models: int
    """Different models that the stream took."""

    @property
    def points_lost(self) -> float:
        """Mean end accuracy below the oracle's, in points."""
        return 100 * sum(self.oracle[task] - self.end[task] for task in self.end) / len(self.end)


class RoutedEvaluator:
    """Evaluates routers of one archive on one suite; images are decoded once.

    Raises:
        ArchiveError: the archive lacks a task of the suite.
    """

    def __init__(self, suite: Suite, archive: Archive, base: Checkpoint, split: str = "test") -> None:
        if missing := suite.tasks.keys() - set(archive.tasks):
            raise ArchiveError(f"{archive.path}: has no task {', '.join(sorted(missing))} of suite {suite.name!r}.")
        self.suite, self.archive, self.base, self.split = suite, archive, base, split

    def residual_router(self, layer: str | None = None) -> ResidualRouter:
        """Without data: by the last layer of its kind, if none is given."""
        return ResidualRouter.of(self.archive, layer or last_layer(self._clip.model.visual, "mlp.c_fc"))

    def discriminant_router(self, layer: str | None = None, images: int = 4000) -> DiscriminantRouter:
        """Fitted to at most so many training images of each task."""
        layer = layer or last_layer(self._clip.model.visual, "ln_post")
        self._clip.load_encoder(self.base)
        found = {}
        for task in self.archive.tasks:
            train = self.suite.images(task, "train")
            read = train.read(train.spread(images), self._clip.preprocess).images
            found[task] = layer_inputs(self._clip.model.visual, layer, read.split(_BATCH))
        return DiscriminantRouter.fit(found, layer)

    def evaluate(
        self, router: Router, most: int = 1, threshold: float = 0.2, progress: Progress | None = None
    ) -> Routed:
        """Route every image, and classify it by the model of its task, or of its few tasks merged by TSV-M.

        Args:
            router: of the archive's tasks.
            most: tasks merged for an image at most; the class is that of the largest logit over their heads.
            threshold: see :func:`tsvlib.routing.chosen_tasks`.
            progress: called with (model just used, models done, models in all).
        """
        tasks, pixels, labels, owners = self._stream
        self._clip.load_encoder(self.base)
        scores = router.scores(layer_inputs(self._clip.model.visual, router.layer, pixels.split(_BATCH)))
        best = torch.tensor([tasks.index(router.tasks[i]) for i in scores.argmax(1).tolist()])
        chosen = [tuple(sorted(router.tasks[i] for i in row)) for row in chosen_tasks(scores, most, threshold)]
        right, groups = torch.zeros(len(owners), dtype=torch.bool), sorted(set(chosen))
        for done, group in enumerate(groups, 1):
            rows = torch.tensor([i for i, one in enumerate(chosen) if one == group])
            task, label = self._classify(self.model(group), group, pixels[rows])
            right[rows] = (task == owners[rows]) & (label == labels[rows])
            if progress:
                progress("+".join(group), done, len(groups))
        of = {task: owners == i for i, task in enumerate(tasks)}
        return Routed(
            {task: float((best[mine] == owners[mine]).float().mean()) for task, mine in of.items()},
            {task: float(right[mine].float().mean()) for task, mine in of.items()},
            self.oracle,
            len(groups),
        )

    def model(self, tasks: tuple[str, ...]) -> Mapping[str, Tensor]:
        """The model of one task, or of several merged by TSV-M from the factors that the archive holds."""
        models = {task: self.archive.extract(task, self.base) for task in tasks}
        if len(models) == 1:
            return models[tasks[0]]
        policy = self.archive.key_policy(tasks[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TSVWarning)  # that ranks differ is how budgets are spent
            return merge(self.base, models, "tsv-m", key_policy=policy, factor_source=self._stored_factors)

    @cached_property
    def oracle(self) -> dict[str, float]:
        """Accuracy on each task by its own model."""
        tasks, pixels, labels, owners = self._stream
        found = {}
        for i, task in enumerate(tasks):
            mine = owners == i
            _, label = self._classify(self.model((task,)), (task,), pixels[mine])
            found[task] = float((label == labels[mine]).float().mean())
        return found

    def _stored_factors(self, matrix: TaskMatrix, k: int, mode: Mode) -> Factors:
        """Of rank k, zeros behind those that the archive holds; computed where it holds the whole matrix."""
        found = self.archive.stored_factors(matrix.task, matrix.key)
        if found is None:
            return factorise(matrix, k, mode)
        kept, (m, n) = min(k, found.rank), matrix.shape
        U, S, Vh = torch.zeros(m, k), torch.zeros(k), torch.zeros(k, n)
        U[:, :kept], S[:kept], Vh[:kept] = found.U[:, :kept], found.S[:kept], found.Vh[:kept]
        return Factors(U, S, Vh, key=matrix.key, task=matrix.task)

    def _classify(self, weights: Mapping[str, Tensor], tasks: tuple[str, ...], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The task and its class of the largest logit, for each image."""
        names = self._stream[0]
        self._clip.load_encoder(weights)
        with torch.inference_mode():
            features = torch.cat([F.normalize(self._clip.model.visual(one), dim=-1) for one in pixels.split(_BATCH)])
        of_task = [(features @ self._heads[task].T).max(1) for task in tasks]
        best = torch.stack([one.values for one in of_task], 1).argmax(1)
        label = torch.stack([one.indices for one in of_task], 1).gather(1, best[:, None])[:, 0]
        return torch.tensor([names.index(task) for task in tasks])[best], label

    @cached_property
    def _clip(self) -> Clip:
        return load_clip(self.suite.clip_model, self.suite.clip_weights)

    @cached_property
    def _heads(self) -> dict[str, Tensor]:
        return {
            task: zero_shot_head(self._clip, self.suite.classes(task), self.suite.task(task).templates)
            for task in self.suite.tasks
        }

    @cached_property
    def _stream(self) -> tuple[list[str], Tensor, Tensor, Tensor]:
        """Tasks; and of all their images pixels, labels, and which task each belongs to."""
        tasks, pixels, labels, owners = list(self.suite.tasks), [], [], []
        for i, task in enumerate(tasks):
            images = self.suite.images(task, self.split)
            batch = images.read(torch.arange(len(images)), self._clip.preprocess)
            pixels.append(batch.images)
            labels.append(batch.labels)
            owners.append(torch.full((len(batch.labels),), i))
        return tasks, torch.cat(pixels), torch.cat(labels), torch.cat(owners)
