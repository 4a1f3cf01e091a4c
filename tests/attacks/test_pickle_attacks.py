"""Files made to run code when they are opened. None may: each leaves no trace, and its message names what it asked for.

That each attack is live is shown too, by opening it the way its victims would.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from tsvlib.checkpoint import open_checkpoint
from tsvlib.errors import CheckpointError

REFUSED = (
    "{path}: refused: the pickle asks for '{name}', which weights do not need and which can run code. Nothing was "
    "executed. Do not open this file elsewhere; ask its author for safetensors."
)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def legacy(payload: bytes) -> bytes:
    """A file in torch's old layout around a pickle."""
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    return file.getvalue().replace(pickle.dumps({}, 2), payload)


def zipped(payload: bytes) -> bytes:
    """A file in torch's zip layout around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    return file.getvalue()


LAYOUTS = [pytest.param(zipped, id="zip"), pytest.param(legacy, id="legacy"), pytest.param(lambda p: p, id="bare")]


def payloads(marker: Path) -> dict[str, tuple[object, str]]:
    """Attack -> what is pickled, and the name in the refusal. Each writes the marker when it is run."""
    import os
    import runpy
    import subprocess

    code = f"open({str(marker)!r}, 'w').write('owned')"
    shell = f"echo owned > {marker}"
    return {
        "os.system": (Calls(os.system, shell), "posix.system"),
        "subprocess": (Calls(subprocess.call, ["sh", "-c", shell]), "subprocess.call"),
        "eval": (Calls(eval, code), "builtins.eval"),
        "exec": (Calls(exec, code), "builtins.exec"),
        "open": (Calls(open, str(marker), "w"), "io.open"),
        "getattr chain": (Calls(getattr(os, "popen"), shell), "os.popen"),  # noqa: B009
        "runpy": (Calls(runpy._run_code, code, {}), "runpy._run_code"),
        "hidden in a state dict": ({"visual.proj": torch.ones(2), "epoch": Calls(os.system, shell)}, "posix.system"),
        "hidden in a key's value": ({"state_dict": {"x": [[(Calls(eval, code),)]]}}, "builtins.eval"),
        "numpy gadget": (
            Calls(__import__("numpy").testing.rundocs, str(marker)),
            "numpy.testing._private.utils.rundocs",
        ),
        "nested pickle": (Calls(pickle.loads, pickle.dumps(Calls(os.system, shell))), "_pickle.loads"),
        "nested torch file": (
            Calls(torch.storage._load_from_bytes, legacy(pickle.dumps(Calls(os.system, shell), 2))),
            "torch.storage._load_from_bytes",
        ),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("attack", payloads(Path("marker")))
def test_no_call_is_made(tmp_path: Path, attack: str, protocol: int, layout) -> None:
    marker = tmp_path / "marker"
    made, name = payloads(marker)[attack]
    payload = torch_pickle(made, protocol)
    path = tmp_path / "weights.pt"
    path.write_bytes(layout(payload))
    with pytest.raises(CheckpointError) as caught:
        dict(open_checkpoint(path))
    assert str(caught.value) == REFUSED.format(path=path, name=name)
    assert not marker.exists()


def torch_pickle(value: object, protocol: int) -> bytes:
    """A pickle in which tensors are torch's pointers to storages, as inside a torch file."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: object) -> object:
            is_storage = isinstance(found, torch.storage.TypedStorage)
            return ("storage", torch.FloatStorage, "0", "cpu", found.size()) if is_storage else None

    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


@pytest.mark.parametrize(
    "attack", ["os.system", "subprocess", "eval", "exec", "open", "getattr chain", "nested pickle"]
)
def test_the_attacks_are_live(tmp_path: Path, attack: str) -> None:
    made, _ = payloads(tmp_path / "marker")[attack]
    pickle.loads(pickle.dumps(made))
    deadline = time.monotonic() + 5
    while not (tmp_path / "marker").exists() and time.monotonic() < deadline:  # popen returns before its shell is done
        time.sleep(0.01)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_instructions_are_refused_too(tmp_path: Path, layout) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(layout(b"\x80\x02(S'true'\ni__builtin__\neval\n."))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value) == REFUSED.format(path=path, name="__builtin__.eval")


def test_getattr_reaches_nothing(tmp_path: Path) -> None:
    """Python's own enumerations pickle as a call of ``getattr``, so it is not refused; it is not made either."""
    marker = tmp_path / "marker"
    payload = b"\x80\x02}X\x01\x00\x00\x00xc__builtin__\ngetattr\nctorch\nnn\nX\x08\x00\x00\x00__dict__\x86Rs."
    pickletools.dis(payload, out=io.StringIO())
    path = tmp_path / "weights.pt"
    path.write_bytes(zipped(payload))
    with pytest.raises(CheckpointError, match="holds no weights: it is a dictionary with the keys x"):
        open_checkpoint(path)
    assert not marker.exists()


