"""Choosing alpha, the scale of a merged delta, on validation images."""

from __future__ import annotations

from collections.abc import Callable

from .checkpoint import Checkpoint
from .evaluate import Evaluator, mean

COARSE_STEP, FINE_STEP, LARGEST = 0.2, 0.05, 2.0


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
    progress: Callable[[str, int, int], None] | None = None,
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
    coarse = [round(COARSE_STEP * i, 2) for i in range(1, round(LARGEST / COARSE_STEP) + 1)]
    reach = round(COARSE_STEP / FINE_STEP) - 1
    curve: dict[float, float] = {}

    def best() -> float:
        return min(curve, key=lambda alpha: (-curve[alpha], alpha))

    def try_all(alphas: list[float], total: int) -> None:
        for alpha in alphas:
            weights = scaled(base, merged, alpha)
            curve[alpha] = mean(evaluator.accuracies(lambda task, weights=weights: weights))  # type: ignore[misc]
            if progress:
                progress(f"{alpha:.2f}", len(curve), total)

    try_all(coarse, len(coarse) + 2 * reach)
    centre = best()
    fine = [round(centre + FINE_STEP * i, 2) for i in range(-reach, reach + 1) if i]
    try_all([alpha for alpha in fine if alpha > 0], len(coarse) + len(fine))
    return best(), dict(sorted(curve.items()))
