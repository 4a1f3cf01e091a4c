"""The guard, on the published figures that are known to be wrong and on answers made for it."""

from __future__ import annotations

import numpy as np
import pytest

from tsvlib.guard import (
    Count,
    check_class_order,
    check_leak,
    check_one_class,
    check_reference,
    check_split_size,
    doubtful_tasks,
)

# Fine-tuned ViTs of the published tables, accuracy in per cent on test and on validation images. DTD's fine-tuning
# folder held the 1880 test images: the validation accuracies fit 564 = 10 % of all 5640 images of DTD.
DTD_TEST, DTD_VALIDATION = 1880, 564
DTD = {"ViT-B-32": (97.98, 78.55), "ViT-B-16": (98.30, 82.09), "ViT-L-14": (98.51, 85.11)}
# TSV-Merge of 8, 14 and 20 tasks with ViT-B-32, DTD second
TSV_M = {
    8: [70.46, 85.21, 95.12, 92.12, 99.28, 85.89, 91.62, 67.21],
    14: [60.17, 75.64, 92.05, 84.71, 98.94, 80.35, 84.45, 64.97, 96.84, 90.08, 74.97, 70.39, 83.90, 63.43],
    20: [
        52.26, 70.32, 87.33, 76.79, 94.48, 75.48, 75.81, 64.33, 96.55, 88.88, 71.20, 67.82, 84.33, 57.93, 93.66,
        77.73, 85.47, 70.18, 95.45, 55.33,
    ],
}  # fmt: skip


@pytest.mark.parametrize("model", DTD)
def test_the_leaked_dtd_reference_is_found(model: str) -> None:
    test, validation = DTD[model]
    (found,) = check_leak(
        "dtd", "fine-tuned", Count.of(test / 100, DTD_TEST), Count.of(validation / 100, DTD_VALIDATION)
    )
    assert (found.kind, found.task, found.doubts_task) == ("leak", "dtd", True)
    assert "it has probably been trained on test images" in found.message
    assert (
        f"{test / 100:.1%} of 1,880 test images but on {validation / 100:.1%} of 564 validation images" in found.message
    )


def test_dtds_validation_split_has_the_wrong_size() -> None:
    (found,) = check_split_size("dtd", "validation", DTD_VALIDATION, 376)
    assert "its validation split has 564 images, 376 are expected" in found.message
    assert not check_split_size("dtd", "test", DTD_TEST, 1880)


@pytest.mark.parametrize("tasks", TSV_M)
def test_without_dtd_the_averages_are_those_of_an_honest_table(tasks: int) -> None:
    names = ["cars", "dtd", *(f"task {i}" for i in range(2, tasks))]
    findings = check_leak("dtd", "fine-tuned", Count.of(0.9798, DTD_TEST), Count.of(0.7855, DTD_VALIDATION))
    kept = [
        accuracy for name, accuracy in zip(names, TSV_M[tasks], strict=True) if name not in doubtful_tasks(findings)
    ]
    assert np.mean(kept) == pytest.approx({8: 85.96, 14: 80.40, 20: 77.42}[tasks], abs=0.01)


def test_honest_references_pass() -> None:
    """Other families' fine-tunes on DTD, and ordinary scatter between splits."""
    assert not check_leak("dtd", "fine-tuned", Count.of(0.7968, 1880), Count.of(0.7855, 376))
    assert not check_leak("mnist", "fine-tuned", Count.of(0.9969, 10000), Count.of(0.9950, 5000))
    assert not check_leak("flowers", "fine-tuned", Count.of(0.905, 6149), Count.of(0.86, 102))  # few images


def test_eurosat_on_other_images_than_its_reference() -> None:
    """21 600 images instead of 2 700, and TSV-Compress above the fine-tuned model."""
    (size,) = check_split_size("eurosat", "test", 21600, 2700)
    (above,) = check_reference("eurosat", "tsv-c", Count.of(0.9982, 21600), Count.of(0.9893, 2700))
    assert (size.kind, above.kind) == ("split-size", "above-reference")
    assert "which are other images" in above.message
    assert doubtful_tasks([size, above]) == ["eurosat"]


def test_a_little_above_the_reference_is_chance() -> None:
    assert not check_reference("mnist", "tsv-c", Count.of(0.9970, 10000), Count.of(0.9969, 10000))
    assert not check_reference("mnist", "tsv-c", Count(90, 100), Count(85, 100), p_value=0.06)
    assert check_reference("mnist", "tsv-c", Count(90, 100), Count(85, 100), p_value=1e-6)


def answers(accuracy: float, classes: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and predictions of this accuracy with errors spread evenly."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    wrong = (labels + random.integers(1, classes, size=images)) % classes
    return labels, np.where(random.random(images) < accuracy, labels, wrong)


def test_classes_in_another_order_are_found() -> None:
    labels, predicted = answers(0.9, 10, 2000)
    order = np.roll(np.arange(10), 3)
    classes = [f"class {i}" for i in range(10)]
    (found,) = check_class_order("cars", "fine-tuned", labels, order[predicted], classes, True)
    assert found.kind == "class-order"
    assert "if the classes stood in another order" in found.message
    assert "images of 'class 3' are called 'class 0'" in found.message


def test_two_swapped_classes_of_many_are_found() -> None:
    labels, predicted = answers(0.95, 10, 2000)
    order = np.arange(10)
    order[[2, 7]] = 7, 2
    classes = [f"class {i}" for i in range(10)]
    (found,) = check_class_order("cars", "fine-tuned", labels, order[predicted], classes, True)
    assert "images of 'class 7' are called 'class 2'" in found.message
    assert "images of 'class 2' are called 'class 7'" in found.message


@pytest.mark.parametrize("accuracy", [0.02, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("classes", [2, 43])
@pytest.mark.parametrize("images", [1, 40, 2000])
def test_weak_models_are_not_taken_for_mixed_up_classes(accuracy: float, classes: int, images: int) -> None:
    if classes == 2 and accuracy < 0.5:
        pytest.skip("wrong on most of two classes is what swapped classes are")
    labels, predicted = answers(accuracy, classes, images)
    assert not check_class_order("task", "x", labels, predicted, [str(i) for i in range(classes)], True)


def test_a_zero_shot_model_that_sees_other_things_is_not_taken_for_mixed_up_classes() -> None:
    """As a base that knows no traffic signs: similar signs get similar answers, which name something else."""
    random = np.random.default_rng(0)
    labels = random.integers(43, size=1500)
    predicted = np.where(random.random(1500) < 0.3, labels // 4, random.integers(43, size=1500))
    assert not check_class_order("gtsrb", "zero-shot", labels, predicted, [str(i) for i in range(43)], False)


def test_one_answer_to_everything_is_found() -> None:
    labels, predicted = answers(0.5, 4, 1000)
    classes = ["a", "b", "c", "d"]
    (found,) = check_one_class("task", "low-rank-sum", labels, np.full(1000, 2), classes, False)
    assert "low-rank-sum calls 100% of the images 'c'" in found.message
    assert not check_one_class("task", "x", labels, predicted, classes, False)
    assert not check_one_class("task", "x", np.full(1000, 2), np.full(1000, 2), classes, False)  # rightly so
