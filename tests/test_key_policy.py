import pytest
import torch
from pydantic import ValidationError

from tsvlib import KeyPolicy


@pytest.mark.parametrize(("name", "shape", "expected"), [
    ("visual.transformer.resblocks.0.attn.in_proj_weight", (2304, 768), 1),
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", (3072, 768), 1),
    ("visual.proj", (768, 512), 1),
    ("visual.positional_embedding", (50, 768), 1),
    ("token_embedding.weight", (49408, 512), 1),
    ("text_projection", (512, 512), 0),
    ("visual.conv1.weight", (768, 3, 32, 32), 0),
    ("visual.class_embedding", (768,), 0),
    ("logit_scale", (), 0),
    ("empty", (0, 4), 0),
])  # fmt: skip
def test_the_papers_default(name, shape, expected):
    assert KeyPolicy().count(name, shape) == expected


@pytest.mark.parametrize(("policy", "name", "shape", "expected"), [
    (KeyPolicy(qkv="split"), "attn.in_proj_weight", (12, 4), 3),
    (KeyPolicy(qkv="split"), "attn.in_proj_weight", (10, 4), 1),
    (KeyPolicy(conv="matrix"), "conv1.weight", (8, 3, 2, 2), 1),
    (KeyPolicy(embeddings="mean"), "vision_model.embeddings.position_embedding.weight", (5, 4), 0),
    (KeyPolicy(text_projection="matrix"), "text_projection", (4, 4), 1),
])  # fmt: skip
def test_other_policies(policy, name, shape, expected):
    assert policy.count(name, shape) == expected


@pytest.mark.parametrize(("policy", "name", "shape"), [
    (KeyPolicy(), "visual.proj", (6, 4)),
    (KeyPolicy(qkv="split"), "attn.in_proj_weight", (12, 4)),
    (KeyPolicy(conv="matrix"), "conv1.weight", (8, 3, 2, 2)),
])  # fmt: skip
def test_joining_undoes_splitting(policy, name, shape):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    matrices = policy.split(name, tensor)
    assert len(matrices) == policy.count(name, shape)
    assert all(matrix.ndim == 2 for matrix in matrices)
    assert torch.equal(policy.join(matrices, shape), tensor)


def test_queries_keys_and_values_are_the_thirds():
    tensor = torch.arange(12.0).reshape(6, 2)
    q, k, v = KeyPolicy(qkv="split").split("attn.in_proj_weight", tensor)
    assert torch.equal(q, tensor[:2])
    assert torch.equal(k, tensor[2:4])
    assert torch.equal(v, tensor[4:])


def test_no_matrix_splits_into_nothing():
    assert KeyPolicy().split("class_embedding", torch.ones(4)) == ()


def test_it_goes_through_json():
    policy = KeyPolicy(qkv="split", conv="matrix")
    assert KeyPolicy.model_validate_json(policy.model_dump_json()) == policy


def test_unknown_field():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        KeyPolicy(kernel="matrix")
