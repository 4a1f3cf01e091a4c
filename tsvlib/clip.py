"""The CLIP model around an image encoder: built by open_clip from its configuration, never downloaded here.

A model is named either as open_clip names it (``ViT-B-32-quickgelu``) or by a folder that holds
``open_clip_config.json``, ``model.safetensors`` and, for a vocabulary of its own, ``merges.txt.gz``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize
from torchvision.transforms.functional import normalize, pil_to_tensor

from .checkpoint import Checkpoint, open_checkpoint
from .compatibility import differing
from .errors import MismatchError, SuiteError
from .names import naming_of, to_open_clip
from .sources import Location, local_file
from .sources.about import about_model, about_open_clip
from .store import digest_of

ENCODER_PREFIX = "visual."
CONFIG = "open_clip_config.json"
_TO_FLOATS = ("ToTensor", "MaybeToTensor")  # bytes 0 to 255 become floats 0 to 1


@dataclass(frozen=True)
class Clip:
    """A CLIP model in evaluation mode with its preprocessing and tokenizer."""

    model: Any  # an open_clip.CLIP
    preprocess: Callable[[Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)
    """Activation, preprocessing and tokenizer, under the names of :func:`tsvlib.sources.about.about_model`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """open_clip's configuration of the model and of its preprocessing, as ``open_clip_config.json`` has it."""

    @cached_property
    def configuration(self) -> str:
        """Digest of the configuration."""
        return digest_of(json.dumps(self.config, sort_keys=True))

    def __post_init__(self) -> None:
        self._projection  # noqa: B018  its first use keeps it

    @cached_property
    def _projection(self) -> dict[str, Tensor]:
        """Of the model's own image encoder; kept, because loading another encoder replaces it."""
        own = self.model.visual.state_dict().get("proj")
        return {} if own is None else {f"{ENCODER_PREFIX}proj": own.clone()}

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    @cached_property
    def text_digest(self) -> str:
        """SHA-256 (64 hex digits) over the text tower's weights and configuration."""
        text = {name: one for name, one in self.model.state_dict().items() if not name.startswith(ENCODER_PREFIX)}
        return digest_of(f"{Checkpoint.from_tensors(text).digest} {self.configuration}")

    @cached_property
    def pixel_steps(self) -> tuple[Callable[[Image], Tensor], Callable[[Tensor], Tensor]]:
        """Preprocessing in two: to pixels that are kept, uint8 (3, height, width), and from a batch of them to floats.

        Both together compute what ``preprocess`` does. Where its last steps are unknown, the first is all of it.
        """
        steps = list(getattr(self.preprocess, "transforms", []))
        if len(steps) < 2 or not isinstance(steps[-1], Normalize) or type(steps[-2]).__name__ not in _TO_FLOATS:
            return self.preprocess, lambda batch: batch
        crop = Compose(steps[:-2])
        mean, std = steps[-1].mean, steps[-1].std
        # in place: a batch of floats is four times its pixels, and each thread has one
        return (
            lambda image: pil_to_tensor(crop(image)),
            lambda batch: normalize(batch.float().div_(255), mean, std, inplace=True),
        )

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Copy an image encoder's weights (open_clip's or Hugging Face's names) into the model, in place.

        Raises:
            MismatchError: a parameter of the encoder is missing, unknown or of another shape; nothing is copied then.
        """
        weights = self._renamed(weights)
        if problems := self.encoder_problems(weights):
            raise MismatchError(problems)
        with torch.no_grad():
            for name, tensor in self.model.visual.state_dict().items():
                tensor.copy_(weights[ENCODER_PREFIX + name])

    def encoder_problems(self, weights: Mapping[str, Tensor]) -> list[str]:
        """What keeps weights from being this model's image encoder; of a checkpoint, only names and shapes are read."""
        weights = self._renamed(weights)
        source = weights.source if isinstance(weights, Checkpoint) else "<in memory>"
        needed = {ENCODER_PREFIX + name: tuple(one.shape) for name, one in self.model.visual.state_dict().items()}
        given = {name for name in weights if name.startswith(ENCODER_PREFIX)}
        problems = [f"{source}: key {name!r} is missing." for name in sorted(needed.keys() - given)]
        problems += [f"{source}: key {name!r} is unknown to the model." for name in sorted(given - needed.keys())]
        for name in sorted(needed.keys() & given):
            shape = weights.specs[name].shape if isinstance(weights, Checkpoint) else tuple(weights[name].shape)
            if shape != needed[name]:
                problems.append(f"{source}: key {name!r} has shape {shape}, the model needs {needed[name]}.")
        return problems

    def _renamed(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """With open_clip's names; the projection, which a ``CLIPVisionModel`` lacks, is the model's own."""
        if naming_of(weights) != "huggingface":
            return weights
        checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint.from_tensors(weights)
        return to_open_clip(checkpoint, Checkpoint.from_tensors(self._projection))


def load_clip(model: str | Path, weights: str | Path | None = None) -> Clip:
    """Build a CLIP model with the preprocessing and tokenizer of its own configuration.

    Args:
        model: an open_clip model name, or a folder with ``open_clip_config.json``.
        weights: path or URI of the whole model; by default ``model.safetensors`` of the folder.

    Raises:
        SuiteError: the name is unknown, the folder incomplete, or a name has no weights.
        MismatchError: the weights are not those of such a model, or of another activation or preprocessing.
    """
    folder = Path(model)
    if (folder / CONFIG).is_file():
        return _from_folder(folder, weights or folder / "model.safetensors")
    if folder.is_dir() or folder.suffix or "/" in str(model):
        raise SuiteError(f"{folder}: no open_clip_config.json there. Make the model first, or name an open_clip model.")
    if str(model) not in open_clip.list_models():
        raise SuiteError(
            f"model {str(model)!r}: open_clip knows no such model. List them with open_clip.list_models()."
        )
    if weights is None:
        raise SuiteError(
            f"model {str(model)!r}: an architecture without weights, so no head can be built from text. Name the whole "
            f"model under 'weights' of the suite, such as open-clip://{model}/openai."
        )
    return _from_name(str(model), weights)


def describe_model(model: str | Path) -> dict[str, Any]:
    """Activation, preprocessing and tokenizer of what ``load_clip`` takes, without building it.

    Of an open_clip name, preprocessing is not known: it depends on the weights.
    """
    folder = Path(model)
    if (folder / CONFIG).is_file():
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
        return about_model(Location(str(folder), CONFIG, lambda name: local_file(folder / name), names))
    return about_open_clip({"model_cfg": open_clip.get_model_config(str(model)) or {}})


def _from_name(name: str, weights: str | Path) -> Clip:
    """Preprocessing is what the source of the weights says; open_clip's default where it says nothing."""
    said = open_checkpoint(weights).about
    described = describe_model(name)
    if problems := differing(f"model {name!r}", described, f"its weights {weights}", said):
        raise MismatchError(problems)
    with _without_warning_of_random_weights():
        built, _, preprocess = open_clip.create_model_and_transforms(
            name,
            pretrained=None,
            image_mean=said.get("mean"),
            image_std=said.get("std"),
            image_interpolation=said.get("interpolation"),
            image_resize_mode=said.get("resize_mode"),
        )
    used = about_open_clip({"preprocess_cfg": open_clip.get_model_preprocess_cfg(built)})
    about = described | used
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": used}
    return _finish(built, preprocess, open_clip.get_tokenizer(name), weights, about, config)


def _from_folder(folder: Path, weights: str | Path) -> Clip:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    built = open_clip.CLIP(**config["model_cfg"])
    preprocess = _preprocessing(built.visual.image_size, config["preprocess_cfg"])
    length = config["model_cfg"]["text_cfg"]["context_length"]
    merges = folder / "merges.txt.gz"
    tokenizer = (
        SimpleTokenizer(str(merges), context_length=length)
        if merges.exists()
        else SimpleTokenizer(context_length=length)
    )
    return _finish(built, preprocess, tokenizer, weights, describe_model(folder), config)


def bare_encoder(config: Mapping[str, Any]) -> tuple[nn.Module, Callable[[Image], Tensor]]:
    """The image encoder of a configuration, without weights or memory for them, and its preprocessing.

    Args:
        config: as ``Clip.config`` has it.
    """
    with torch.device("meta"):
        encoder = open_clip.CLIP(**config["model_cfg"]).visual
    return encoder.eval(), _preprocessing(encoder.image_size, config["preprocess_cfg"])


def _preprocessing(image_size: Any, cfg: Mapping[str, Any]) -> Callable[[Image], Tensor]:
    return open_clip.image_transform(
        image_size,
        is_train=False,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        resize_mode=cfg["resize_mode"],
    )


def _finish(
    model: nn.Module,
    preprocess: Any,
    tokenizer: Any,
    weights: str | Path,
    about: dict[str, Any],
    config: dict[str, Any],
) -> Clip:
    given = to_open_clip(open_checkpoint(weights))
    own = model.state_dict()
    problems = [f"{weights}: key {name!r} of the whole model is missing." for name in sorted(own.keys() - set(given))]
    problems += [
        f"{weights}: key {name!r} has shape {given.specs[name].shape}, the model needs {tuple(own[name].shape)}."
        for name in sorted(own.keys() & set(given))
        if given.specs[name].shape != tuple(own[name].shape)
    ]
    if problems:
        hint = "Heads are built from text: name the whole model, not its image encoder alone, under 'weights'."
        raise MismatchError([*problems, hint])
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    return Clip(model.float().eval(), preprocess, tokenizer, about, config)


@contextmanager
def _without_warning_of_random_weights() -> Iterator[None]:
    """open_clip warns on the root logger of a model that it has loaded no weights for; ours are copied in later."""
    root = logging.getLogger()
    quiet = lambda record: "initialized randomly" not in record.getMessage()  # noqa: E731
    root.addFilter(quiet)
    try:
        yield
    finally:
        root.removeFilter(quiet)
