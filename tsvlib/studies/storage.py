"""Accuracy against the bytes that it takes to keep every task."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from ..candidate import Candidate, fine_tuned, zero_shot
from ..masked import density_within
from .accuracy import accuracy_rows, doubts, means, shown_means
from .plots import draw_means, new_figure
from .registry import Options, Outcome, study
from .shares import RANK, checked_shares
from .stored import MAGNITUDE_MASK, TALL_MASK, TSV_C, is_stored
from .subject import Subject
from .variant import Variant, parse_variants


class StorageOptions(Options):
    """Which ways of keeping the tasks, at which sizes."""

    method: list[str] = Field(
        [TSV_C, MAGNITUDE_MASK, TALL_MASK, "tsv-m"], min_length=1, description="ways of keeping tasks, or merge methods"
    )
    rank_fraction: list[float] | None = Field(
        None,
        min_length=1,
        description="shares kept by tsv-c; magnitude masks get the same bytes; by default 1/4T … 2/T",
    )


@study("storage", paper="Fig. 16 (App. B.3)", options=StorageOptions)
def storage(subject: Subject, options: StorageOptions) -> Outcome:
    """What accuracy do how many bytes buy, by archives, by masks, by one merged model?"""
    variants = parse_variants(options.method)
    tasks = len(subject.tasks)
    shares = checked_shares(options.rank_fraction or [min(1.0, factor / tasks) for factor in (0.25, 0.5, 1, 2)])
    archives = subject.candidates(Variant(TSV_C, {RANK: share}) for share in shares)
    sizes = [one.bytes for one in archives]
    wanted = [(one, sized) for one in variants for sized in _at_sizes(one, subject, shares, sizes)]
    candidates = subject.candidates(sized for _, sized in wanted)
    references = [fine_tuned(subject.suite), zero_shot(subject.suite)]
    methods = [one.name for one in references] + [one.name for one, _ in wanted]
    predictions = subject.measure(candidates)
    dense = references[1].bytes
    table = pd.DataFrame(
        row
        for method, one in zip(methods, [*references, *candidates], strict=True)
        for row in accuracy_rows(predictions, one.name, method=method, candidate=one.name, **_bytes(one, method, dense))
    )
    shown = shown_means(table, ["candidate", "bytes_ratio", "total_ratio"])
    for name, heading in (("bytes_ratio", "stored (dense encoders)"), ("total_ratio", "with the base")):
        shown[name] = [f"{value:.2f}" for value in shown[name]]
        shown = shown.rename(columns={name: heading})
    return Outcome(table, shown, _plot(table), doubts(predictions))


def _at_sizes(variant: Variant, subject: Subject, shares: list[float], sizes: list[int]) -> list[Variant]:
    """A variant at every size, where it has sizes and none is given; masks at the bytes of archives of these shares."""
    if variant.method == TSV_C and RANK not in variant.parameters:
        return [variant.given(rank_fraction=share) for share in shares]
    if variant.method == MAGNITUDE_MASK and "density" not in variant.parameters:
        return [variant.given(density=density_within(subject.base, subject.tasks, nbytes)) for nbytes in sizes]
    return [variant]


def _bytes(one: Candidate, method: str, dense: int) -> dict[str, float]:
    """Bytes, their ratio to a dense encoder, and that of all it takes to serve every task, the base included."""
    ratio = one.bytes / dense
    return {"bytes": one.bytes, "bytes_ratio": ratio, "total_ratio": ratio + is_stored(method.partition(",")[0])}


def _plot(table: pd.DataFrame) -> Figure:
    """A line for each way that has several sizes, a point for the others."""
    figure, (axes,) = new_figure(width=7)
    draw_means(axes, table, "total_ratio", "method")
    axes.set(xlabel="storage for all tasks, the base included (dense encoders)", xscale="log")
    ticks = [1, 1.5, 2, 3, 5, 8, 14, 20]
    most = means(table)["total_ratio"].max()
    shown = [tick for tick in ticks if tick <= 1.01 * most]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    return figure
