"""Metrics, the comparison table and its plots."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsvlib.errors import DataError
from tsvlib.predictions import Predictions
from tsvlib.report import (
    accuracy_plot,
    alpha_plot,
    comparison,
    comparison_plot,
    difference_table,
    differences,
    formatted,
    metrics,
    read_summary,
    told,
)

IMAGES = 100


def answers(**right: float) -> dict[str, np.ndarray]:
    """Task -> answers to images of two classes, the first so many of them right."""
    labels = np.arange(IMAGES) % 2
    return {task: np.where(np.arange(IMAGES) < IMAGES * share, labels, 1 - labels) for task, share in right.items()}


PREDICTIONS = Predictions(
    "suite", "test",
    classes={"a": ["x", "y"], "b": ["x", "y"]},
    labels={"test": answers(a=1, b=1)},
    answers={
        "test": {
            "fine-tuned": answers(a=0.8, b=1), "tsv-m": answers(a=0.6, b=0.9), "average": answers(a=0.5, b=0.5),
            "zero-shot": answers(a=0.5, b=0.95),
        }
    },
)  # fmt: skip
SIZES = {"fine-tuned": 2000}
MADE = {"tsv-m": {"seconds/make": 1.5}}
SUMMARY = {
    name: metrics(PREDICTIONS, name, [], SIZES.get(name, 1000), 1000, **MADE.get(name, {}))
    for name in PREDICTIONS.candidates
}


def leaked(predictions: Predictions = PREDICTIONS) -> Predictions:
    """The same, with fine-tunes that do far worse on validation images of task a."""
    validation = {"fine-tuned": answers(a=0.4, b=0.99)}
    return replace(
        predictions,
        labels={**predictions.labels, "validation": answers(a=1, b=1)},
        answers={**predictions.answers, "validation": validation},
    )


def test_metrics_have_the_contract_names() -> None:
    row = SUMMARY["tsv-m"]
    assert {key: row[key] for key in list(row)[:6]} == {
        "accuracy": pytest.approx(0.75),
        "accuracy_normalized": pytest.approx(0.825),
        "accuracy/a": 0.6,
        "accuracy/b": 0.9,
        "accuracy_normalized/a": pytest.approx(0.75),
        "accuracy_normalized/b": 0.9,
    }
    assert (row["bytes"], row["bytes_ratio"], row["seconds/make"]) == (1000, 1.0, 1.5)
    assert row["accuracy_low"] < 0.75 < row["accuracy_high"]
    assert row["accuracy_low/a"] == pytest.approx(0.6 - 1.96 * 0.049, abs=0.015)
    assert not [key for key in row if key.startswith(("doubtful/", "flagged/")) or key.endswith("_trusted")]


def test_the_table_puts_the_references_around_the_candidates_by_accuracy() -> None:
    table = comparison(SUMMARY)
    assert list(table.index) == ["zero-shot", "average", "tsv-m", "fine-tuned"]
    assert list(table.columns) == [
        "a", "b", "mean", "mean ±", "normalised", "normalised ±", "MB", "ratio", "seconds",
    ]  # fmt: skip
    text = formatted(table).loc["tsv-m"]
    assert list(text.index) == ["a", "b", "mean", "normalised", "MB", "ratio", "seconds"]
    assert text["a"] == "60.0"
    assert re.fullmatch(r"75\.0 ± [5-6]\.\d", text["mean"])
    assert formatted(table).loc["average", "seconds"] == ""


def test_doubtful_tasks_are_marked_and_means_shown_without_them() -> None:
    predictions = leaked()
    findings = predictions.findings()
    assert [(one.kind, one.task) for one in findings] == [("leak", "a")]
    summary = {name: metrics(predictions, name, findings, 1, 1) for name in predictions.candidates}
    assert summary["tsv-m"]["accuracy_trusted"] == pytest.approx(0.9)
    assert summary["tsv-m"]["accuracy"] == pytest.approx(0.75), "the whole mean stays beside it"
    text = formatted(comparison(summary), summary)
    assert list(text.columns)[:2] == ["a !", "b"]
    assert text.loc["tsv-m", "mean without !"] == "90.0"
    lines = told(findings)
    assert "! task 'a': fine-tuned is right on 80.0% of 100 test images but on 40.0%" in lines[1]
    assert lines[-1] == "The means 'without !' leave out what is in doubt: a."


def test_an_odd_figure_of_one_candidate_is_marked_alone() -> None:
    odd = {**PREDICTIONS.answers["test"], "tsv-m": {**answers(a=0.6), "b": np.zeros(IMAGES, int)}}
    predictions = replace(PREDICTIONS, answers={"test": odd})
    findings = predictions.findings()
    assert [(one.kind, one.task, one.candidate) for one in findings] == [("one-class", "b", "tsv-m")]
    summary = {name: metrics(predictions, name, findings, 1, 1) for name in predictions.candidates}
    text = formatted(comparison(summary), summary)
    assert text.loc["tsv-m", "b"] == "50.0 !"
    assert "mean without !" not in text


def test_differences_to_a_baseline() -> None:
    found = differences(PREDICTIONS, "average")
    assert set(found) == {"fine-tuned", "tsv-m", "zero-shot"}
    table = difference_table(found)
    assert list(table.index) == ["zero-shot", "tsv-m", "fine-tuned"]
    assert table.loc["tsv-m", "a"] == "+10.0"
    assert table.loc["tsv-m", "mean"].startswith("+25.0 [+1")
    assert table.loc["tsv-m", "p"] == "< 0.0002"
    assert table.loc["zero-shot", "better / worse"] == "1 / 0 of 2"
    with pytest.raises(DataError, match="'best': not among the candidates that were evaluated: fine-tuned, tsv-m"):
        differences(PREDICTIONS, "best")


def test_plots_show_what_they_are_given() -> None:
    bars = accuracy_plot("tsv-m", SUMMARY["tsv-m"], SUMMARY["fine-tuned"]).axes[0].patches
    assert [bar.get_height() for bar in bars] == [60.0, 90.0]
    left, right = comparison_plot(SUMMARY).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([78.75, 56.25, 82.5, 100.0])
    assert [bar.get_width() for bar in right.patches] == [1, 1, 1, 2]
    (line,) = alpha_plot({"tsv-m": {"1.0": 0.5, "0.5": 0.4}}).axes[0].lines
    assert line.get_xydata().tolist() == [[0.5, 40.0], [1.0, 50.0]]


def test_the_same_plot_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        comparison_plot(SUMMARY).savefig(tmp_path / name, metadata={"Date": None})
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_summaries_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no summary there"):
        read_summary(tmp_path / "none.json")
    for content in ("{", "[1]", json.dumps({"a": 1}), json.dumps({"a": {"accuracy": "high"}})):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad\.json: is no summary of candidates"):
            read_summary(tmp_path / "bad.json")
