"""Reads a pickle as data. Nothing the file names is imported, called or executed.

The standard library's unpickler runs what the file asks for. This one walks the same instructions
(``pickletools.genops`` decodes them) on a stack of its own and answers every global with a :class:`Reference`, a
name and nothing more, and every object with an inert :class:`StandIn` that keeps what the file says about it.
Names from Python's own library that no set of weights needs are refused, so that an attack is told apart from an
old class that is merely unknown here.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..errors import CheckpointError

LONGEST_PICKLE = 64 * 2**20  # bytes of instructions, values of tensors not included; a 1,000-layer model has 1 MiB
_MOST_INSTRUCTIONS = 4_000_000

_HARMLESS_STANDARD_GLOBALS = {
    "builtins": {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list",
                 "object", "range", "set", "slice", "str", "tuple"},
    "__builtin__": {"bytearray", "complex", "dict", "frozenset", "getattr", "list", "long", "object", "set", "slice",
                    "unicode", "xrange"},
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "copy_reg": {"_reconstructor"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "functools": {"partial"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"},
    "types": {"SimpleNamespace"},
    "typing": {"Any", "Dict", "List", "Optional", "Tuple", "Union"},
}  # fmt: skip
_RUNS_CODE = {"torch.hub", "torch.load", "torch.storage._load_from_bytes", "torch.jit", "torch.package",
              "torch.utils.cpp_extension", "torch._dynamo", "torch._inductor", "torch.distributed.rpc",
              "numpy.testing", "numpy.f2py", "numpy.load", "pip", "setuptools", "cloudpickle", "dill",
              "joblib"}  # fmt: skip
_PYTHON_2_MODULES = {"__builtin__", "commands", "copy_reg", "exceptions", "popen2", "nt", "posix"}


@dataclass(frozen=True, eq=False)
class Reference:
    """A class or function that the file names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class StandIn:
    """An object the file describes: what it is made of, and nothing it could do."""

    of: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False)
class _OpaqueKey:
    """A dictionary key of a kind weights do not have; compared by identity, as hashing nested tuples may overflow."""

    key: Any


class _Mark:
    pass


Build = Callable[[Reference, Sequence[Any]], Any]
LoadPersistent = Callable[[Any], Any]


def read_pickle(file: BinaryIO, source: str, build: Build, load_persistent: LoadPersistent) -> Any:
    """Read the one pickle at the file's position and leave the position just after it.

    Args:
        build: called with a global and the arguments the file gives it; returns an object or None for a stand-in.
        load_persistent: called with the file's persistent ids, by which torch files point at the values of tensors.

    Raises:
        CheckpointError: the pickle is damaged, too long, or names a global that only an attack needs.
    """
    machine = _Machine(source, build, load_persistent)
    try:
        instructions = pickletools.genops(_Bounded(file))  # type: ignore[arg-type]
        for count, (opcode, argument, _) in enumerate(instructions):
            if count > _MOST_INSTRUCTIONS:
                raise ValueError(f"over {_MOST_INSTRUCTIONS:,} instructions")
            machine.step(opcode.name, argument)
        return machine.pop()
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise CheckpointError(
            f"{source}: a damaged pickle: {error or type(error).__name__}. Fetch it again."
        ) from error


def check_harmless(reference: Reference, source: str) -> None:
    """Refuse a global that runs code or reaches the system.

    Raises:
        CheckpointError: naming the global.
    """
    root = reference.module.partition(".")[0]
    names = _HARMLESS_STANDARD_GLOBALS.get(reference.module)
    standard = root in sys.stdlib_module_names or root in _PYTHON_2_MODULES
    dotted = str(reference)
    runs_code = any(dotted == known or dotted.startswith(known + ".") for known in _RUNS_CODE)
    if runs_code or (standard and root != "__main__" and (names is None or reference.name not in names)):
        raise CheckpointError(
            f"{source}: refused: the pickle asks for {dotted!r}, which weights do not need and which can run code. "
            "Nothing was executed. Do not open this file elsewhere; ask its author for safetensors."
        )


