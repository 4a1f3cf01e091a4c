"""The ``tsv`` command as its user calls it: results, and one clean message with exit status 2 for each mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write

from tsvlib import cli
from tsvlib.checkpoint import open_checkpoint
from tsvlib.suite import Suite


class Tsv:
    """Calls the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        self.monkeypatch.setattr(sys, "argv", ["tsv", *map(str, words)])
        self.capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = self.capsys.readouterr()
        return status, captured.out, captured.err


@pytest.fixture
def tsv(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tsv:
    return Tsv(capsys, monkeypatch)


def by_path(suite: Suite) -> list[str]:
    """--base and --task for the files of a suite."""
    words = ["--base", str(suite.path(suite.base))]
    for name, path in suite.checkpoints.items():
        words += ["--task", f"{name}={path}"]
    return words


def test_from_checkpoints_to_a_comparison(tsv: Tsv, suite: Suite, suite_file: Path, tmp_path: Path) -> None:
    merged, archive, one = (tmp_path / f"{name}.safetensors" for name in ("merged", "archive", "one"))
    status, out, _ = tsv("merge", "--suite", suite_file, "--method", "tsv-m", "--out", merged, "--json")
    assert status == 0
    assert json.loads(out)["digest"] == open_checkpoint(merged).digest
    assert tsv("compress", *by_path(suite), "--out", archive)[0] == 0
    assert tsv("extract", archive, "--task", "side", "--base", suite.path(suite.base), "--out", one)[0] == 0
    assert set(open_checkpoint(one)) == set(open_checkpoint(merged))
    summary = tmp_path / "summary.json"
    candidates = ["--candidate", f"tsv-m={merged}", "--candidate", f"tsv-c={archive}"]
    status, out, _ = tsv("evaluate", "--suite", suite_file, *candidates, "--out", summary)
    assert status == 0
    assert out == tsv("compare", summary)[1]
    rows = json.loads(summary.read_text())
    assert set(rows) == {"zero-shot", "fine-tuned", "tsv-m", "tsv-c"}
    assert rows["tsv-c"]["bytes"] == archive.stat().st_size
    assert rows["fine-tuned"]["accuracy_normalized"] == 1
    assert tsv("compare", summary, "--format", "csv")[1].startswith(",bright,side,stripe,mean")


def test_a_suite_and_its_paths_merge_alike(tsv: Tsv, suite: Suite, suite_file: Path, tmp_path: Path) -> None:
    tsv("merge", "--suite", suite_file, "--out", tmp_path / "a.safetensors")
    tsv("merge", *by_path(suite), "--out", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_alpha_can_be_searched(tsv: Tsv, suite_file: Path, tmp_path: Path) -> None:
    words = ("merge", "--suite", suite_file, "--method", "task-arithmetic", "--set", "alpha=search")
    status, out, _ = tsv(*words, "--out", tmp_path / "m.safetensors", "--json")
    assert status == 0
    assert 0 < json.loads(out)["parameters"]["alpha"] <= 3


def test_interference_is_written(tsv: Tsv, suite: Suite, tmp_path: Path) -> None:
    status, out, _ = tsv("interference", *by_path(suite), "--out", tmp_path / "sti.csv", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["sum"] == pytest.approx(sum(row["sti"] for row in found["interference"]))
    assert (tmp_path / "sti.csv").read_text().count("\n") == 1 + len(found["interference"])


def test_interference_of_pairs(tsv: Tsv, suite: Suite, tmp_path: Path) -> None:
    status, out, _ = tsv("interference", *by_path(suite), "--pairs", "--out", tmp_path / "pairs.csv", "--json")
    assert status == 0
    pairs = json.loads(out)["pairs"]
    assert sorted(pairs) == sorted(suite.tasks)
    for one in suite.tasks:
        for other in suite.tasks:
            assert pairs[one][other] == pytest.approx(pairs[other][one])
            assert (pairs[one][other] > 0) == (one != other)
    two = json.loads(tsv("interference", *by_path(suite)[:6], "--rank-fraction", 1 / len(suite.tasks), "--json")[1])
    first, second = list(suite.tasks)[:2]
    assert two["sum"] == pytest.approx(pairs[first][second], rel=1e-4)


def test_warnings_are_messages(suite: Suite, tmp_path: Path) -> None:
    base, task = by_path(suite)[1], by_path(suite)[3].split("=")[1]
    words = ["--base", base, "--task", f"one={task}", "--task", f"none={base}", "--out", tmp_path / "m.safetensors"]
    # in a process of its own, as pytest catches warnings in this one
    command = [sys.executable, "-c", "from tsvlib.cli import main; main()", "merge", *map(str, words), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the delta of task 'none' is zero; it takes no part" in done.stderr
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())


def test_fine_tuning_writes_a_checkpoint_that_fits(tsv: Tsv, suite: Suite, suite_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "side.safetensors"
    status, printed, _ = tsv(
        "finetune", "--suite", suite_file, "--task", "side", "--steps", 3, "--batch", 8, "--out", out
    )
    assert status == 0
    assert "fine-tuned on 36 images of 'side' for 3 steps" in printed.replace("\n", " ")
    assert open_checkpoint(out).specs == open_checkpoint(suite.path(suite.base)).specs


def test_fine_tuning_may_keep_what_the_base_knows(tsv: Tsv, suite: Suite, suite_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "side.safetensors"
    status, _, _ = tsv(
        "finetune", "--suite", suite_file, "--task", "side", "--steps", 3, "--batch", 8, "--out", out,
        "--distil-on", suite.path("bright"), "--distillation-batch", 4, "--interpolation", 0.3,
    )  # fmt: skip
    assert status == 0
    recipe = open_checkpoint(out).metadata["origin"]["recipe"]
    assert (recipe["distillation"], recipe["distillation_batch"], recipe["interpolation"]) == (10.0, 4, 0.3)


def test_quiet_prints_nothing(tsv: Tsv, suite_file: Path, tmp_path: Path) -> None:
    assert tsv("merge", "--suite", suite_file, "--out", tmp_path / "m.safetensors", "--quiet") == (0, "", "")


def test_suites_are_listed(tsv: Tsv) -> None:
    names = [suite["name"] for suite in json.loads(tsv("suites", "--json")[1])["suites"]]
    assert {"lab-8", "lab-14", "lab-20"} <= set(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "lab-9"], "suite 'lab-9': neither a file nor a packaged suite. Did you mean 'lab-"),
        (["--suite", "SUITE", "--method", "tvs-m"], "unknown method 'tvs-m'. Did you mean 'tsv-m'?"),
        (["--suite", "SUITE", "--set", "beta=1"], "method 'tsv-m' takes no parameter 'beta'"),
        (["--suite", "SUITE", "--set", "alpha=high"], "alpha = 'high'"),
        (["--suite", "SUITE", "--set", "alpha"], "--set 'alpha': write it as NAME=VALUE."),
        (["--suite", "SUITE", "--base", "b"], "--suite: stands in place of --base and --task"),
        (["--base", "b"], "Give --suite NAME_OR_FILE, or --base CHECKPOINT and --task NAME=CHECKPOINT."),
        (["--base", "b", "--task", "a=x", "--task", "a=y"], "--task 'a=y': 'a' was given before as 'x'"),
        (["--base", "none.safetensors", "--task", "a=x"], "none.safetensors: no such"),
        (["--suite"], "requires an argument"),
    ],
)
def test_mistakes_exit_with_2_and_one_message(
    tsv: Tsv, suite_file: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    words = [str(suite_file) if word == "SUITE" else word for word in words]
    status, out, err = tsv("merge", "--out", tmp_path / "m.safetensors", *words)
    assert status == 2
    assert message in out + err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_truncated_checkpoint_is_named(tsv: Tsv, suite: Suite, tmp_path: Path) -> None:
    whole = Path(suite.checkpoints["side"]).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    words = ("--base", suite.path(suite.base), "--task", f"side={tmp_path / 'cut.safetensors'}")
    status, _, err = tsv("merge", *words, "--out", tmp_path / "m.safetensors")
    assert status == 2
    assert "cut.safetensors" in err
    assert not (tmp_path / "m.safetensors").exists()


def test_keys_and_shapes_that_differ_are_all_named(tsv: Tsv, suite: Suite, tmp_path: Path) -> None:
    tensors = dict(open_checkpoint(suite.checkpoints["side"]))
    del tensors["visual.class_embedding"]
    tensors["visual.proj"] = torch.zeros(2, 2)
    write(tmp_path / "other.safetensors", tensors)
    words = ("--base", suite.path(suite.base), "--task", f"side={tmp_path / 'other.safetensors'}")
    status, _, err = tsv("merge", *words, "--out", tmp_path / "m.safetensors")
    assert status == 2
    assert "key 'visual.class_embedding' of the base" in err
    assert "key 'visual.proj' has shape (2, 2)" in err
    assert err.count("other.safetensors") >= 2


def test_an_existing_file_is_kept_unless_forced(tsv: Tsv, suite_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_bytes(b"mine")
    status, _, err = tsv("merge", "--suite", suite_file, "--out", out)
    assert status == 2
    assert "exists already" in err
    assert out.read_bytes() == b"mine"
    assert tsv("merge", "--suite", suite_file, "--out", out, "--force")[0] == 0


def test_a_full_disk_leaves_nothing(
    tsv: Tsv, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    real = Path.open

    def full(path: Path, mode: str = "r", **options: object) -> object:
        return real(Path("/dev/full") if path.suffix == ".partial" else path, mode, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", full)
    status, _, err = tsv("merge", "--suite", suite_file, "--out", tmp_path / "m.safetensors")
    assert status == 2
    assert "m.safetensors: the disk is full; nothing was written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(suite_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "side.safetensors"
    command = [sys.executable, "-c", "from tsvlib.cli import main; main()", "finetune", "--suite", str(suite_file)]
    running = subprocess.Popen(
        [*command, "--task", "side", "--steps", "100000", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    assert running.stderr is not None
    assert any("finetune side" in line for line in running.stderr)  # it is training
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "interrupted: nothing was half-written" in err
    assert not list(tmp_path.iterdir())


def test_every_verb_explains_itself(tsv: Tsv) -> None:
    for verb, summary in cli.VERBS.items():
        status, out, _ = tsv(verb, "--help")
        assert status == 0
        assert f"Usage: tsv {verb}" in out
        assert summary in " ".join(out.split())
