"""Exported classifiers: the same answers as the evaluation, within bounded memory, and clear words for bad input."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from tsvlib import merge
from tsvlib.archive import compress, open_archive
from tsvlib.candidate import from_file
from tsvlib.checkpoint import open_checkpoint, write_checkpoint
from tsvlib.cli import app
from tsvlib.data.decoding import UnreadableImage
from tsvlib.errors import ArchiveError, CheckpointError, DataError, MismatchError, SuiteError
from tsvlib.evaluate import Evaluator
from tsvlib.routed import RoutedEvaluator
from tsvlib.routing import DiscriminantRouter
from tsvlib.serving import Classifier, EncoderPool, Question, export_classifier, open_classifier
from tsvlib.suite import Suite


@pytest.fixture(scope="module")
def files(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A merged checkpoint and an archive."""
    folder = tmp_path_factory.mktemp("candidates")
    base = open_checkpoint(suite.base_uri)
    tasks = {name: open_checkpoint(uri) for name, uri in suite.checkpoints.items()}
    merged = merge(base, tasks, method="average")
    write_checkpoint(folder / "merged.safetensors", merged.specs, merged.items(), merged.metadata)
    compress(base, tasks, out=folder / "archive.safetensors")
    return {kind: folder / f"{kind}.safetensors" for kind in ("merged", "archive")}


