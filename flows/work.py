"""What of a flow's results was found again, and what was computed: the summary of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from prefect.runtime import flow_run

from tasks.models import Factorised, Made, Work
from tsvlib.cache import describe_work

log = logging.getLogger(__name__)


def of_this_run(made: Made, factorised: Sequence[Factorised] = ()) -> Made:
    """The same with the work of this flow run: nothing was computed for what a task of an earlier run has made."""
    found = _seen_from_here(made)
    if factorised:  # merging reads what factorising has just kept; that is no reuse
        found["factors"] = added([*map(_seen_from_here, factorised), _computed(found)])["factors"]
    found["results"] = {"reused": int(not _is_new(made)), "computed": int(_is_new(made))}
    return made.model_copy(update={"work": {kind: counts for kind, counts in found.items() if any(counts.values())}})


def added(every: Iterable[Work]) -> Work:
    """The sum over several."""
    total: Work = {}
    for work in every:
        for kind, counts in work.items():
            sums = total.setdefault(kind, {"reused": 0, "computed": 0})
            for what, count in counts.items():
                sums[what] += count
    return total


def log_work(what: str, made: Made) -> None:
    """Say it in the log."""
    log.info("%s: found again %s", what, describe_work(made.work) or "nothing")


def _is_new(result: Made | Factorised) -> bool:
    return result.flow_run == str(flow_run.id or "")


def _seen_from_here(result: Made | Factorised) -> Work:
    if _is_new(result):
        return {kind: dict(counts) for kind, counts in result.work.items()}
    return {kind: {"reused": sum(counts.values()), "computed": 0} for kind, counts in result.work.items()}


def _computed(work: Work) -> Work:
    return {"factors": {"reused": 0, "computed": work.get("factors", {}).get("computed", 0)}}
