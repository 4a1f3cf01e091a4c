"""What a torch file's pickle says: tensors (where their values lie, not the values), modules and state dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError
from ..tensors import DTYPE_NAMES, TensorSpec
from .contents import Contents, StoredTensor
from .pickle_reader import Reference, StandIn, read_pickle

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_STORAGE_MODULES = {"torch", "torch.cuda", "torch.storage"}
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module", "network", "net")
_MOST_TENSORS = 1_000_000
_DEEPEST_MODULE = 64


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of values somewhere in the file, named by a key."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class TensorView:
    """A tensor as torch pickles it: a view of a storage. Offset and stride count elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_object(file: BinaryIO, source: str) -> tuple[Any, dict[str, Storage]]:
    """The object that a torch file's pickle describes, and every storage that it points at, by key."""
    storages: dict[str, Storage] = {}

    def load(identifier: Any) -> Any:
        if identifier[0] == "module":  # a class with its source code, which the old layout kept to warn of changes
            return identifier[1]
        storage = _storage(identifier)
        return storages.setdefault(storage.key, storage)

    return read_pickle(file, source, _build, load), storages


def find_contents(root: Any, starts: Mapping[str, int], source: str) -> Contents:
    """The named tensors of a state dict, a training checkpoint or a whole module.

    Args:
        starts: the first byte of each storage, by key.

    Raises:
        CheckpointError: there are none, or one cannot be read.
    """
    named, nested = _named_values(root, source)
    tensors = {name: _stored(name, value, starts, source) for name, value in named.items()}
    if not tensors:
        raise CheckpointError(f"{source}: holds no weights: {_describe(root)}. Save the model's state_dict() instead.")
    return Contents(tensors, nested=nested)


def _build(function: Reference, arguments: Sequence[Any]) -> Any:
    """The objects that matter here: dictionaries, tensors and parameters."""
    match str(function):
        case "collections.OrderedDict" | "builtins.dict" if not arguments:
            return {}
        case "builtins.set" | "__builtin__.set" if arguments and isinstance(arguments[0], list):
            return arguments[0]
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride, *_ = arguments
            return _view(storage, storage.dtype, offset, shape, stride)
        case "torch._utils._rebuild_tensor_v3":
            storage, offset, shape, stride, _, _, dtype, *_ = arguments
            return _view(storage, _dtype(dtype), offset, shape, stride)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return arguments[0]
        case "torch.nn.parameter.Parameter" if arguments and isinstance(arguments[0], TensorView):
            return arguments[0]
        case "torch._tensor._rebuild_from_type_v2":  # a subclass of Tensor; the values are those of the tensor inside
            rebuild, _, inner, _ = arguments
            return _build(rebuild, inner) if isinstance(rebuild, Reference) and rebuild is not function else None
    return None


def _storage(identifier: Any) -> Storage:
    tag, kind, key, _, numel, *rest = identifier
    if tag != "storage" or not isinstance(kind, Reference) or kind.module not in _STORAGE_MODULES:
        raise ValueError("a pointer to something that is no storage")
    if kind.name not in _STORAGE_DTYPES:
        raise ValueError(f"values of the kind {kind.name}, which are quantised or unknown")
    if rest and rest[0] is not None:
        raise ValueError("a storage that is a view of another, as torch before 0.4 wrote; save it again")
    if not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise ValueError("a storage without a proper key and size")
    return Storage(key, _STORAGE_DTYPES[kind.name], numel)


def _dtype(reference: Any) -> torch.dtype:
    dtype = getattr(torch, reference.name, None) if str(reference).startswith("torch.") else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{reference} in place of a dtype")
    return dtype


def _view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> TensorView:
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor without a proper shape")
    view = TensorView(storage, dtype, offset, tuple(shape), tuple(stride))
    spec = TensorSpec(view.shape, dtype)
    span = StoredTensor(spec, 0, view.stride).span
    if spec.nbytes and (offset * dtype.itemsize + span > storage.nbytes or spec.nbytes > storage.nbytes):
        raise ValueError(f"a tensor of shape {view.shape}, larger than the {storage.nbytes:,} bytes stored for it")
    return view


def _named_values(root: Any, source: str) -> tuple[dict[str, Any], bool]:
    """Name -> tensor, and whether they lay under a key such as ``state_dict``."""
    if not isinstance(root, dict):
        return dict(_module_tensors(root, source)), False
    for key in _STATE_DICT_KEYS:
        inner = root.get(key)
        if isinstance(inner, dict | StandIn) and (named := _named_values(inner, source)[0]):
            return named, True
    return {name: value for name, value in root.items() if isinstance(name, str) and _is_tensor(value)}, False


def _module_tensors(root: Any, source: str) -> Iterator[tuple[str, Any]]:
    """Parameters and persistent buffers of a pickled module, named as ``state_dict()`` would."""
    pending = [("", root)]
    count = 0
    while pending:
        prefix, module = pending.pop()
        if prefix.count(".") > _DEEPEST_MODULE or count > _MOST_TENSORS:
            raise CheckpointError(f"{source}: its modules are nested endlessly. Save the model's state_dict() instead.")
        children = []
        for name, value in _members(module):
            count += 1
            if _is_tensor(value):
                yield prefix + name, value
            elif isinstance(value, StandIn):
                children.append((f"{prefix}{name}.", value))
        pending += reversed(children)


def _members(module: Any) -> Iterator[tuple[str, Any]]:
    state = module.state if isinstance(module, StandIn) else None
    if not isinstance(state, dict):
        return
    if "_modules" not in state:  # a TorchScript archive keeps tensors and children as plain attributes
        yield from ((name, value) for name, value in state.items() if isinstance(name, str))
        return
    transient = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers", "_modules"):
        members = state.get(group)
        for name, value in members.items() if isinstance(members, dict) else ():
            if isinstance(name, str) and not (group == "_buffers" and name in transient):
                yield name, value


def _is_tensor(value: Any) -> bool:
    unreadable = isinstance(value, StandIn) and str(value.of).startswith("torch._utils._rebuild")
    return isinstance(value, TensorView) or unreadable


def _stored(name: str, value: Any, starts: Mapping[str, int], source: str) -> StoredTensor:
    if not isinstance(value, TensorView):
        raise CheckpointError(f"{source}: key {name!r} is sparse or quantised ({value.of}); save it as a dense tensor.")
    if value.dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"{source}: key {name!r} has the unsupported dtype {value.dtype}; convert it to one of "
            f"{', '.join(DTYPE_NAMES.values())}."
        )
    if value.storage.key not in starts:
        raise CheckpointError(
            f"{source}: the values of key {name!r} are not in the file. It is damaged; fetch it again."
        )
    start = starts[value.storage.key] + value.offset * value.dtype.itemsize
    return StoredTensor(TensorSpec(value.shape, value.dtype), start, value.stride)


def _describe(root: Any) -> str:
    match root:
        case TensorView():
            return "it is a single tensor without a name"
        case dict():
            return f"it is a dictionary with the keys {', '.join(sorted(map(str, root))[:10]) or '(none)'}"
        case StandIn():
            return f"it is a {root.of} without parameters"
        case _:
            return f"it is a {type(root).__name__}"
