"""A plan names everything that stands against a merge at once, and reads no more than it must."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from loopback import Site, serving
from torch import Tensor

from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import MethodError, MismatchError
from tsvlib.key_policy import KeyPolicy
from tsvlib.merging import merge
from tsvlib.plan import Plan, plan

RANDOM = torch.Generator().manual_seed(0)
BASE = {
    "visual.conv1.weight": torch.randn(8, 3, 4, 4, generator=RANDOM),
    "visual.ln_pre.weight": torch.ones(8),
    "visual.transformer.resblocks.0.attn.in_proj_weight": torch.randn(24, 8, generator=RANDOM),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": torch.randn(32, 8, generator=RANDOM),
    "visual.proj": torch.randn(8, 4, generator=RANDOM),
    "steps": torch.tensor(7),
}


def tuned(seed: int, scale: float = 0.05, but: Mapping[str, Tensor | None] | None = None) -> dict[str, Tensor]:
    """The base, moved at random; ``but`` replaces or removes tensors."""
    random = torch.Generator().manual_seed(seed)
    moved = {
        name: tensor + scale * torch.randn(tensor.shape, generator=random) if tensor.is_floating_point() else tensor
        for name, tensor in BASE.items()
    }
    moved["visual.proj"] = BASE["visual.proj"].clone()
    moved |= but or {}
    return {name: tensor for name, tensor in moved.items() if tensor is not None}


def planned(folder: Path, base: dict[str, Tensor] | None = None, **tasks: dict[str, Tensor]) -> Plan:
    safetensors.torch.save_file(base or BASE, folder / "base.safetensors")
    for task, tensors in tasks.items():
        safetensors.torch.save_file(tensors, folder / f"{task}.safetensors")
    return plan(folder / "base.safetensors", {task: folder / f"{task}.safetensors" for task in tasks})


def problems(folder: Path, **tasks: dict[str, Tensor]) -> list[str]:
    return [problem.replace(f"{folder}/", "") for problem in planned(folder, **tasks).problems]


def test_a_sound_merge(tmp_path: Path) -> None:
    found = planned(tmp_path, a=tuned(1), b=tuned(2))
    assert found.problems == found.notes == []
    assert {tensor.name.removeprefix("visual."): tensor.treatment for tensor in found.tensors} == {
        "conv1.weight": "mean",
        "ln_pre.weight": "mean",
        "transformer.resblocks.0.attn.in_proj_weight": "svd",
        "transformer.resblocks.0.mlp.c_fc.weight": "svd",
        "proj": "skip-zero",
        "steps": "passthrough",
    }
    assert found.bytes_to_fetch == 0
    assert [file.here for file in found.files] == [True] * 3
    assert found.changes.keys() == {"a", "b"}
    assert all(0.01 < share < 0.1 for share in found.changes.values())
    assert found.out_bytes == sum(tensor.nbytes for tensor in BASE.values())
    json.dumps(found.as_dict())


def test_the_key_policy_and_the_method_decide(tmp_path: Path) -> None:
    planned(tmp_path, a=tuned(1))
    task = {"a": tmp_path / "a.safetensors"}
    found = plan(tmp_path / "base.safetensors", task, "ties", key_policy=KeyPolicy(qkv="split", conv="matrix"))
    by_name = {tensor.name: (tensor.treatment, tensor.matrices) for tensor in found.tensors}
    assert by_name["visual.conv1.weight"] == ("delta", 1)
    assert by_name["visual.transformer.resblocks.0.attn.in_proj_weight"] == ("delta", 3)


def test_a_wrong_method_fails_before_any_file_is_opened() -> None:
    with pytest.raises(MethodError, match=r"unknown method 'tsv-n'\. Did you mean 'tsv-m'"):
        plan("nowhere.safetensors", {}, "tsv-n")


WRONG: dict[str, tuple[dict[str, Tensor], list[str]]] = {
    "missing and extra keys, another shape and kind": (
        tuned(1, but={"visual.proj": None, "visual.new": torch.ones(2), "visual.ln_pre.weight": torch.ones(9),
                      "steps": torch.tensor(7.0)}),
        [
            "a.safetensors (task 'a'): lacks the key 'visual.proj' of the base base.safetensors. Export the whole "
            "model.",
            "a.safetensors (task 'a'): has the key 'visual.new', not in the base base.safetensors. Export what the "
            "base has and no more.",
            "a.safetensors (task 'a'): key 'steps' is F32, the base base.safetensors has I64.",
            "a.safetensors (task 'a'): key 'visual.ln_pre.weight' has shape (9,), the base base.safetensors has (8,).",
        ],
    ),
    "another architecture": (
        {name: torch.ones(3) for name in BASE},
        ["a.safetensors (task 'a'): another architecture: only 0 of the 6 keys of the base base.safetensors have the "
         "same name and shape. Merge only fine-tunes of one base."],
    ),
    "other names": (
        {"vision_model.pre_layrnorm.weight": torch.ones(8)},
        ["a.safetensors (task 'a'): its parameters are named as in huggingface, those of the base base.safetensors "
         "as in open_clip. Convert one of them: 'tsv convert a.safetensors --names open_clip --out FILE'."],
    ),
    "the base itself": (
        dict(BASE),
        ["a.safetensors (task 'a'): has the base's values throughout, so it adds nothing. Check that it is the "
         "fine-tuned file."],
    ),
    "NaN": (
        tuned(1, but={"visual.ln_pre.weight": torch.full((8,), torch.nan)}),
        ["a.safetensors (task 'a'): NaN or Inf in the key 'visual.ln_pre.weight'. Take an earlier checkpoint of that "
         "training."],
    ),
    "another base": (
        tuned(1, scale=1.0),
        ["a.safetensors (task 'a'): differs from the base base.safetensors by 100% of the base's norm, so it does not "
         "descend from this base. Find the base that it was fine-tuned from."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_fine_tune(tmp_path: Path, kind: str) -> None:
    tensors, expected = WRONG[kind]
    base = {**BASE, "visual.ln_pre.weight": torch.ones(8)}
    found = [problem.replace(f"{tmp_path}/", "") for problem in planned(tmp_path, base, a=tensors).problems]
    if kind == "another base":
        found = [problem.replace(problem.split(" by ")[1].split("%")[0], "100") for problem in found]
    assert found == expected


def test_all_problems_of_all_tasks_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, a=tuned(1, but={"visual.proj": None}), b=dict(BASE), c=tuned(3, scale=2.0), d=tuned(4))
    (tmp_path / "a.safetensors").write_text("no weights")
    assert [problem.split(":")[0] for problem in found] == [f"{t}.safetensors (task '{t}')" for t in "abc"]
    again = plan(tmp_path / "base.safetensors", {t: tmp_path / f"{t}.safetensors" for t in ("a", "d", "e")})
    assert [problem.replace(f"{tmp_path}/", "") for problem in again.problems] == [
        "a.safetensors: a text file, not weights; it starts with 'no weights'. Check the path. (task 'a')",
        "e.safetensors: no such checkpoint. Check the path, or make it first ('dvc repro'). (task 'e')",
    ]


def test_the_same_fine_tune_twice(tmp_path: Path) -> None:
    assert problems(tmp_path, a=tuned(1), b=tuned(1)) == [
        "b.safetensors (task 'b'): is the same as a.safetensors (task 'a'). Check the paths; the same fine-tune "
        "twice counts twice."
    ]


def test_integers_that_differ_are_noted(tmp_path: Path) -> None:
    found = planned(tmp_path, a=tuned(1, but={"steps": torch.tensor(9)}))
    assert found.problems == []
    assert [note.replace(f"{tmp_path}/", "") for note in found.notes] == [
        "a.safetensors (task 'a'): integers that differ from the base's in the key 'steps'; the merge keeps the base's."
    ]


HUGGING_FACE = {"config.json": {"vision_config": {"hidden_act": "quick_gelu"}}}
RULES = ["t h", "th e</w>"]
OPEN_CLIP = {"open_clip_config.json": {"model_cfg": {"quick_gelu": True, "vision_cfg": {"image_size": 224}}}}


@pytest.mark.parametrize(
    ("beside_base", "beside_task", "expected"),
    [
        pytest.param(
            HUGGING_FACE, {"config.json": {"hidden_act": "gelu"}}, ["activation is gelu, that of the base"], id="HF"
        ),
        pytest.param(OPEN_CLIP, HUGGING_FACE, [], id="the same, told by two libraries"),
        pytest.param(
            OPEN_CLIP,
            {"open_clip_config.json": {"model_cfg": {"vision_cfg": {"image_size": 336}}}},
            ["activation is gelu, that of the base", "image size is 336, that of the base"],
            id="open_clip",
        ),
        pytest.param(
            {"preprocessor_config.json": {"image_mean": [0.48145466, 0.5, 0.4], "image_std": [1, 1, 1]}},
            {"open_clip_config.json": {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]}}},
            ["mean is (0.5, 0.5, 0.5), that of the base"],
            id="preprocessing",
        ),
        pytest.param(
            {"open_clip_config.json": {"model_cfg": {"text_cfg": {"vocab_size": 512}}}, "merges.txt.gz": RULES},
            {"config.json": {"text_config": {"vocab_size": 49408, "max_position_embeddings": 32}}},
            ["vocabulary size is 49408, that of the base", "context length is 32, that of the base"],
            id="tokenizer",
        ),
        pytest.param({"merges.txt.gz": RULES}, {"merges.txt": RULES}, [], id="one vocabulary, packed in one of them"),
        pytest.param({"merges.txt": RULES}, {"merges.txt": RULES[::-1]}, ["vocabulary is "], id="other vocabulary"),
        pytest.param({}, OPEN_CLIP, [], id="nothing known of the base"),
        pytest.param(OPEN_CLIP, {"config.json": ["no", "object"]}, [], id="unreadable"),
    ],
)
def test_activation_preprocessing_and_tokenizer(
    tmp_path: Path, beside_base: dict[str, Any], beside_task: dict[str, Any], expected: list[str]
) -> None:
    for folder, tensors, beside in (("base", BASE, beside_base), ("task", tuned(1), beside_task)):
        (tmp_path / folder).mkdir()
        safetensors.torch.save_file(tensors, tmp_path / folder / "model.safetensors")
        for name, content in beside.items():
            text = "\n".join(["#version", *content]) if name.startswith("merges") else json.dumps(content)
            packed = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
            (tmp_path / folder / name).write_bytes(packed)
    found = plan(tmp_path / "base", {"a": tmp_path / "task"}).problems
    assert len(found) == len(expected)
    for problem, part in zip(found, expected, strict=True):
        assert part in problem
        assert problem.endswith("Use the base that it was fine-tuned from.")


def test_a_merge_checks_what_the_plan_checks(tmp_path: Path) -> None:
    for folder, tensors, config in (("base", BASE, "quick_gelu"), ("task", tuned(1), "gelu")):
        (tmp_path / folder).mkdir()
        safetensors.torch.save_file(tensors, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps({"hidden_act": config}))
    with pytest.raises(MismatchError) as caught:
        merge(open_checkpoint(tmp_path / "base"), {"a": open_checkpoint(tmp_path / "task")})
    assert caught.value.problems == plan(tmp_path / "base", {"a": tmp_path / "task"}, values=False).problems


def test_what_a_merged_file_is_meant_for_is_known_elsewhere(tmp_path: Path) -> None:
    about = {"activation": "quick_gelu", "mean": (0.5, 0.5, 0.5)}
    merge(Checkpoint.from_tensors(BASE, about=about), {"a": Checkpoint.from_tensors(tuned(1))}, out=tmp_path / "m")
    assert open_checkpoint(tmp_path / "m").about == about


@pytest.mark.services
def test_elsewhere_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))
    big = {"visual.big": torch.zeros(1000, 1000)}
    files = {f"/{name}.safetensors": safetensors.torch.save(BASE | big) for name in ("base", "a")}
    with serving(Site(files)) as site:
        uris = {name: f"{site.url}/{name}.safetensors" for name in ("base", "a")}
        found = plan(uris["base"], {"a": uris["a"]})
        assert found.problems == []
        assert found.notes == ["not compared with the base until they are fetched: a (run 'tsv fetch' first)."]
        assert found.bytes_to_fetch == 2 * len(files["/a.safetensors"])
        assert site.bytes_sent < found.bytes_to_fetch / 10
        from tsvlib.checkpoint import open_checkpoint

        for uri in uris.values():
            open_checkpoint(uri)
        fetched = plan(uris["base"], {"a": uris["a"]})
        assert fetched.bytes_to_fetch == 0
        assert len(fetched.problems) == 1
        assert "has the base's values throughout" in fetched.problems[0]
