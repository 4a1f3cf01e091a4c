"""Published figures: consistent in themselves, and set beside one's own without mixing checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tsvlib.cli.compare import compare
from tsvlib.cli.options import Printing
from tsvlib.errors import DataError
from tsvlib.methods import method_names
from tsvlib.published import beside_published, family_title, published, published_suites, reservations
from tsvlib.suite import load_suite, packaged_suites

OWN = {
    "fine-tuned": {"accuracy": 0.9031, "accuracy_normalized": 1.0, "accuracy/dtd": 0.782},
    "tsv-m": {"accuracy": 0.8300, "accuracy_normalized": 0.9170, "accuracy/dtd": 0.643},
    "mine": {"accuracy": 0.99, "accuracy_normalized": 1.1, "accuracy/dtd": 0.9},
}


def test_every_public_suite_has_figures() -> None:
    assert set(published_suites()) == {name for name in packaged_suites() if name.startswith("vit-")}


@pytest.mark.parametrize("suite", published_suites())
def test_means_are_those_of_the_tasks(suite: str) -> None:
    """A slip in copying a figure would show here."""
    figures = [figure for figure in published(suite) if figure.tasks]
    tasks = load_suite(suite).tasks
    for figure in figures:
        assert list(figure.tasks) == list(tasks)
        mean = sum(figure.tasks.values()) / len(figure.tasks)
        assert mean == pytest.approx(figure.accuracy, abs=0.1 if figure.family == "tanganke" else 0.015)


@pytest.mark.parametrize("suite", published_suites())
def test_normalised_figures_fit_their_references(suite: str) -> None:
    """The mean of ratios is near the ratio of means."""
    for family in {figure.family for figure in published(suite)}:
        figures = [figure for figure in published(suite) if figure.family == family]
        reference = next((one.accuracy for one in figures if one.candidate == "fine-tuned"), None)
        for one in figures:
            if reference and one.normalised:
                assert one.normalised == pytest.approx(100 * one.accuracy / reference, abs=2)


def test_candidates_are_called_as_ours_are() -> None:
    known = {*method_names(), "zero-shot", "fine-tuned", "tsv-c", "tall-mask"}
    assert {figure.candidate for suite in published_suites() for figure in published(suite)} <= known


def test_the_docs_hold_the_same_figures() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reproducing-the-paper.md").read_text()
    for suite in published_suites():
        for one in published(suite):
            if one.source.startswith("Gargiulo") and one.candidate != "tall-mask":
                shown = f"{one.accuracy:.2f}" + (f" ({one.normalised:.2f})" if one.normalised != 100 else "")
                assert shown in text


def test_families_are_described() -> None:
    families = {figure.family for suite in published_suites() for figure in published(suite)}
    assert all(family_title(family) != family for family in families)
    assert "fine-tuned on 90 % of its own test images" in reservations("tall")["dtd"]
    assert {load_suite(suite).family for suite in published_suites()} <= families


def test_only_figures_of_the_same_checkpoints_are_subtracted() -> None:
    table = beside_published(OWN, "vit-b-32-8", "crisostomi").loc["tsv-m"].set_index("checkpoints")
    assert table.loc["crisostomi", "difference"] == pytest.approx(83.00 - 83.22)
    assert table.loc["crisostomi", "normalised difference"] == pytest.approx(91.70 - 91.79)
    assert pd.isna(table.loc["tall", "difference"])
    assert table.loc["tall", "published"] == 85.86


def test_nothing_published_is_told() -> None:
    with pytest.raises(DataError, match=r"suite 'lab-8': nothing was published of it\. Published are vit-b-32-8, "):
        published("lab-8")


def test_the_command_prints_both_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.json"
    full = {name: row | {"bytes": 1.0, "bytes_ratio": 1.0} for name, row in OWN.items()}
    summary.write_text(json.dumps(full))
    compare(summary, suite="vit-b-32-8", against="paper")
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if line.startswith("| tsv-m"))
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:9] == ["tsv-m", "crisostomi", "yes", "83.00", "83.22", "-0.22", "91.70", "91.79", "-0.09"]
    assert "| tsv-m, tall" in printed
    assert "  dtd: fine-tuned on 90 % of its own test images" in printed
    compare(summary, suite="vit-b-32-8", against="paper", printing=Printing(json=True))
    rows = json.loads(capsys.readouterr().out)["figures"]
    assert {"candidate": "tsv-m", "checkpoints": "tall", "mean": 83.0, "published": 85.86}.items() <= {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in next(
            row for row in rows if (row["candidate"], row["checkpoints"]) == ("tsv-m", "tall")
        ).items()
    }.items()