class _Bounded:
    """Lets ``genops`` read at most LONGEST_PICKLE bytes, whatever lengths the file claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = LONGEST_PICKLE
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        return self._take(self._file.read(self._checked(count)))

    def readline(self) -> bytes:
        return self._take(self._file.readline(self._left + 1))

    def _checked(self, count: int) -> int:
        if count > self._left:
            raise ValueError(f"it claims a value of {count:,} bytes")
        return count

    def _take(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"its instructions are over {LONGEST_PICKLE:,} bytes long")
        return data


class _Machine:
    """The pickle machine: a stack and a memo."""

    def __init__(self, source: str, build: Build, load_persistent: LoadPersistent) -> None:
        self.source = source
        self.build = build
        self.load_persistent = load_persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if opcode in _PUSH_ARGUMENT:
                self.stack.append(argument)
            case _ if opcode in _PUSH_CONSTANT:
                self.stack.append(_PUSH_CONSTANT[opcode]())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self.pop_to_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(self.pop_tuple(int(opcode[-1])))
            case "TUPLE":
                self.stack.append(tuple(self.pop_to_mark()))
            case "LIST" | "FROZENSET":
                self.stack.append(self.pop_to_mark())
            case "DICT":
                flat = self.pop_to_mark()
                self.stack.append({})
                self.set_items(flat)
            case "SETITEM":
                self.set_items(list(self.pop_tuple(2)))
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.pop_to_mark())
            case "GLOBAL":
                self.stack.append(self.reference(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(self.reference(*self.pop_tuple(2)))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(self.called(*self.pop_tuple(2)))
            case "NEWOBJ_EX":
                function, arguments, _ = self.pop_tuple(3)
                self.stack.append(self.called(function, arguments))
            case "OBJ":
                function, *positional = self.pop_to_mark()
                self.stack.append(self.called(function, tuple(positional)))
            case "INST":
                arguments = tuple(self.pop_to_mark())
                self.stack.append(self.called(self.reference(*argument.split(" ", 1)), arguments))
            case "BUILD":
                state = self.pop()
                if isinstance(self.stack[-1], StandIn):
                    self.stack[-1].state = state
            case "BINPERSID":
                self.stack.append(self.load_persistent(self.pop()))
            case _:
                raise ValueError(f"the instruction {opcode}, which torch never writes")

    def pop(self) -> Any:
        """Take the top of the stack, which may not be a mark."""
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark in place of a value")
        return value

    def pop_tuple(self, length: int) -> tuple[Any, ...]:
        """Take the topmost values, the deepest first."""
        return tuple(reversed([self.pop() for _ in range(length)]))

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the topmost mark, and the mark."""
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def reference(self, module: Any, name: Any) -> Reference:
        """The name of a class or function, refused if only an attack needs it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global whose name is no text")
        reference = Reference(module, name)
        check_harmless(reference, self.source)
        return reference

    def called(self, function: Any, arguments: Any) -> Any:
        """What a call stands for; nothing is called but the reader's own ``build``."""
        if not isinstance(arguments, tuple):
            raise TypeError("a call without a tuple of arguments")
        built = self.build(function, arguments) if isinstance(function, Reference) else None
        return StandIn(function, arguments) if built is None else built

    def set_items(self, flat: list[Any]) -> None:
        """Add key, value, key, value... to the dictionary, or stand-in for one, on top of the stack."""
        top = self.stack[-1]
        items = top.items if isinstance(top, StandIn) else top
        if not isinstance(items, dict) or len(flat) % 2:
            raise TypeError("items for something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            key = key if isinstance(key, _PLAIN_KEYS) else _OpaqueKey(key)
            if key in items:
                raise ValueError(f"the key {key!r} stands twice")
            items[key] = value

    def extend(self, values: list[Any]) -> None:
        """Add to the list, or stand-in for one, on top of the stack."""
        top = self.stack[-1]
        elements = top.elements if isinstance(top, StandIn) else top
        if not isinstance(elements, list):
            raise TypeError("elements for something that is no list")
        elements.extend(values)


_PLAIN_KEYS = (str, bytes, int, float, bool, type(None), Reference, StandIn)
_PUSH_ARGUMENT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": list, "MARK": _Mark,
}  # fmt: skip
