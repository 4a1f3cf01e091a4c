"""MLflow's search syntax over candidates that are at hand: the same words as in its pages, without a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mlflow.entities import LifecycleStage, Metric, Param, Run, RunData, RunInfo, RunInputs, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.search_utils import SearchUtils

from tsvlib.errors import SettingError, did_you_mean
from tsvlib.search import Row

from .run_record import FINISHED

_EXAMPLE = (
    "Write conditions like metrics.accuracy > 0.7 and params.method = 'tsv-m', an order like metrics.accuracy DESC."
)


def search(rows: Sequence[Row], condition: str | None, order: str | None) -> list[str]:
    """Names of the rows that fit, in order; as they came without one.

    Args:
        rows: what to search.
        condition: such as ``metrics.accuracy > 0.7 and params.method = 'tsv-m'``.
        order: such as ``metrics.accuracy DESC``; the name of a metric may stand alone.

    Raises:
        SettingError: they are not understood, or name what no row has.
    """
    runs = [_as_run(place, row) for place, row in enumerate(rows)]
    try:
        if condition:
            for one in SearchUtils.parse_search_filter(condition):
                _check_known(rows, one["type"], one["key"], condition)
        clause = _order_clause(rows, order) if order else None
        if clause:
            kind, key, _ = SearchUtils.parse_order_by_for_search_runs(clause)
            _check_known(rows, kind, key, clause)
        found = SearchUtils.sort(SearchUtils.filter(runs, condition), [clause] if clause else [])
    except MlflowException as error:
        written = " ".join(repr(one) for one in (condition, order) if one)
        why = f"MLflow's search does not understand it: {error.message.rstrip('.')}"
        raise SettingError(f"{written}: {why}. {_EXAMPLE}") from error
    return [run.info.run_name for run in found]


def _as_run(place: int, row: Row) -> Run:
    info = RunInfo(
        run_id=row.name,
        experiment_id="",
        user_id="",
        status=FINISHED,
        start_time=-place,  # MLflow has the latest first where no order is asked for
        end_time=None,
        lifecycle_stage=LifecycleStage.ACTIVE,
        run_name=row.name,
    )
    metrics = [Metric(key, value, 0, 0) for key, value in row.metrics.items()]
    params = [Param(key, value) for key, value in row.parameters.items()]
    tags = [RunTag(key, value) for key, value in row.tags.items()]
    return Run(info, RunData(metrics, params, tags), RunInputs([]))


def _order_clause(rows: Sequence[Row], order: str) -> str:
    """The order as MLflow writes it; a plain word is the name of a metric."""
    name, _, direction = order.strip().partition(" ")
    is_metric = name in _known(row.metrics for row in rows) or re.fullmatch(r"[\w/-]+", name)
    return f"metrics.`{name}` {direction}".strip() if is_metric else order


def _check_known(rows: Sequence[Row], kind: str, key: str, written: str) -> None:
    """A misspelt name would silently fit nothing."""
    known = {
        "metric": _known(row.metrics for row in rows),
        "parameter": _known(row.parameters for row in rows),
        "tag": _known(row.tags for row in rows),
    }.get(kind)
    if known is not None and key not in known:
        raise SettingError(f"{written!r}: no candidate has a {kind} {key!r}.{did_you_mean(key, known)}")


def _known(every: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(key for one in every for key in one))
