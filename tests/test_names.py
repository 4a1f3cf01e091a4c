"""open_clip's and Hugging Face's names, proven by the libraries themselves: equal features from the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tsvlib.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from tsvlib.errors import CheckpointError
from tsvlib.names import naming_of, to_hugging_face, to_open_clip

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
WIDTH, LAYERS, PATCH, IMAGE, EMBEDDING, TEXT, WORDS, LENGTH = 64, 2, 8, 16, 24, 64, 40, 7


@pytest.fixture(scope="module")
def open_clip_model() -> nn.Module:
    import open_clip

    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=LAYERS, width=WIDTH, head_width=32, patch_size=PATCH, image_size=IMAGE)
    text = open_clip.CLIPTextCfg(context_length=LENGTH, vocab_size=WORDS, width=TEXT, heads=2, layers=LAYERS)
    model = open_clip.CLIP(EMBEDDING, vision, text, quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 8)
    return model


@pytest.fixture(scope="module")
def hugging_face_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    both = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "projection_dim": EMBEDDING}
    vision = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, image_size=IMAGE, patch_size=PATCH, **both)
    text = dict(
        hidden_size=TEXT, intermediate_size=4 * TEXT, vocab_size=WORDS, max_position_embeddings=LENGTH,
        bos_token_id=0, eos_token_id=WORDS - 1, pad_token_id=1, **both,
    )  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=EMBEDDING)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 8)
    return model


def images() -> Tensor:
    return torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(2))


def words() -> Tensor:
    text = torch.randint(2, WORDS - 1, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    text[:, -1] = WORDS - 1  # the largest, by which both libraries find the end of a text
    return text


def features(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Image and text features, (3, EMBEDDING) each."""
    with torch.no_grad():
        if hasattr(model, "encode_image"):
            return model.encode_image(images()), model.encode_text(words())
        found = model(input_ids=words(), pixel_values=images())
        pair = model.get_image_features(images()), model.get_text_features(words())
        assert found.image_embeds.shape == (3, EMBEDDING)
        return tuple(getattr(one, "pooler_output", one) for one in pair)


def assert_same_features(one: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(features(one), features(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_open_clip_takes_hugging_face_weights(open_clip_model: nn.Module, hugging_face_model: nn.Module) -> None:
    converted = to_open_clip(Checkpoint.from_tensors(hugging_face_model.state_dict()))
    before = features(open_clip_model)[0]
    open_clip_model.load_state_dict(dict(converted), strict=True)
    assert not torch.allclose(features(open_clip_model)[0], before)
    assert_same_features(open_clip_model, hugging_face_model)


def test_hugging_face_takes_open_clip_weights(open_clip_model: nn.Module, hugging_face_model: nn.Module) -> None:
    converted = to_hugging_face(Checkpoint.from_tensors(open_clip_model.state_dict()))
    hugging_face_model.load_state_dict(dict(converted), strict=True)
    assert_same_features(open_clip_model, hugging_face_model)


def test_there_and_back_is_the_same_file(tmp_path: Path, open_clip_model: nn.Module) -> None:
    original = Checkpoint.from_tensors(open_clip_model.state_dict())
    there = to_hugging_face(original)
    written = write_checkpoint(tmp_path / "there.safetensors", there.specs, there.items())
    assert naming_of(written) == "huggingface"
    assert to_open_clip(written).digest == original.digest


@pytest.mark.parametrize("prefix", ["", "vision_model."], ids=["transformers 5", "transformers 4"])
def test_a_vision_model_is_completed_from_the_base(open_clip_model: nn.Module, prefix: str) -> None:
    whole = {name: t for name, t in open_clip_model.state_dict().items() if name.startswith("visual.")}
    vision = dict(to_hugging_face(Checkpoint.from_tensors(whole)))
    del vision["visual_projection.weight"]
    vision = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in vision.items()}
    vision[f"{prefix}embeddings.position_ids"] = torch.arange(5)[None]
    tuned = to_open_clip(Checkpoint.from_tensors(vision))
    assert tuned.keys() == whole.keys() - {"visual.proj"}
    assert to_open_clip(Checkpoint.from_tensors(vision), Checkpoint.from_tensors(whole)).digest == (
        Checkpoint.from_tensors(whole).digest
    )


def test_a_vision_model_saved_by_transformers(tmp_path: Path, hugging_face_model: nn.Module) -> None:
    import transformers

    vision = transformers.CLIPVisionModelWithProjection(hugging_face_model.config.vision_config)
    vision.load_state_dict(hugging_face_model.state_dict(), strict=False)
    vision.save_pretrained(tmp_path)
    ours = to_open_clip(open_checkpoint(tmp_path))
    whole = to_open_clip(Checkpoint.from_tensors(hugging_face_model.state_dict()))
    assert {name for name in whole if name.startswith("visual.")} == set(ours)
    assert all(torch.equal(ours[name], whole[name]) for name in ours)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.head.probe"], id="SigLIP"),
        pytest.param(["visual.trunk.blocks.0.attn.qkv.weight", "visual.trunk.pos_embed"], id="timm in open_clip"),
        pytest.param(["blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "norm.weight"], id="timm"),
        pytest.param(["model.layers.0.self_attn.q_proj.weight"], id="language model"),
    ],
)
def test_other_families_pass_untouched(names: list[str]) -> None:
    checkpoint = Checkpoint.from_tensors({name: torch.randn(6, 2) for name in names})
    assert naming_of(checkpoint) == "other"
    assert to_open_clip(checkpoint) is checkpoint
    assert to_hugging_face(checkpoint) is checkpoint


def test_a_layer_without_its_key_is_told(tmp_path: Path, hugging_face_model: nn.Module) -> None:
    tensors = dict(hugging_face_model.state_dict())
    del tensors["vision_model.encoder.layers.0.self_attn.k_proj.bias"]
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        to_open_clip(open_checkpoint(tmp_path / "w.safetensors"))
    there = "vision_model.encoder.layers.0.self_attn.q_proj.bias"
    assert str(caught.value) == (
        f"{tmp_path}/w.safetensors: key {there!r} is there, but "
        f"{there.replace('q_proj', 'k_proj')!r} is not; open_clip keeps them as one. Export the whole layer."
    )
