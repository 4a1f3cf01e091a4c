"""Choosing alpha, the scale of a merged delta, and the kept rank, on validation images.

``search`` as the value of a parameter asks for it; this module alone knows that word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from .candidate import Candidate
from .checkpoint import Checkpoint
from .errors import MethodError
from .methods import get_method
from .progress import Progress

if TYPE_CHECKING:  # it loads open_clip, which only a search needs
    from .evaluate import Evaluator

SEARCH = "search"
ALPHA, RANK = "alpha", "rank_fraction"

COARSE_STEP, FINE_STEP, LARGEST = 0.2, 0.05, 3.0
PATIENCE = 3  # alphas evaluated at a time; the scan ends when none of the last so many is the best: there is one peak
RANK_STEPS = (2.0, 2.0**0.5)  # factors between kept ranks, coarse and fine
_MOST = {ALPHA: 21, RANK: 10}  # settings tried, about

Merge = Callable[[dict[str, Any]], Checkpoint]
"""Merges with these parameters of the method."""


class Setting(NamedTuple):
    """What is searched; a rank of None is the method's own, 1 / tasks."""

    alpha: float
    rank: float | None


@dataclass(frozen=True)
class Found:
    """What a search has chosen."""

    parameters: dict[str, Any]
    """The method's, with numbers in place of ``search``."""
    tried: dict[Setting, float] = field(default_factory=dict)
    """Setting -> mean validation accuracy."""

    @property
    def alpha_curve(self) -> dict[float, float]:
        """alpha -> mean validation accuracy, at the rank that was chosen."""
        rank = self.parameters.get(RANK)
        return dict(sorted((one.alpha, accuracy) for one, accuracy in self.tried.items() if one.rank == rank))


def searched(parameters: Mapping[str, Any]) -> list[str]:
    """Which parameters are to be searched."""
    return [name for name, value in parameters.items() if value == SEARCH]


def check_parameters(method: str, parameters: Mapping[str, Any]) -> None:
    """Check a method's parameters, those to be searched among them.

    Raises:
        MethodError: unknown method, a parameter that it does not take, or one that cannot be searched.
    """
    for name in searched(parameters):
        if name not in (ALPHA, RANK):
            raise MethodError(f"{name} = {SEARCH}: only {ALPHA} and {RANK} can be searched; give a value.")
    get_method(method).parse(_numbers(parameters))


def _numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with where the search starts in place of ``search``."""
    start = {ALPHA: 1.0, RANK: None}
    return {name: start[name] if value == SEARCH else value for name, value in parameters.items()}


def scaled(base: Checkpoint, merged: Checkpoint, alpha: float) -> Checkpoint:
    """base + alpha · (merged − base), each tensor computed when it is read; integers are the base's."""

    def read(name: str):  # type: ignore[no-untyped-def]
        start = base[name]
        return start + alpha * (merged[name] - start) if start.is_floating_point() else start

    return Checkpoint(base.specs, read)


