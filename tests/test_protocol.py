"""The protocol on a small suite: what is measured, what is checked before, and what is noted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_suite, write

from tsvlib.cache import Cache
from tsvlib.candidate import FINE_TUNED, candidates, from_file
from tsvlib.checkpoint import open_checkpoint
from tsvlib.errors import DataError, MismatchError
from tsvlib.predictions import read_predictions
from tsvlib.preflight import check_before_evaluation
from tsvlib.protocol import measure
from tsvlib.store import Store
from tsvlib.suite import Suite, load_suite
from tsvlib.test_uses import test_uses as uses_of_test


def test_the_record_holds_all_answers_and_reads_back(tuned: Suite, tmp_path: Path) -> None:
    predictions = measure(tuned, candidates(tuned, {}))
    assert set(predictions.answers) == {"test", "validation"}
    assert list(predictions.answers["validation"]) == [FINE_TUNED]
    predictions.write(tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    assert again.classes == predictions.classes
    for task in predictions.tasks:
        assert np.array_equal(again.correct(FINE_TUNED)[task], predictions.correct(FINE_TUNED)[task])
    assert [one.as_dict() for one in again.findings()] == [one.as_dict() for one in predictions.findings()]


def test_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no predictions there"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no file of predictions"):
        read_predictions(tmp_path / "bad.parquet")


def edited(suite: Suite, folder: Path, **task: Any) -> Suite:
    """The suite with other settings of its task ``side``."""
    content = yaml.safe_load((suite.folder / "suite.yaml").read_text())
    content = json.loads(json.dumps(content))
    for name, one in content["tasks"].items():
        one |= {"checkpoint": str(suite.checkpoints[name]), "data": {"location": str((suite.folder / name).absolute())}}
    content |= {"model": str((suite.folder / "model").absolute()) + "/", "base": str(suite.base_uri)}
    content["tasks"]["side"] |= task
    (folder / "suite.yaml").write_text(yaml.safe_dump(content))
    return load_suite(folder / "suite.yaml")


def test_mixed_up_class_names_are_found(tuned: Suite, tmp_path: Path) -> None:
    """``data`` with its names in another order than the labels': nothing but the answers can tell."""
    data = tmp_path / "side"
    data.mkdir()
    for file in (tuned.folder / "side").glob("*.parquet"):
        (data / file.name).write_bytes(file.read_bytes())
    (data / "classes.json").write_text('["right", "left"]')
    suite = edited(tuned, tmp_path, data={"location": str(data)})
    found = measure(suite, candidates(suite, {})).findings()
    assert ("class-order", "side", FINE_TUNED) in {(one.kind, one.task, one.candidate) for one in found}


def test_a_split_of_another_size_is_found(tuned: Suite, tmp_path: Path) -> None:
    data = {"location": str((tuned.folder / "side").absolute()), "sizes": {"test": 121}}
    suite = edited(tuned, tmp_path, data=data)
    found = [one for one in measure(suite, candidates(suite, {})).findings() if one.kind == "split-size"]
    assert ["its test split has 120 images, 121 are expected" in one.message for one in found] == [True]


def test_data_without_validation_images_can_be_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    suite = load_suite(make_suite(tmp_path))
    for file in tmp_path.glob("*/train.parquet"):
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert set(measure(suite, candidates(suite, {})).answers) == {"test"}
    assert "whether the fine-tunes have seen test images cannot be checked" in caplog.text


def test_versions_measured_on_test_are_noted(tuned: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(Store(tmp_path / "store"))
    for checkpoint in ("side", "side", "bright"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            chosen = [*candidates(tuned, {}), from_file(tuned.checkpoints[checkpoint], tuned, "mine")]
            measure(tuned, chosen, cache=cache)
    assert "2 versions of 'mine' have been measured on the test images" in caplog.text
    assert len(uses_of_test(cache.store, tuned)["mine"]) == 2
    measure(tuned, chosen, "validation", cache=cache)
    assert len(uses_of_test(cache.store, tuned)[FINE_TUNED]) == 1


class TestBeforeAnEvaluation:
    """What does not fit is told before work starts, all at once."""

    @pytest.fixture
    def suite(self, tmp_path: Path) -> Suite:
        return load_suite(make_suite(tmp_path))

    def configure(self, suite: Suite, folder: str, **changes: Any) -> None:
        """A configuration beside weights that differs from the model's."""
        config = json.loads((suite.folder / "model" / "open_clip_config.json").read_text())
        for part, values in changes.items():
            config[part] |= values
        (suite.folder / folder / "open_clip_config.json").write_text(json.dumps(config))

    def test_fitting_suites_pass(self, suite: Suite) -> None:
        check_before_evaluation(suite)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"model_cfg": {"quick_gelu": True}},
                "activation is gelu, that of the base .* is quick_gelu, which changes",
            ),
            ({"preprocess_cfg": {"mean": [0.1] * 3}}, "mean is .*so the same image gives other features"),
            ({"preprocess_cfg": {"interpolation": "bilinear"}}, "interpolation is bicubic, that of .* is bilinear"),
            ({"model_cfg": {"text_cfg": {"context_length": 77}}}, "context length is 16, that of .* is 77"),
        ],
    )
    def test_a_base_that_is_not_the_model(self, suite: Suite, changes: dict, message: str) -> None:
        self.configure(suite, ".", **changes)
        with pytest.raises(MismatchError, match=message):
            check_before_evaluation(suite)

    def test_fine_tunes_of_another_base_and_shape(self, suite: Suite) -> None:
        tuned = dict(open_checkpoint(suite.checkpoints["side"]))
        origin = {"origin": {"base": "0" * 64}}
        write(Path(suite.checkpoints["side"]), tuned, origin)
        write(Path(suite.checkpoints["stripe"]), {**tuned, "visual.proj": tuned["visual.proj"][:, :8].contiguous()})
        with pytest.raises(MismatchError) as caught:
            check_before_evaluation(suite)
        first, second = caught.value.problems
        assert "(task 'side'): was fine-tuned from the base 000000000000…, not from" in first
        assert "(task 'stripe'): key 'visual.proj' has shape (32, 8), the base" in second
