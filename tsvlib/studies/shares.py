"""Shares of the rank, as studies are told them."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import StudyError

RANK = "rank_fraction"


def checked_shares(shares: Iterable[float]) -> list[float]:
    """Distinct shares of the rank, ascending.

    Raises:
        StudyError: one that is beyond the matrices' shapes, or keeps nothing.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise StudyError(
                f"{RANK} = {share:g}: a matrix of shape (m, n) has min(m, n) singular triplets; give the share of them "
                "to keep, above 0 and at most 1."
            )
    return sorted(set(shares))