def search(
    evaluator: Evaluator,
    base: Checkpoint,
    merge: Merge,
    method: str,
    parameters: Mapping[str, Any],
    tasks: int,
    progress: Progress | None = None,
) -> Found:
    """The searched parameters of best mean accuracy, coarse to fine; of equals the smallest alpha and rank.

    First alpha in steps of 0.2 until it has passed its peak, then the rank by factors of 2 and √2 around the best, at
    last alpha in steps of 0.05 around the best. One model is updated in place; several alphas share a pass over the
    images. Where the merged delta is linear in alpha, it is merged once a rank.

    Args:
        evaluator: on the validation split; never on test.
        base: what alpha 0 would give.
        merge: makes a merged checkpoint; called with the parameters, all of them numbers.
        method: a name of :func:`tsvlib.methods.method_names`.
        parameters: of the method, some of them ``search``.
        tasks: how many are merged.
        progress: called with (setting just tried, number tried, about how many there will be).

    Raises:
        MethodError: as :func:`check_parameters`; or the evaluator is on test images.
    """
    check_parameters(method, parameters)
    names, start = searched(parameters), _numbers(parameters)
    if evaluator.split != "validation":
        raise MethodError(f"{SEARCH}: needs validation images, not the {evaluator.split} split.")
    if not names:
        return Found(dict(parameters))
    linear = get_method(method).parse(start).is_linear_in_alpha
    scan = _Scan(evaluator, _Merged(base, merge, start, linear), sum(_MOST[name] for name in names), progress)
    first = Setting(start.get(ALPHA, 1.0), start.get(RANK))
    if ALPHA in names:
        _scan_alpha(scan, first.rank)
    else:
        scan.attempt([first])
    if RANK in names:
        for step in RANK_STEPS:
            _climb_rank(scan, step, tasks)
    if ALPHA in names:
        alpha, rank = scan.best
        reach = round(COARSE_STEP / FINE_STEP) - 1
        around = [round(alpha + FINE_STEP * step, 2) for step in range(-reach, reach + 1)]
        scan.attempt(Setting(value, rank) for value in around if value > 0)
    best = scan.best
    chosen = {name: {ALPHA: best.alpha, RANK: best.rank}[name] for name in names}
    return Found({**parameters, **chosen}, scan.tried)


def _scan_alpha(scan: _Scan, rank: float | None) -> None:
    alphas = [round(COARSE_STEP * step, 2) for step in range(1, round(LARGEST / COARSE_STEP) + 1)]
    for first in range(0, len(alphas), PATIENCE):
        wave = alphas[first : first + PATIENCE]
        scan.attempt(Setting(alpha, rank) for alpha in wave)
        if scan.best.alpha < wave[0]:
            return


def _climb_rank(scan: _Scan, step: float, tasks: int) -> None:
    """Try both neighbours of the best rank until neither is better."""
    while True:
        alpha, rank = scan.best
        around = [round((rank or 1 / tasks) * factor, 6) for factor in (1 / step, step)]
        new = [one for one in (Setting(alpha, min(1.0, value)) for value in around) if one not in scan.tried]
        if not new:
            return
        scan.attempt(new)


@dataclass
class _Merged:
    """Merged models of any setting; the last one is kept, and what it was scaled from."""

    base: Checkpoint
    merge: Merge
    parameters: dict[str, Any]
    linear: bool
    _given: tuple[Setting, Checkpoint] | None = None
    _merged: tuple[Setting, Checkpoint] | None = None

    def __call__(self, setting: Setting) -> Checkpoint:
        if self._given is None or self._given[0] != setting:
            at = Setting(1.0, setting.rank) if self.linear else setting
            if self._merged is None or self._merged[0] != at:
                self._given = self._merged = None  # one model in memory, not two
                rank = {} if at.rank is None else {RANK: at.rank}
                self._merged = at, self.merge({**self.parameters, ALPHA: at.alpha, **rank})
            merged = self._merged[1]
            self._given = setting, scaled(self.base, merged, setting.alpha) if self.linear else merged
        return self._given[1]


class _Scan:
    """Mean accuracy of the settings tried so far."""

    def __init__(self, evaluator: Evaluator, merged: _Merged, most: int, progress: Progress | None) -> None:
        self._evaluator = evaluator
        self._most = most
        self._merged = merged
        self._progress = progress
        self.tried: dict[Setting, float] = {}

    @property
    def best(self) -> Setting:
        return min(self.tried, key=lambda one: (-self.tried[one], one.alpha, one.rank or 0.0))

    def attempt(self, settings: Iterable[Setting]) -> None:
        """Evaluate those that are new, in one pass over the images."""
        new = {str(tuple(one)): one for one in settings if one not in self.tried}
        candidates = [Candidate(name, lambda task, one=one: self._merged(one)) for name, one in new.items()]  # type: ignore[misc]
        found = self._evaluator.accuracies_of(candidates)
        for name, setting in new.items():
            self.tried[setting] = fmean(found[name].values())
            if self._progress:
                rank = "" if setting.rank is None else f" rank {setting.rank:.3f}"
                self._progress(f"{setting.alpha:.2f}{rank}", len(self.tried), max(self._most, len(self.tried)))
