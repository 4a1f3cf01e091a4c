"""Choosing alpha, the scale of a merged delta, on validation images."""

from __future__ import annotations

from .checkpoint import Checkpoint
from .evaluate import Evaluator, mean
from .progress import Progress

COARSE_STEP, FINE_STEP, LARGEST = 0.2, 0.05, 3.0
PATIENCE = 3  # the coarse scan ends after so many alphas in a row below the best: accuracy has one peak


def scaled(base: Checkpoint, merged: Checkpoint, alpha: float) -> Checkpoint:
    """base + alpha · (merged − base), each tensor computed when it is read; integers are the base's."""

    def read(name: str):  # type: ignore[no-untyped-def]
        start = base[name]
        return start + alpha * (merged[name] - start) if start.is_floating_point() else start

    return Checkpoint(base.specs, read)


def search_alpha(
    evaluator: Evaluator,
    base: Checkpoint,
    merged: Checkpoint,
    progress: Progress | None = None,
) -> tuple[float, dict[float, float]]:
    """The alpha of best mean accuracy, coarse to fine; the smaller one of equals.

    Args:
        evaluator: on the validation split; never on test.
        base: alpha 0.
        merged: alpha 1.
        progress: called with (alpha just tried, number tried, number to try).

    Returns:
        The alpha, and the curve: alpha -> mean accuracy.
    """
    curve: dict[float, float] = {}

    def attempt(alpha: float, total: int) -> None:
        weights = scaled(base, merged, alpha)
        curve[alpha] = mean(evaluator.accuracies(lambda task: weights))
        if progress:
            progress(f"{alpha:.2f}", len(curve), total)

    def best() -> float:
        return min(curve, key=lambda alpha: (-curve[alpha], alpha))

    coarse = round(LARGEST / COARSE_STEP)
    reach = round(COARSE_STEP / FINE_STEP) - 1
    for step in range(1, coarse + 1):
        attempt(round(COARSE_STEP * step, 2), coarse + 2 * reach)
        if step - round(best() / COARSE_STEP) >= PATIENCE:
            break
    centre, total = best(), len(curve) + 2 * reach
    for step in [*range(-reach, 0), *range(1, reach + 1)]:
        if (alpha := round(centre + FINE_STEP * step, 2)) > 0:
            attempt(alpha, total)
    return best(), dict(sorted(curve.items()))
