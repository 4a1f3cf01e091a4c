"""The encoders of many tasks within bounded memory: made when they are asked for, the least recently used let go."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from torch import Tensor, nn

from ..clip import ENCODER_PREFIX
from ..errors import MismatchError

WeightsOf = Callable[[str], Mapping[str, Tensor]]


class EncoderPool:
    """Encoders by name. Safe to ask from several threads: an encoder is made by the first, the others wait for it.

    Args:
        bare: the module without weights.
        weights_of: the weights of an encoder, under the names ``visual.*``; called without a lock.
        most_bytes: of the encoders kept, as if each stood alone. The one asked for last is kept whatever its size;
            those that are still in use when they are let go live until they are not.
        shared: weights that encoders have in common; not counted where ``weights_of`` gives the same tensor.
    """

    def __init__(
        self, bare: nn.Module, weights_of: WeightsOf, most_bytes: int, shared: Mapping[str, Tensor] | None = None
    ) -> None:
        self._bare = bare
        self._weights_of = weights_of
        self._most_bytes = most_bytes
        self._shared = shared or {}
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Future[tuple[nn.Module, int]]] = OrderedDict()
        self.made = 0
        """How many encoders were made so far; more than there are names if some were let go and asked for again."""

    def __getitem__(self, name: str) -> nn.Module:
        with self._lock:
            found = self._kept.get(name)
            mine = found is None
            if found is None:
                found = self._kept[name] = Future()
                self.made += 1
            self._kept.move_to_end(name)
        if mine:
            try:
                found.set_result(self._make(name))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(name, None)
                found.set_exception(error)
            self._let_go()
        return found.result()[0]

    @property
    def nbytes(self) -> int:
        """Of the encoders kept."""
        with self._lock:
            return sum(size for _, size in self._finished().values())

    def _finished(self) -> dict[str, tuple[nn.Module, int]]:
        return {name: one.result() for name, one in self._kept.items() if one.done() and not one.exception()}

    def _let_go(self) -> None:
        with self._lock:
            finished = self._finished()
            total = sum(size for _, size in finished.values())
            for name, (_, size) in list(finished.items())[:-1]:
                if total <= self._most_bytes:
                    return
                del self._kept[name]
                total -= size

    def _make(self, name: str) -> tuple[nn.Module, int]:
        given = {
            key.removeprefix(ENCODER_PREFIX): tensor
            for key, tensor in self._weights_of(name).items()
            if key.startswith(ENCODER_PREFIX)
        }
        wanted = self._bare.state_dict()
        if differing := sorted(given.keys() ^ wanted.keys()):
            raise MismatchError([f"{name}: key {key!r} is missing or unknown to the model." for key in differing])
        if differing := [key for key in wanted if given[key].shape != wanted[key].shape]:
            raise MismatchError([f"{name}: key {key!r} has another shape than the model's." for key in differing])
        weights = {key: self._held(key, tensor) for key, tensor in given.items()}
        own = [tensor for key, tensor in weights.items() if tensor is not self._shared.get(ENCODER_PREFIX + key)]
        return _with_weights(self._bare, weights), sum(tensor.nbytes for tensor in own)

    def _held(self, key: str, tensor: Tensor) -> Tensor:
        shared = self._shared.get(ENCODER_PREFIX + key)
        if tensor is shared:
            return tensor
        return tensor.float() if tensor.is_floating_point() else tensor


def _with_weights(module: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """The module around other weights; all else is shared with it, which takes a tenth of the time of a deep copy."""
    copied = copy.copy(module)
    copied._parameters = {
        name: parameter if parameter is None else nn.Parameter(weights[prefix + name], requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    copied._buffers = {name: weights.get(prefix + name, buffer) for name, buffer in module._buffers.items()}
    copied._modules = {
        name: one if one is None else _with_weights(one, weights, f"{prefix}{name}.")
        for name, one in module._modules.items()
    }
    return copied
