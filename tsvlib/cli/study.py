"""``tsv study``"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from ..cache import Cache
from ..decoded import DECODED_BYTES
from ..errors import StudyError
from ..evaluate import Computing, Precision
from ..interference import Norm
from ..report import told
from ..store import Store
from ..studies import Outcome, Study, Subject, get_study, study_names
from ..studies.writing import PAGE, PlotFormat, files_of, write, write_page
from ..suite import load_suite
from .options import Caching, Printing, output_path
from .printing import progress, show

ALL = "all"


def study(
    name: str | None = None,
    /,
    *,
    suite: str | None = None,
    out: Path | None = None,
    method: Annotated[list[str] | None, Parameter(negative=())] = None,
    rank_fraction: Annotated[list[float] | None, Parameter(negative=())] = None,
    alpha: Annotated[list[str] | None, Parameter(negative=())] = None,
    size: Annotated[list[int] | None, Parameter(negative=())] = None,
    norm: Norm | None = None,
    split: Literal["validation", "test"] = "test",
    format: Annotated[list[PlotFormat] | None, Parameter(negative=())] = None,
    device: str = "auto",
    precision: Precision | None = None,
    decoded_megabytes: Annotated[int, Parameter(validator=Number(gte=1))] = DECODED_BYTES // 2**20,
    force: bool = False,
    caching: Caching | None = None,
    printing: Printing | None = None,
) -> None:
    """Repeat an analysis of the paper on a suite: a table and a plot. Without a name, list the analyses.

    Args:
        name: rank, ablation, alpha, interference, pairs, storage, tasks, or all of them.
        suite: a suite's name or YAML file.
        out: the folder for NAME.csv and NAME.svg; of all, also studies.md.
        method: what to compare, as NAME or NAME,PARAMETER=VALUE,… (such as task-arithmetic,alpha=search); repeat.
        rank_fraction: share of each matrix's singular triplets to keep, in (0, 1]; repeat where a study varies it.
        alpha: scale of the merged delta; repeat; for ablation also search.
        size: number of tasks to merge, the suite's first ones; repeat.
        norm: of the interference matrix.
        split: the images to measure on; choose on validation.
        format: of the plots, svg or png; repeat for both.
        device: cpu, cuda, or auto for a GPU where there is one.
        precision: by default fp32 on the CPU, bf16 on a GPU.
        decoded_megabytes: of decoded images to hold at a time; where all fit, they are decoded once a study.
        force: replace files that exist.
    """
    printing = printing or Printing()
    if name is None:
        return _list(printing)
    given = {"method": method, "rank_fraction": rank_fraction, "alpha": alpha, "size": size, "norm": norm}
    studies, options = _chosen(name, {key: value for key, value in given.items() if value is not None})
    if suite is None:
        raise StudyError(f"study {name!r}: give --suite NAME_OR_FILE, what to study.")
    formats = format or ["svg"]
    loaded = load_suite(suite)
    if out:
        for file in [*(file for one in studies for file in files_of(one.name, formats)), *_page(name)]:
            output_path(out / file, force)
    outcomes: dict[str, Outcome] = {}
    with _kept((caching or Caching()).open()) as (cache, folder):
        computing = Computing(device, precision)
        subject = Subject(
            loaded, cache, folder, split, computing, decoded_megabytes * 2**20, lambda title: progress(title, printing)
        )
        if any(one.on_images for one in studies):
            subject.check()
        for one in studies:
            outcomes[one.name] = one.function(subject, options[one.name])
            if out:
                write(out, one.name, outcomes[one.name], formats)
    if out and _page(name):
        write_page(out, f"Studies of {loaded.name}, {split} images", outcomes, formats[0])
    results = [_as_json(one, outcomes[one.name]) for one in studies]
    about = {"suite": loaded.name, "split": split, "out": str(out) if out else None}
    result = {**about, "studies": results} if name == ALL else {**about, **results[0]}
    show(result, "\n\n".join(_text(one, outcomes[one.name]) for one in studies), printing)


def _list(printing: Printing) -> None:
    studies = [get_study(name) for name in study_names()]
    result = [{"name": one.name, "question": one.question, "paper": one.paper} for one in studies]
    width = max(len(one.name) for one in studies)
    lines = [f"{one.name:{width}}  {one.question}\n{'':{width}}  {one.paper}" for one in studies]
    show({"studies": result}, "\n".join([*lines, "", "tsv study NAME --suite SUITE --out FOLDER"]), printing)


def _chosen(name: str, given: dict[str, Any]) -> tuple[list[Study], dict[str, Any]]:
    """The studies, and the options of each."""
    if name != ALL:
        one = get_study(name)
        return [one], {name: one.parse(given)}
    if given:
        raise StudyError(f"study 'all' takes no {', '.join(given)}: each study has its own; run them one by one.")
    studies = [get_study(name) for name in study_names()]
    return studies, {one.name: one.parse({}) for one in studies}


def _page(name: str) -> list[str]:
    return [PAGE] if name == ALL else []


@contextmanager
def _kept(cache: Cache | None) -> Iterator[tuple[Cache, Path]]:
    """The user's cache or one for the time being, and a folder for archives; both gone at the end."""
    with tempfile.TemporaryDirectory(prefix="tsv-study-") as folder:
        yield cache or Cache(Store(Path(folder) / "store")), Path(folder)


def _as_json(one: Study, outcome: Outcome) -> dict[str, Any]:
    rows = outcome.table.astype(object).where(outcome.table.notna(), None).to_dict("records")
    findings = [finding.as_dict() for finding in outcome.findings]
    return {"study": one.name, "paper": one.paper, "rows": rows, "findings": findings}


def _text(one: Study, outcome: Outcome) -> str:
    table = outcome.shown.to_markdown(index=False, disable_numparse=True)
    return "\n".join([f"{one.name}: {one.question}", f"{one.paper}\n", table, *told(outcome.findings)])
