"""Singular task interference by layer and depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, field_validator

from ..factor_cache import FactorCache
from ..factors import Factors
from ..interference import Norm, SingularTriplets, interference_of
from ..layers import place_of
from ..task_factors import factors_by_matrix
from .plots import new_figure
from .registry import Options, Outcome, study
from .shares import checked_shares
from .subject import Subject


class InterferenceOptions(Options):
    """Of which triplets, in which norm."""

    rank_fraction: float | None = Field(None, description="share of min(m, n) kept of each task; by default 1 / tasks")
    norm: Norm = Field("entrywise_l1", description="of the interference matrix; the paper's figures fit entrywise_l1")

    @field_validator("rank_fraction", mode="before")
    @classmethod
    def _the_only_one(cls, given: Any) -> Any:
        """Other studies take several, so that the command line hands on a list."""
        return given[0] if isinstance(given, list) and len(given) == 1 else given


@study("interference", paper="Figs. 6 and 14 (STI, Eq. 6)", options=InterferenceOptions, on_images=False)
def interference(subject: Subject, options: InterferenceOptions) -> Outcome:
    """Where in the encoder do the tasks' singular vectors interfere?"""
    table = pd.DataFrame(
        {
            "parameter": factors[0].key,
            **place_of(factors[0].key)._asdict(),
            "rank": factors[0].rank,
            "norm": options.norm,
            "sti": interference_of(triplets_of(factors), options.norm),
        }
        for factors in kept_factors(subject, options.rank_fraction)
    )
    table["layer"] = table["layer"].astype("Int64")
    return Outcome(table, _shown(table), _plot(table, options.norm))


def kept_factors(subject: Subject, rank_fraction: float | None) -> Iterator[list[Factors]]:
    """The factors of all tasks for each matrix, from the cache.

    Raises:
        StudyError: a share that is beyond the matrices' shapes.
    """
    if rank_fraction is not None:
        checked_shares([rank_fraction])
    with subject.phase("factorise") as progress:
        yield from factors_by_matrix(
            subject.base,
            subject.tasks,
            rank_fraction=rank_fraction,
            key_policy=subject.suite.key_policy,
            source=FactorCache(subject.cache),
            progress=progress,
        )


def triplets_of(factors: list[Factors]) -> list[SingularTriplets]:
    return [(one.U, one.S, one.Vh) for one in factors]


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """A row a layer, a column a kind of matrix; what stands outside the layers has rows of its own."""
    within = table[table["layer"].notna()]
    rows = [
        {"layer": str(layer), **dict(zip(one["kind"], one["sti"], strict=True)), "sum": one["sti"].sum()}
        for layer, one in within.groupby("layer")
    ]
    rows += [{"layer": one.kind, "sum": one.sti} for one in table[table["layer"].isna()].itertuples()]
    shown = pd.DataFrame([*rows, {"layer": "all", "sum": table["sti"].sum()}])
    return shown.set_index("layer").map(lambda value: "" if pd.isna(value) else f"{value:,.0f}").reset_index()


def _plot(table: pd.DataFrame, norm: str) -> Figure:
    """Bars of the layers, divided by kind of matrix; and of what stands outside."""
    within, outside = table[table["layer"].notna()], table[table["layer"].isna()]
    layers = sorted(set(within["layer"]))
    figure, (axes,) = new_figure(width=3.5 + 0.45 * (len(layers) + len(outside)))
    floor = dict.fromkeys(layers, 0.0)
    for kind in dict.fromkeys(within["kind"]):
        heights = within[within["kind"] == kind].groupby("layer")["sti"].sum()
        there = [layer for layer in layers if layer in heights.index]
        places = [layers.index(layer) for layer in there]
        axes.bar(places, heights[there], bottom=[floor[layer] for layer in there], label=kind)
        floor |= {layer: floor[layer] + heights[layer] for layer in there}
    places = [len(layers) + number for number in range(len(outside))]
    axes.bar(places, outside["sti"], color="grey", label="outside the layers")
    axes.set_xticks(range(len(layers) + len(outside)), [*map(str, layers), *map(_short, outside["kind"])])
    axes.set(xlabel="layer", ylabel=f"singular task interference ({norm})")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _short(kind: str) -> str:
    return kind.rpartition(".")[2].replace("_", "\n")
