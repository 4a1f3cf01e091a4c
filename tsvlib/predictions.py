"""The record of an evaluation: every candidate's answer to every image, kept beside the summary.

What the summary says is computed from it, and so is what a summary cannot say: whether two candidates differ, and
what is wrong with the data. It is a parquet file with a row an image: split, task, label, and a column of answers for
each candidate (-1 where it was not asked or the image could not be decoded); ``pandas.read_parquet`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .answers import NO_ANSWER, Answers
from .atomic import atomic_write
from .candidate import FINE_TUNED
from .errors import DataError
from .guard import (
    Count,
    Finding,
    check_class_order,
    check_leak,
    check_one_class,
    check_reference,
    check_split_size,
)
from .statistics import Correct, mcnemar

_HEADER = b"tsvlib"
_FIXED = ["split", "task", "label"]


@dataclass(frozen=True)
class Predictions:
    """Answers of candidates on the tasks of a suite."""

    suite: str
    split: str
    """That accuracies are of; answers of the fine-tuned models on validation images may be there too."""
    classes: Mapping[str, list[str]]
    labels: Mapping[str, Answers]
    """Split -> task -> true classes."""
    answers: Mapping[str, Mapping[str, Answers]]
    """Split -> candidate -> task -> answers."""
    expected_sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Task -> split -> images that it should have, of the splits of which that is known."""
    origins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Candidate -> its kind, digest and parameters, the method among them; older records have none."""

    @property
    def tasks(self) -> list[str]:
        return list(self.classes)

    @property
    def candidates(self) -> list[str]:
        return list(self.answers[self.split])

    def correct(self, candidate: str, split: str | None = None) -> Correct:
        """Task -> whether each image was answered rightly, without those that could not be decoded.

        Raises:
            DataError: there is no such candidate.
        """
        split = split or self.split
        if candidate not in self.answers.get(split, {}):
            raise DataError(
                f"{candidate!r}: not among the candidates that were evaluated: {', '.join(self.candidates)}."
            )
        found = self.answers[split][candidate]
        return {task: (found[task] == self.labels[split][task])[found[task] != NO_ANSWER] for task in self.classes}

    def findings(self) -> list[Finding]:
        """All that the guard finds wrong, by task."""
        return [finding for task in self.tasks for finding in self._findings(task)]

    def _findings(self, task: str) -> list[Finding]:
        found: list[Finding] = []
        for split, labels in self.labels.items():
            found += check_split_size(task, split, len(labels[task]), self.expected_sizes.get(task, {}).get(split))
        reference = self.correct(FINE_TUNED)[task]
        if self.split == "test" and "validation" in self.answers:
            found += check_leak(
                task, FINE_TUNED, _count(reference), _count(self.correct(FINE_TUNED, "validation")[task])
            )
        for candidate in self.candidates:
            is_reference = candidate == FINE_TUNED
            answers = self.answers[self.split][candidate][task]
            answered = answers != NO_ANSWER
            given, labels_given = answers[answered], self.labels[self.split][task][answered]
            if not is_reference:
                mine = given == labels_given
                p_value = mcnemar(mine, reference)
                found += check_reference(task, candidate, _count(mine), _count(reference), p_value)
            classes = self.classes[task]
            found += check_class_order(task, candidate, labels_given, given, classes, is_reference)
            found += check_one_class(task, candidate, labels_given, given, classes, is_reference)
        return found

    def write(self, path: Path) -> None:
        """Write the parquet file; a few bytes an image and candidate before compression."""
        parts = []
        columns = list(dict.fromkeys(name for found in self.answers.values() for name in found))
        for split, labels in self.labels.items():
            for task, of_task in labels.items():
                row: dict[str, Any] = {"split": split, "task": task, "label": of_task.astype(np.int32)}
                for name in columns:
                    found = self.answers[split].get(name)
                    row[name] = np.full(len(of_task), NO_ANSWER) if found is None else found[task]
                    row[name] = row[name].astype(np.int32)
                parts.append(pd.DataFrame(row))
        about = {
            "suite": self.suite,
            "split": self.split,
            "classes": dict(self.classes),
            "candidates": {split: list(found) for split, found in self.answers.items()},
            "expected_sizes": {task: dict(sizes) for task, sizes in self.expected_sizes.items()},
            "origins": {name: dict(origin) for name, origin in self.origins.items()},
        }
        table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _HEADER: json.dumps(about)})
        with atomic_write(path) as file:
            pq.write_table(table, file, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Read what ``Predictions.write`` wrote.

    Raises:
        DataError: missing, or no such file.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no predictions there. 'tsv evaluate --out SUMMARY.json' writes SUMMARY.parquet beside it; name "
            "another place with --predictions."
        )
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[_HEADER])
        frame = table.to_pandas()
        by_split = {split: frame[frame["split"] == split] for split in about["candidates"]}
        labels = {split: _by_task(rows, "label", about["classes"]) for split, rows in by_split.items()}
        answers = {
            split: {name: _by_task(by_split[split], name, about["classes"]) for name in names}
            for split, names in about["candidates"].items()
        }
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no file of predictions: {error}") from error
    sizes, origins = about["expected_sizes"], about.get("origins", {})
    return Predictions(about["suite"], about["split"], about["classes"], labels, answers, sizes, origins)


def _by_task(rows: pd.DataFrame, column: str, tasks: Mapping[str, Any]) -> Answers:
    return {task: rows.loc[rows["task"] == task, column].to_numpy(dtype=np.int64) for task in tasks}


def _count(right: np.ndarray) -> Count:
    return Count(int(right.sum()), len(right))
