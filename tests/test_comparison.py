"""Candidates chosen, ordered and shown alike in every format; the page that needs nothing beside itself."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import PREDICTIONS, SUMMARY, answers

from tsvlib import cli, compress, merge
from tsvlib.candidate import candidates
from tsvlib.comparison import FORMATS, as_html, compare
from tsvlib.comparison_charts import alpha_curves
from tsvlib.errors import DataError, SettingError
from tsvlib.html_report import MOST_DRAWN
from tsvlib.predictions import Predictions, read_predictions
from tsvlib.protocol import measure
from tsvlib.report import metrics
from tsvlib.suite import Suite

ORIGINS = {
    "zero-shot": {"kind": "reference", "digest": "0" * 64, "parameters": {"method": "zero-shot"}},
    "fine-tuned": {"kind": "reference", "digest": "1" * 64, "parameters": {"method": "fine-tuned"}},
    "average": {"kind": "merged", "digest": "2" * 64, "parameters": {"method": "average", "alpha": 1.0}},
    "tsv-m": {"kind": "merged", "digest": "3" * 64, "parameters": {"method": "tsv-m", "alpha": 0.8}},
}
RECORD = replace(PREDICTIONS, origins=ORIGINS)


def names(condition: str | None = None, order: str | None = None) -> list[str]:
    return list(compare("suite", SUMMARY, RECORD, condition=condition, order=order).names)


@pytest.mark.parametrize(
    ("condition", "order", "expected"),
    [
        (None, None, ["zero-shot", "average", "tsv-m", "fine-tuned"]),
        (None, "accuracy desc", ["fine-tuned", "tsv-m", "zero-shot", "average"]),
        (None, "metrics.`accuracy/b` ASC", ["average", "tsv-m", "zero-shot", "fine-tuned"]),
        (None, "accuracy/b", ["average", "tsv-m", "zero-shot", "fine-tuned"]),
        (None, "params.alpha", ["tsv-m", "average", "zero-shot", "fine-tuned"]),
        ("metrics.accuracy > 0.7 and params.method = 'tsv-m'", None, ["tsv-m"]),
        ("tags.kind = 'merged'", None, ["average", "tsv-m"]),
        ("tags.kind = 'merged'", "accuracy desc", ["tsv-m", "average"]),
        ("attributes.run_name LIKE '%t%' AND metrics.bytes < 1500", None, ["zero-shot", "tsv-m"]),
        ("params.method ILIKE 'TSV%'", None, ["tsv-m"]),
        ("params.alpha IS NULL", None, ["zero-shot", "fine-tuned"]),
    ],
)
def test_the_search_is_that_of_mlflow(condition: str | None, order: str | None, expected: list[str]) -> None:
    assert names(condition, order) == expected


@pytest.mark.parametrize(
    ("condition", "order", "message"),
    [
        ("metrics.acuracy > 1", None, "no candidate has a metric 'acuracy'. Did you mean 'accuracy'?"),
        ("params.methods = 'a'", None, "no candidate has a parameter 'methods'. Did you mean 'method'?"),
        ("accuracy > 0.5", None, "Write conditions like metrics.accuracy > 0.7 and params.method = 'tsv-m'"),
        ("metrics.accuracy > 0.5 or metrics.accuracy < 0.1", None, "Invalid clause(s) in filter string: 'or'"),
        (None, "acuracy", "no candidate has a metric 'acuracy'. Did you mean 'accuracy'?"),
        (None, "accuracy downwards", "Invalid ordering key"),
        (None, "attributes.rank", "Invalid attribute key 'rank'"),
    ],
)
def test_a_search_that_is_not_understood_says_why(condition: str | None, order: str | None, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        names(condition, order)


def test_a_search_that_finds_nothing() -> None:
    with pytest.raises(DataError, match=re.escape("'metrics.accuracy > 2' fits none of the 4 candidates.")):
        names("metrics.accuracy > 2")


def test_without_answers_metrics_can_be_searched_and_names_stand_for_methods() -> None:
    found = compare("suite", SUMMARY, condition="metrics.accuracy > 0.7 and params.method = 'tsv-m'")
    assert found.names == ["tsv-m"]
    assert found.parameters == {}


def test_every_format_shows_the_same_candidates_in_the_same_order() -> None:
    shown = compare("suite", SUMMARY, RECORD, condition="metrics.accuracy < 0.9", order="accuracy desc")
    expected = ["tsv-m", "zero-shot", "average"]
    assert list(json.loads(FORMATS["json"](shown))) == expected
    assert [row[0] for row in csv.reader(io.StringIO(FORMATS["csv"](shown)))][1:] == expected
    assert re.findall(r"^\| (\S+)", FORMATS["markdown"](shown), re.MULTILINE) == expected
    first_table = FORMATS["html"](shown).partition("</table>")[0]
    assert re.findall(r"<tr class=\"\w*\"><td>([^<]+)", first_table) == expected
    for written in ("markdown", "html"):
        assert "75.0 ± " in FORMATS[written](shown)


def test_differences_are_those_of_the_candidates_shown() -> None:
    shown = compare("suite", SUMMARY, RECORD, baseline="average", condition="tags.kind = 'merged'")
    found = json.loads(FORMATS["json"](shown))
    assert list(found["differences"]) == ["tsv-m"]
    assert found["differences"]["tsv-m"]["mean"]["value"] == pytest.approx(0.25)
    assert found["differences"]["tsv-m"]["mean"]["low"] > 0.1
    for written in FORMATS:
        assert "average" in FORMATS[written](shown)
    assert "Difference to average" in FORMATS["html"](shown)
    assert "+25.0 [+1" in FORMATS["html"](shown)


def test_the_page_needs_nothing_beside_itself() -> None:
    page = as_html(compare("suite", SUMMARY, RECORD, baseline="average"))
    assert not re.search(r"<link|@import|url\(|<iframe|(src|href|action)=\"(?!data:)", page)
    assert "default-src 'none'" in page
    assert page.count('<img src="data:image/svg+xml;base64,') == 3
    assert page == as_html(compare("suite", SUMMARY, RECORD, baseline="average"))


def test_the_best_that_is_no_reference_is_marked() -> None:
    page = as_html(compare("suite", SUMMARY, RECORD))
    (row,) = re.findall(r"<tr class=\"\"><td>tsv-m</td>(.*?)</tr>", page.partition("</table>")[0])
    assert row.startswith('<td class="best">60.0</td><td class="best">90.0</td><td class="best">75.0')
    (row,) = re.findall(r"<tr class=\"reference\"><td>fine-tuned</td>(.*?)</tr>", page.partition("</table>")[0])
    assert "best" not in row


def test_candidates_that_look_alike_are_all_the_best() -> None:
    summary = {
        name: row | {"bytes": 1e6 + place, "bytes_ratio": 1.0} for place, (name, row) in enumerate(SUMMARY.items())
    }
    summary["tsv-m"] = summary["tsv-m"] | {"accuracy/a": 0.5004}
    page = as_html(compare("suite", summary, RECORD))
    rows = dict(re.findall(r"<td>(average|tsv-m)</td>(.*?)</tr>", page.partition("</table>")[0]))
    assert all(row.startswith("<td>50.0</td>") for row in rows.values()), "none is better where all look alike"
    assert rows["tsv-m"].startswith('<td>50.0</td><td class="best">90.0')
    assert all("<td>1.00</td>" in row for row in rows.values())


def many(count: int, name: str = "tsv-m alpha={:g}") -> tuple[dict, Predictions]:
    """So many candidates that differ in alpha alone."""
    found = {name.format(i / count): i / count for i in range(1, count + 1)}
    given = {one: answers(a=share, b=1) for one, share in found.items()}
    made_by = {one: {"method": "tsv-m", "alpha": share} for one, share in found.items()}
    origins = {one: {"kind": "merged", "digest": "4" * 64, "parameters": made} for one, made in made_by.items()}
    record = replace(RECORD, answers={"test": {**PREDICTIONS.answers["test"], **given}}, origins=ORIGINS | origins)
    return {one: metrics(record, one, [], 1000, 1000) for one in record.candidates}, record


def test_many_candidates_are_all_in_the_table_and_the_best_in_the_plots() -> None:
    summary, record = many(60)
    page = as_html(compare("suite", summary, record))
    assert page.partition("</table>")[0].count("<tr class") == 64
    assert f"the best {MOST_DRAWN}" in page
    assert "Normalised accuracy against alpha" in page
    curves = alpha_curves(summary, compare("suite", summary, record).parameters)
    assert [alpha for alpha, _ in curves["tsv-m"]] == sorted([0.8, *(i / 60 for i in range(1, 61))])
    assert "average" not in curves


def test_a_curve_is_of_what_is_alike_but_for_alpha() -> None:
    common = {"tolerance": 1e-5}
    made_by = {
        "a": {"method": "tsv-m", "alpha": 1.0, **common},
        "b": {"method": "tsv-m", "alpha": 0.5, **common},
        "c": {"method": "tsv-m", "alpha": 1.0, "rank_fraction": 0.25, **common},
        "d": {"method": "tsv-m", "alpha": 0.5, "rank_fraction": 0.25, **common},
        "e": {"method": "average", "alpha": 1.0},
        "f": {"method": "tsv-c"},
    }
    assert alpha_curves({name: {} for name in made_by}, made_by) == {
        "tsv-m": [(0.5, "b"), (1.0, "a")],
        "tsv-m rank_fraction=0.25": [(0.5, "d"), (1.0, "c")],
    }


def test_names_are_text_on_the_page() -> None:
    summary, record = many(2, "<script>{:g}</script>")
    page = as_html(compare("<b>suite</b>", summary, record, baseline="<script>1</script>"))
    assert "<script>1" not in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page
    assert "<title>&lt;b&gt;suite" in page


def test_the_record_of_answers_tells_how_candidates_were_made(suite: Suite, tmp_path: Path) -> None:
    from tsvlib.checkpoint import open_checkpoint

    base = open_checkpoint(suite.base_uri)
    tasks = {name: open_checkpoint(uri) for name, uri in suite.checkpoints.items()}
    merged = merge(base, tasks, "tsv-m", alpha=0.5, out=tmp_path / "m.safetensors")
    compress(base, tasks, out=tmp_path / "c.safetensors", dtype="fp16")
    files = {"half": tmp_path / "m.safetensors", "all": tmp_path / "c.safetensors"}
    measure(suite, candidates(suite, files)).write(tmp_path / "s.parquet")
    origins = read_predictions(tmp_path / "s.parquet").origins
    assert origins["half"]["kind"] == "merged"
    assert origins["half"]["digest"] == merged.digest
    assert (origins["half"]["parameters"]["method"], origins["half"]["parameters"]["alpha"]) == ("tsv-m", 0.5)
    assert (origins["all"]["kind"], origins["all"]["parameters"]["method"]) == ("archive", "tsv-c")
    assert origins["all"]["parameters"]["dtype"] == "fp16"
    assert {origins[name]["kind"] for name in ("zero-shot", "fine-tuned")} == {"reference"}


def test_records_without_origins_are_read(tmp_path: Path) -> None:
    PREDICTIONS.write(tmp_path / "old.parquet")
    assert read_predictions(tmp_path / "old.parquet").origins == {}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    RECORD.write(tmp_path / "s.parquet")
    (tmp_path / "s.json").write_text(json.dumps(SUMMARY))
    return tmp_path


def tsv(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["tsv", "compare", *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_files_are_written_as_their_names_say(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [f"r{suffix}" for suffix in (".md", ".csv", ".json", ".html")]
    words = ["s.json", "--baseline", "average", "--sort", "accuracy desc", *(f"--out={one}" for one in outs)]
    assert tsv(monkeypatch, *words) == 0
    assert "r.md, r.csv, r.json, r.html: 4 candidates of suite" in capsys.readouterr().out.replace("\n", " ")
    assert (written / "r.html").read_text().startswith("<!doctype html>")
    assert next(iter(json.loads((written / "r.json").read_text())["candidates"])) == "fine-tuned"
    assert tsv(monkeypatch, "s.json", "--out", "r.md") == 2
    assert "r.md: exists already" in capsys.readouterr().err
    assert tsv(monkeypatch, "s.json", "--out", "r.txt") == 2
    assert "--out r.txt: its ending says no format. There are: .md, .csv, .json, .html." in capsys.readouterr().err
    for name in ("markdown", "csv", "json", "html"):
        assert tsv(monkeypatch, "s.json", "--format", name) == 0
        assert "tsv-m" in capsys.readouterr().out


def test_a_page_is_printed_to_the_letter(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tsv(monkeypatch, "s.json", "--format", "html")
    assert capsys.readouterr().out == as_html(compare("suite", SUMMARY, RECORD)) + "\n"


def test_a_narrow_terminal_has_every_name_and_column(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    tsv(monkeypatch, "s.json", "--format", "terminal")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 50
    assert sum(line.startswith("tsv-m") for line in lines) >= 2
    for column in ("a", "b", "mean", "normalised", "MB", "ratio", "seconds"):
        assert any(column in line.split() for line in lines)


BROWSER = shutil.which("chromium")
LOOK = """<script>
  document.querySelector("thead th:nth-child(2)").click();
  const order = [...document.querySelector("tbody").rows].map(row => row.cells[0].textContent);
  const images = [...document.images].map(image => image.decode().then(() => image.naturalWidth > 200, () => false));
  Promise.all(images).then(loaded => { document.body.textContent = JSON.stringify({ order, loaded }); });
</script></body>"""


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_a_browser_shows_the_plots_and_sorts_by_a_click(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(as_html(compare("suite", SUMMARY, RECORD, baseline="average")).replace("</body>", LOOK))
    assert BROWSER
    waiting = ["--timeout=30000", "--virtual-time-budget=30000", f"--user-data-dir={tmp_path / 'browser'}"]
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *waiting, "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.findall(r"<body>(.*?)</body>", shown, re.DOTALL)[0]))
    assert seen["loaded"] == [True] * 3
    assert seen["order"][0] == "fine-tuned"
    assert seen["order"][1] == "tsv-m"
