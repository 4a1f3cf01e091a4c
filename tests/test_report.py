"""Metrics, the comparison table and its plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tsvlib.errors import DataError
from tsvlib.report import accuracy_plot, alpha_plot, comparison, comparison_plot, formatted, metrics, read_summary

REFERENCE = {"a": 0.8, "b": 1.0}
SUMMARY = {
    "fine-tuned": metrics(REFERENCE, REFERENCE, 2000, 1000),
    "tsv-m": metrics({"a": 0.6, "b": 0.9}, REFERENCE, 1000, 1000, **{"seconds/make": 1.5}),
    "average": metrics({"a": 0.4, "b": 0.5}, REFERENCE, 1000, 1000),
    "zero-shot": metrics({"a": 0.2, "b": 0.95}, REFERENCE, 1000, 1000),
}


def test_metrics_have_the_contract_names() -> None:
    assert SUMMARY["tsv-m"] == {
        "accuracy": 0.75,
        "accuracy_normalized": pytest.approx(0.825),
        "accuracy/a": 0.6,
        "accuracy/b": 0.9,
        "accuracy_normalized/a": pytest.approx(0.75),
        "accuracy_normalized/b": 0.9,
        "bytes": 1000,
        "bytes_ratio": 1.0,
        "seconds/make": 1.5,
    }


def test_the_table_puts_the_references_around_the_candidates_by_accuracy() -> None:
    table = comparison(SUMMARY)
    assert list(table.index) == ["zero-shot", "average", "tsv-m", "fine-tuned"]
    assert list(table.columns) == ["a", "b", "mean", "normalised", "MB", "ratio", "seconds"]
    assert list(formatted(table).loc["tsv-m"]) == ["60.0", "90.0", "75.0", "82.5", "0.00", "1.00", "1.50"]
    assert formatted(table).loc["average", "seconds"] == ""


def test_plots_show_what_they_are_given() -> None:
    bars = accuracy_plot("tsv-m", SUMMARY["tsv-m"], SUMMARY["fine-tuned"]).axes[0].patches
    assert [bar.get_height() for bar in bars] == [60.0, 90.0]
    left, right = comparison_plot(SUMMARY).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([60.0, 50.0, 82.5, 100.0])
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
