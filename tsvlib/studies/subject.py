"""What a study looks at: a suite, its images of one split, and models made of its fine-tunes, one at a time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..alpha import search, searched
from ..cache import Cache
from ..candidate import Candidate, fine_tuned, zero_shot
from ..checkpoint import Checkpoint, open_checkpoint
from ..decoded import DECODED_BYTES
from ..errors import TSVWarning
from ..evaluate import Computing, Evaluator
from ..merging import merge
from ..predictions import Predictions
from ..preflight import check_before_evaluation
from ..progress import Progress
from ..protocol import measure
from ..store import digest_of
from ..suite import Suite
from .stored import get_stored, is_stored
from .variant import Variant

log = logging.getLogger(__name__)

Phase = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class Subject:
    """A suite under study.

    Args:
        suite: its base, fine-tunes and images.
        cache: factors, merged matrices and answers are computed once for all variants and studies.
        folder: for archives, while the studies run.
        split: ``test``, or ``validation`` where anything is to be chosen.
        computing: where encoders run, and in what precision.
        decoded_bytes: of decoded images in memory at a time.
        phase: opens what tells of the progress of one phase of the work, by its title.
    """

    suite: Suite
    cache: Cache
    folder: Path
    split: str = "test"
    computing: Computing = field(default_factory=lambda: Computing("cpu"))
    decoded_bytes: int = DECODED_BYTES
    phase: Phase = lambda title: nullcontext()
    _found: dict[str, Variant] = field(default_factory=dict)
    """What has been searched for."""
    _warned: set[str] = field(default_factory=set)

    @cached_property
    def base(self) -> Checkpoint:
        return open_checkpoint(self.suite.base_uri)

    @cached_property
    def tasks(self) -> dict[str, Checkpoint]:
        """Name -> fine-tune."""
        return {task: open_checkpoint(uri) for task, uri in self.suite.checkpoints.items()}

    @cached_property
    def digest(self) -> str:
        """Of the content of base and fine-tunes, with their names."""
        tuned = [f"{task} {one.digest}" for task, one in self.tasks.items()]
        return digest_of("\n".join([self.base.digest, *tuned]))

    @cached_property
    def _held(self) -> _HeldModel:
        return _HeldModel()

    def first(self, count: int) -> Subject:
        """The suite of its first so many tasks."""
        if count == len(self.suite.tasks):
            return self
        names = list(self.suite.tasks)[:count]
        tasks = {name: self.suite.task(name) for name in names}
        return replace(
            self, suite=self.suite.model_copy(update={"tasks": tasks}).at(self.suite.folder), _found={}, _warned=set()
        )

    def check(self) -> None:
        """Check that all fits and that images are there, before anything is merged.

        Raises:
            MismatchError: model, base and fine-tunes do not belong together.
            DataError: a task has no images of the split.
        """
        check_before_evaluation(self.suite)
        for task in self.suite.tasks:
            self.suite.images(task, self.split)

    def measure(self, candidates: Iterable[Candidate]) -> Predictions:
        """Answers of the base, the fine-tuned models and the candidates, in one pass over the images.

        Candidates of one name are one candidate.
        """
        named = {one.name: one for one in candidates}
        with self.phase("evaluate") as progress:
            return measure(
                self.suite,
                [zero_shot(self.suite), fine_tuned(self.suite), *named.values()],
                self.split,
                computing=self.computing,
                cache=self.cache,
                decoded_bytes=self.decoded_bytes,
                progress=progress,
            )

    def resolved(self, variant: Variant) -> Variant:
        """With numbers, chosen on validation images, in place of ``search``.

        Raises:
            DataError: there are no validation images.
        """
        if not searched(variant.parameters):
            return variant
        if variant.name not in self._found:
            evaluator = Evaluator(self.suite, "validation", self.computing, self.cache, self.decoded_bytes)
            with self.phase(f"search {variant.method}") as progress:
                found = search(
                    evaluator,
                    self.base,
                    lambda parameters: self._merged(variant.method, parameters),
                    variant.method,
                    variant.parameters,
                    len(self.tasks),
                    progress,
                )
            self._found[variant.name] = Variant(variant.method, found.parameters)
        return self._found[variant.name]

    def candidates(self, variants: Iterable[Variant]) -> list[Candidate]:
        """What variants make of the fine-tunes; what is to be searched is, first."""
        resolved = [self.resolved(one) for one in variants]
        made = []
        with self.phase("merge") as progress:
            for done, variant in enumerate(resolved, start=1):
                made.append(self._candidate(variant))
                if progress:
                    progress(variant.name, done, len(resolved))
        return made

    def _candidate(self, variant: Variant) -> Candidate:
        if is_stored(variant.method):
            way = get_stored(variant.method)
            return way.make(self, variant.name, way.parse(variant.parameters))

        def model() -> Checkpoint:
            return self._held.get(variant.name, lambda: self._merged(variant.method, variant.parameters))

        digest = model().digest
        merged = Checkpoint(model().specs, lambda key: model()[key], source=variant.name)
        return Candidate(variant.name, lambda task: merged, lambda task: digest, merged.nbytes, digest)

    def _merged(self, method: str, parameters: dict[str, Any]) -> Checkpoint:
        with self._warnings_counted(Variant(method, parameters).name):
            return merge(
                self.base,
                self.tasks,
                method,
                key_policy=self.suite.key_policy,
                cache=self.cache,
                **parameters,
            )

    @contextmanager
    def _warnings_counted(self, name: str) -> Iterator[None]:
        """One line a variant, where a merge by itself warns of every matrix: studies go where formulas end."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TSVWarning)
            yield
        messages = [str(one.message) for one in caught if issubclass(one.category, TSVWarning)]
        if messages and name not in self._warned:
            self._warned.add(name)
            log.warning("%s: not well defined for %d matrices, such as %s", name, len(messages), messages[0])


class _HeldModel:
    """The model that was asked for last; with a cache, making one again costs little more than reading it."""

    def __init__(self) -> None:
        self._name = ""
        self._model: Checkpoint | None = None

    def get(self, name: str, make: Callable[[], Checkpoint]) -> Checkpoint:
        if self._model is None or self._name != name:
            self._model = None  # before the next is made: one in memory, not two
            self._name, self._model = name, make()
        return self._model