def test_a_class_with_its_own_set_state_stays_inert(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(zipped(pickle.dumps(SetsState(tmp_path / "marker"), 2)))
    with pytest.raises(CheckpointError, match=r"holds no weights: it is a .*SetsState without parameters"):
        open_checkpoint(path)
    assert not (tmp_path / "marker").exists()


class SetsState:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __setstate__(self, state: dict) -> None:
        Path(state["marker"]).write_text("owned")


def nested_tuples(depth: int) -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


BOMBS = {
    "memo index of 4 billion": (b"\x80\x02}r\xff\xff\xff\xff.", "holds no weights"),
    "bytes of 2**60": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "a damaged pickle: it claims a value of"),
    "text of 2**60": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b".", "a damaged pickle: it claims a value of"),
    "byte array of 2**60": (b"\x80\x05\x96" + struct.pack("<Q", 2**60), "a damaged pickle: it claims a value of"),
    "integer of 2**31 digits": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "a damaged pickle: it claims a value of"),
    "deeply nested tuples as a key": (nested_tuples(2 * 10**5), "holds no weights"),
    "a list within itself": (b"\x80\x02]q\x00h\x00a.", "holds no weights: it is a list"),
    "extension code": (b"\x80\x02\x82\x01.", "a damaged pickle: the instruction EXT1, which torch never writes"),
    "no stop": (b"\x80\x02}", "a damaged pickle"),
    "empty stack": (b"\x80\x02.", "a damaged pickle"),
    "mark as a value": (b"\x80\x02(.", "a damaged pickle: a mark in place of a value"),
    "no mark": (b"\x80\x02}u.", "a damaged pickle"),
    "items for a number": (b"\x80\x02K\x01K\x02K\x03s.", "a damaged pickle: items for something that is no dictionary"),
    "elements for a number": (b"\x80\x02K\x01K\x02a.", "a damaged pickle: elements for something that is no list"),
    "call of a number": (b"\x80\x02K\x01K\x02R.", "a damaged pickle: a call without a tuple of arguments"),
    "the same key twice": (
        b"\x80\x02}(X\x01\x00\x00\x00xK\x01X\x01\x00\x00\x00xK\x02u.", "a damaged pickle: the key 'x' stands twice"
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_bomb_goes_off(tmp_path: Path, bomb: str) -> None:
    payload, message = BOMBS[bomb]
    path = tmp_path / "weights.pt"
    path.write_bytes(zipped(payload))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert peak < 400 * 2**20


class Module:
    """Stands for torch.nn.Module in a pickle made by hand."""

    def __init__(self, **children: object) -> None:
        self._modules = children


def test_modules_that_repeat_without_end_are_refused(tmp_path: Path) -> None:
    module = Module()
    for _ in range(60):
        module = Module(a=module, b=module)
    path = tmp_path / "weights.pt"
    path.write_bytes(zipped(pickle.dumps(module, 2)))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value) == f"{path}: its modules are nested endlessly. Save the model's state_dict() instead."


def a_view(storage: tuple, offset: int, shape: tuple, stride: tuple) -> bytes:
    """A state dict of one tensor with figures of the attacker's choice."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: object) -> object:
            return storage if isinstance(found, torch.storage.TypedStorage) else None

    class View:
        def __reduce__(self) -> tuple:
            inner = torch.ones(1).storage()
            return torch._utils._rebuild_tensor_v2, (inner, offset, shape, stride, False, {})

    file = io.BytesIO()
    Pickler(file, 2).dump({"x": View()})
    return file.getvalue()


FOUR = ("storage", torch.FloatStorage, "0", "cpu", 4)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param(a_view(FOUR, 0, (10**12,), (0,)), "larger than the 16 bytes stored for it", id="expanded"),
        pytest.param(a_view(FOUR, 0, (10**9, 10**9), (10**9, 1)), "larger than the 16 bytes stored for it", id="huge"),
        pytest.param(a_view(FOUR, 3, (2,), (1,)), "larger than the 16 bytes stored for it", id="beyond the end"),
        pytest.param(a_view(FOUR, -1, (2,), (1,)), "a tensor without a proper shape", id="before the start"),
        pytest.param(a_view(FOUR, 0, (2,), (-1,)), "a tensor without a proper shape", id="backwards"),
        pytest.param(a_view(FOUR, 0, (2,), ()), "a tensor without a proper shape", id="no stride"),
        pytest.param(
            a_view(("storage", torch.FloatStorage, "0", "cpu", 10**15), 0, (10**15,), (1,)),
            "'archive/data/0' in it has 16 bytes, but 4,000,000,000,000,000 are needed",
            id="storage too large",
        ),
        pytest.param(
            a_view(("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 4), 0, (4,), (1,)),
            "the values of key 'x' are not in the file",
            id="storage elsewhere",
        ),
        pytest.param(a_view(("file", "/etc/passwd"), 0, (4,), (1,)), "a damaged pickle", id="no storage"),
    ],
)
def test_a_tensor_stays_within_its_values(tmp_path: Path, payload: bytes, message: str) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert message in str(caught.value)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: 'archive/data.pkl' in it is compressed, which torch.save never does. Unpack it and zip it with "
        "'zip -0', or save it again."
    )