@pytest.fixture(scope="module")
def exported(suite: Suite, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for kind, file in files.items():
        export_classifier(suite, file, folder / kind)
    return {kind: folder / kind for kind in files}


def some_images(suite: Suite, task: str) -> list[bytes]:
    return list(suite.images(task, "test").encoded())


@pytest.mark.parametrize("kind", ["merged", "archive"])
def test_answers_are_those_of_the_evaluation(
    suite: Suite, files: dict[str, Path], exported: dict[str, Path], kind: str
) -> None:
    evaluated = Evaluator(suite, "test").answers([from_file(files[kind], suite, "it")])["it"]
    classifier = open_classifier(exported[kind])
    for task in suite.tasks:
        found = classifier.classify([Question(image, task) for image in some_images(suite, task)])
        names = [one[0].best[0] for one in found if not isinstance(one, UnreadableImage)]
        assert names == [suite.classes(task)[answer] for answer in evaluated[task]]


def test_a_merged_model_answers_for_every_task_with_probabilities(suite: Suite, exported: dict[str, Path]) -> None:
    (answers,) = open_classifier(exported["merged"]).classify([Question(some_images(suite, "side")[0])])
    assert not isinstance(answers, UnreadableImage)
    assert [answer.task for answer in answers] == list(suite.tasks)
    for answer in answers:
        assert float(answer.probabilities.sum()) == pytest.approx(1)
        assert list(answer.top(5)) == sorted(answer.top(5), key=lambda name: -answer.top(5)[name])
        assert set(answer.top(5)) == set(suite.classes(answer.task))


def test_mixed_tasks_and_a_bad_image_keep_their_places(suite: Suite, exported: dict[str, Path]) -> None:
    classifier = open_classifier(exported["archive"])
    image = some_images(suite, "side")[0]
    questions = [Question(image, "side"), Question(b"no image", "stripe"), Question(image, "bright")] * 20
    found = classifier.classify(questions)
    assert [one if isinstance(one, UnreadableImage) else one[0].task for one in found[:3]] == [
        "side", found[1], "bright",
    ]  # fmt: skip
    assert all(isinstance(one, UnreadableImage) for one in found[1::3])
    alone = classifier.classify([Question(image, "bright")])[0]
    assert not isinstance(alone, UnreadableImage)
    assert not isinstance(found[-1], UnreadableImage)
    torch.testing.assert_close(found[-1][0].probabilities, alone[0].probabilities)


def test_what_cannot_be_asked(suite: Suite, exported: dict[str, Path]) -> None:
    image = some_images(suite, "side")[0]
    with pytest.raises(DataError, match="one task at a time; name one of bright, side, stripe"):
        open_classifier(exported["archive"]).classify([Question(image)])
    for kind in exported:
        with pytest.raises(DataError, match=r"no task 'sied'\. Did you mean 'side'\?"):
            open_classifier(exported[kind]).classify([Question(image, "sied")])


@pytest.fixture(scope="module")
def router(suite: Suite, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved as 'tsv route --save' does."""
    out = tmp_path_factory.mktemp("router") / "router.safetensors"
    evaluator = RoutedEvaluator(suite, open_archive(files["archive"]), open_checkpoint(suite.base_uri))
    evaluator.discriminant_router().save(out)
    return out


def test_a_router_answers_for_images_without_a_task(
    suite: Suite, files: dict[str, Path], router: Path, tmp_path: Path
) -> None:
    export_classifier(suite, files["archive"], tmp_path / "routed", router=router)
    classifier = open_classifier(tmp_path / "routed")
    evaluator = RoutedEvaluator(suite, open_archive(files["archive"]), open_checkpoint(suite.base_uri))
    expected = evaluator.evaluate(DiscriminantRouter.load(router)).routing
    for task in suite.tasks:
        images = some_images(suite, task)
        found = classifier.classify([Question(image) for image in images])
        tasks = [one[0].task for one in found if not isinstance(one, UnreadableImage)]
        assert tasks.count(task) / len(images) == pytest.approx(expected[task])
        asked = classifier.classify([Question(image, named) for image, named in zip(images, tasks, strict=True)])
        assert [one[0].best for one in asked] == [one[0].best for one in found]  # type: ignore[index]


def test_routed_images_keep_their_places(suite: Suite, files: dict[str, Path], router: Path, tmp_path: Path) -> None:
    export_classifier(suite, files["archive"], tmp_path / "routed", router=router)
    classifier = open_classifier(tmp_path / "routed")
    image = some_images(suite, "side")[0]
    questions = [Question(b"no image"), Question(image), Question(image, "stripe")] * 30
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: classifier.classify(questions), range(8)))
    for found in several:
        assert all(isinstance(one, UnreadableImage) for one in found[::3])
        assert len({one[0].task for one in found[1::3]}) == 1  # type: ignore[index]
        assert {one[0].task for one in found[2::3]} == {"stripe"}  # type: ignore[index]


def test_routers_that_do_not_fit(suite: Suite, files: dict[str, Path], router: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a router goes with an archive"):
        export_classifier(suite, files["merged"], tmp_path / "merged", router=router)
    with pytest.raises(ArchiveError, match="is no router"):
        export_classifier(suite, files["archive"], tmp_path / "archive", router=files["merged"])
    other = DiscriminantRouter.load(router)
    replace(other, tasks=["bright", "side", "weather"]).save(tmp_path / "other.safetensors")
    with pytest.raises(ArchiveError, match=r"other tasks than suite 'tiny' \(differing: stripe, weather\)"):
        export_classifier(suite, files["archive"], tmp_path / "archive", router=tmp_path / "other.safetensors")
    assert not (tmp_path / "archive").exists()


def test_memory_is_bounded_and_what_was_let_go_comes_back(suite: Suite, exported: dict[str, Path]) -> None:
    whole = open_classifier(exported["archive"])
    for task in suite.tasks:
        whole.encoders[task]
    one_encoder = whole.encoders.nbytes // 3
    tight = open_classifier(exported["archive"], most_bytes=2 * one_encoder)
    image = some_images(suite, "side")[0]
    for task in [*suite.tasks, *suite.tasks]:
        (found,) = tight.classify([Question(image, task)])
        (expected,) = whole.classify([Question(image, task)])
        assert not isinstance(found, UnreadableImage)
        assert not isinstance(expected, UnreadableImage)
        assert torch.equal(found[0].probabilities, expected[0].probabilities)
        assert tight.encoders.nbytes <= 2 * one_encoder
    assert (whole.encoders.made, tight.encoders.made) == (3, 6)


def test_threads_that_ask_at_once_get_one_encoder() -> None:
    started, go = threading.Event(), threading.Event()

    def weights_of(name: str) -> dict[str, torch.Tensor]:
        started.set()
        assert go.wait(10)
        return {"visual.weight": torch.full((2, 2), 3.0), "visual.bias": torch.zeros(2)}

    pool = EncoderPool(nn.Linear(2, 2, device="meta"), weights_of, 10**6)
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(pool.__getitem__, "one") for _ in range(8)]
        assert started.wait(10)
        go.set()
        encoders = {id(one.result()) for one in asked}
    assert (len(encoders), pool.made) == (1, 1)
    assert pool["one"](torch.ones(1, 2)).tolist() == [[6.0, 6.0]]


def test_a_failure_is_not_kept() -> None:
    tries = iter([{}, {"visual.weight": torch.eye(2), "visual.bias": torch.zeros(2)}])
    pool = EncoderPool(nn.Linear(2, 2, device="meta"), lambda name: next(tries), 10**6)
    with pytest.raises(MismatchError, match="one: key 'bias' is missing"):
        pool["one"]
    assert pool["one"](torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


def test_folders_that_are_no_classifier(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"classifier\.json: no such file.*tsv export"):
        open_classifier(tmp_path)
    described = json.loads((exported["merged"] / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps(described | {"layout": 99}))
    with pytest.raises(CheckpointError, match="layout: Input should be 1"):
        open_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(described | {"classes": {"other": ["a", "b"]}}))
    (tmp_path / "heads.safetensors").write_bytes((exported["merged"] / "heads.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="holds other tasks"):
        open_classifier(tmp_path)


def run(*words: str) -> None:
    app(list(words), exit_on_error=False, result_action="return_value")


def test_batch_scoring_by_command(
    suite_file: Path, suite: Suite, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("export", str(files["merged"]), "--suite", str(suite_file), "--out", str(tmp_path / "model"))
    with pytest.raises(SuiteError, match="exists already"):
        run("export", str(files["merged"]), "--suite", str(suite_file), "--out", str(tmp_path / "model"))
    table = str(suite.path("side/test.parquet"))
    run("classify", str(tmp_path / "model"), table, "--task", "side", "--out", str(tmp_path / "scores.parquet"))
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert len(scores) == 40
    assert set(scores["class"]) <= {"left", "right"}
    assert scores["image"][3] == f"{table}#3"
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes(some_images(suite, "side")[0])
    (folder / "bad.png").write_bytes(b"?")
    (folder / "notes.txt").write_text("no picture")
    run("classify", str(tmp_path / "model"), str(folder), "--out", str(tmp_path / "scores.csv"))
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert [Path(name).name for name in scores["image"]] == ["bad.png", "good.png", "good.png", "good.png"]
    assert scores["problem"][0] == "no image that is known"
    capsys.readouterr()
    run("classify", str(tmp_path / "model"), str(folder / "good.png"), "--task", "side", "--json")
    (row,) = json.loads(capsys.readouterr().out)["scores"]
    assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
    with pytest.raises(DataError, match=r"no images in there"):
        run("classify", str(tmp_path / "model"), str(suite.path("side")))
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        run("classify", str(tmp_path / "model"), "none.png")


def test_classifiers_share_nothing(exported: dict[str, Path]) -> None:
    first, second = (open_classifier(exported["merged"]) for _ in range(2))
    assert isinstance(first, Classifier)
    assert first.encoders[""] is not second.encoders[""]
