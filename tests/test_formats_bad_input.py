"""What people really feed a loader, and the message each gets. Every message names the file and the remedy."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tsvlib import atomic
from tsvlib.checkpoint import TensorSpec, open_checkpoint, write_checkpoint
from tsvlib.errors import CheckpointError, MismatchError


def refusal(path: Path) -> str:
    """The message with which a file is refused, its own path left out."""
    with pytest.raises(CheckpointError) as caught:
        dict(open_checkpoint(path))
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ").replace(str(path.parent), "FOLDER")


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SOUND = safetensors_bytes({"x": entry(0, 4)}, bytes(4))
UNSOUND = "not a sound safetensors file: {}. Fetch it again, or export it anew."
NOT_WHOLE = "not a whole safetensors file: {}. It may be truncated; fetch it again."

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty. Fetch it again."),
    "a few bytes": (b"PK\x05", "only 3 bytes long, so no weights file. It may be truncated; fetch it again."),
    "cut in the values": (SOUND[:-1], NOT_WHOLE.format("key 'x' ends at byte 73, but the file has 72")),
    "cut in the header": (SOUND[:20], NOT_WHOLE.format("its header ends at byte 69, but the file has 20")),
    "header is not JSON": (
        safetensors_bytes(b"{x}", bytes(4)),
        UNSOUND.format("its header is not JSON"),
    ),
    "header is nested without end": (
        safetensors_bytes(b'{"x":' + b"[" * 100_000),
        UNSOUND.format("its header is not JSON"),
    ),
    "absurd header size": (
        safetensors_bytes(b"{}", length=2**62),
        UNSOUND.format("its header claims to be 4,611,686,018,427,387,904 bytes long, over the limit of 100,000,000"),
    ),
    "absurd tensor size": (
        safetensors_bytes({"x": entry(0, 4 * 2**50, [2**50])}),
        NOT_WHOLE.format("key 'x' ends at byte 4,503,599,627,370,595, but the file has 99"),
    ),
    "shape and bytes differ": (
        safetensors_bytes({"x": entry(0, 4, [2**40, 2**40])}, bytes(4)),
        UNSOUND.format(
            "key 'x' of shape (1099511627776, 1099511627776) and dtype F32 needs 4,835,703,278,458,516,698,824,704 "
            "bytes, but its offsets span 4"
        ),
    ),
    "negative shape": (
        safetensors_bytes({"x": entry(0, 4, [-1])}, bytes(4)),
        UNSOUND.format("key 'x' has no proper 'dtype', 'shape' and 'data_offsets'"),
    ),
    "shape of truths": (
        safetensors_bytes({"x": entry(0, 4, [True])}, bytes(4)),
        UNSOUND.format("key 'x' has no proper 'dtype', 'shape' and 'data_offsets'"),
    ),
    "entry is a number": (
        safetensors_bytes({"x": 3}), UNSOUND.format("key 'x' has no proper 'dtype', 'shape' and 'data_offsets'")
    ),
    "unknown dtype": (
        safetensors_bytes({"x": entry(0, 4, dtype="F128")}, bytes(4)),
        "key 'x' has the unsupported dtype F128; convert it to one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, "
        "I16, I8, U64, U32, U16, U8, BOOL.",
    ),
    "the same key twice": (
        safetensors_bytes(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                          b'"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
        UNSOUND.format("its header has the key 'x' twice"),
    ),
    "shared tensors": (
        safetensors_bytes({"x": entry(0, 4), "y": entry(0, 4)}, bytes(4)),
        UNSOUND.format("key 'y' shares bytes with another key (starts at byte 130, expected 134)"),
    ),
    "a gap": (
        safetensors_bytes({"x": entry(0, 4), "y": entry(8, 12)}, bytes(12)),
        UNSOUND.format("key 'y' follows a gap (starts at byte 139, expected 135)"),
    ),
    "bytes behind the end": (SOUND + b"!", UNSOUND.format("1 bytes follow the last tensor")),
    "metadata of another kind": (
        safetensors_bytes({"__metadata__": {"tsv": "[1"}}),
        UNSOUND.format("its metadata key 'tsv' is not JSON"),
    ),
    "metadata is a list": (
        safetensors_bytes({"__metadata__": {"tsv": "[]"}}),
        UNSOUND.format("its metadata key 'tsv' is not a JSON object")
    ),
    "text": (
        b"this is not a model, but a note about one\n",
        "a text file, not weights; it starts with 'this is not a model, but a note about on'. Check the path.",
    ),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n",
        "a Git LFS pointer, not the weights it stands for. Run 'git lfs pull' where it came from.",
    ),
    "login page": (
        b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>",
        "a web page, not weights; perhaps a login or an error page. Check the address and your access to it.",
    ),
    "gzip": (b"\x1f\x8b" + bytes(20), "compressed with gzip. Unpack it and name the weights file inside."),
    "tar": (
        bytes(257) + b"ustar" + bytes(300),
        "a tar archive, not weights. Unpack it and name the weights file inside.",
    ),
    "noise": (
        bytes(range(200, 255)),
        "neither safetensors nor a torch file, by its first bytes. Check the path, or export it as safetensors.",
    ),
    "plain pickle": (
        b"\x80\x04]\x94." + bytes(20),
        "a pickle that torch.save did not write, so its tensors cannot be taken out safely. Save the model's "
        "state_dict() with torch.save, or as safetensors.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_bad_file_is_told_by_its_content(tmp_path: Path, kind: str, name: str) -> None:
    content, message = FILES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path) == message


def torch_bytes(value: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


VALUES: dict[str, tuple[Any, str]] = {
    "a bare tensor": (torch.ones(2), "holds no weights: it is a single tensor without a name."),
    "an optimizer": (
        {"param_groups": [], "state": {0: {"exp_avg": torch.ones(2)}}},
        "holds no weights: it is a dictionary with the keys param_groups, state.",
    ),
    "nothing": ({}, "holds no weights: it is a dictionary with the keys (none)."),
    "a number": (7, "holds no weights: it is a int."),
    "complex": (
        {"x": torch.ones(2, dtype=torch.complex64)},
        "key 'x' has the unsupported dtype torch.complex64; convert it to one of F64, F32, F16, BF16, F8_E4M3, "
        "F8_E5M2, I64, I32, I16, I8, U64, U32, U16, U8, BOOL.",
    ),
    "sparse": (
        {"x": torch.eye(2).to_sparse()},
        "key 'x' is sparse or quantised (torch._utils._rebuild_sparse_tensor); save it as a dense tensor.",
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", VALUES)
def test_a_torch_file_without_usable_weights(tmp_path: Path, kind: str, legacy: bool) -> None:
    value, message = VALUES[kind]
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_bytes(value, legacy))
    remedy = " Save the model's state_dict() instead." if "holds no weights" in message else ""
    assert refusal(path) == message + remedy


def test_a_cut_legacy_file(tmp_path: Path) -> None:
    whole = torch_bytes({"x": torch.ones(100)}, legacy=True)
    path = tmp_path / "weights.pt"
    path.write_bytes(whole[:-8])
    assert refusal(path) == (
        f"not a whole torch file: it has {len(whole) - 8:,} bytes, its tensors need at least {len(whole):,}. It may be "
        "truncated; fetch it again."
    )


def test_a_cut_zip(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_bytes({"x": torch.ones(100)})[:900])
    assert refusal(path) == (
        "not a whole torch zip archive (900 bytes): File is not a zip file. It may be truncated; fetch it again."
    )


def test_another_zip(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")
    assert refusal(path) == (
        "a zip archive without one data.pkl, so not written by torch.save. Unpack it and name the weights file inside."
    )


def test_a_big_endian_zip(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"x": torch.ones(1)}))) as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, b"big" if name.endswith("byteorder") else whole.read(name))
    assert refusal(path) == (
        "its values are in the byte order b'big'; only 'little' can be read. Save it on another machine."
    )


def test_no_such_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.safetensors") == (
        "no such checkpoint. Check the path, or make it first ('dvc repro')."
    )


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("hello")
    assert refusal(folder) == (
        "holds no weights: no .safetensors, .bin, .pt, .pth, .ckpt or *.index.json file. Name the weights file."
    )


@pytest.fixture
def not_root() -> Iterator[None]:
    """Root may read everything; be nobody for the length of a test."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_permission_denied(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(SOUND)
    path.chmod(0)
    request.getfixturevalue("not_root")
    assert refusal(path) == "cannot be read: Permission denied. Check who owns it and what it is."


def index_of(folder: Path, weight_map: Any) -> Path:
    safetensors.torch.save_file({"x": torch.ones(1)}, folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map}))
    return index


INDEXES: dict[str, tuple[Any, str]] = {
    "a missing shard": (
        {"x": "model-1.safetensors", "y": "model-2.safetensors"},
        "names the shard 'model-2.safetensors', which cannot be had; all shards are needed. "
        "FOLDER/model-2.safetensors: no such checkpoint. Check the path, or make it first ('dvc repro').",
    ),
    "a key its shard lacks": (
        {"x": "model-1.safetensors", "y": "model-1.safetensors"},
        "does not fit its shard 'model-1.safetensors': key 'y' is only in the index (1 such keys). Fetch both again.",
    ),
    "a key it does not know": (
        {"y": "model-1.safetensors"},
        "does not fit its shard 'model-1.safetensors': key 'x' is only in the shard (2 such keys). Fetch both again.",
    ),
    "another folder": (
        {"x": "../secret.safetensors"},
        "refused: key 'x' is said to lie in '../secret.safetensors', outside the folder of the index.",
    ),
    "an absolute path": (
        {"x": "/etc/passwd"}, "refused: key 'x' is said to lie in '/etc/passwd', outside the folder of the index."
    ),
    "a path of another system": (
        {"x": "..\\secret"}, "refused: key 'x' is said to lie in '..\\\\secret', outside the folder of the index."
    ),
    "empty": ({}, "its 'weight_map' is empty or maps to something that is no file name."),
    "numbers": ({"x": 3}, "its 'weight_map' is empty or maps to something that is no file name."),
    "no map": (
        "{}",
        "not an index of a sharded checkpoint (KeyError: 'weight_map'); it needs a 'weight_map' of names to files. "
        "Fetch it again.",
    ),
    "no JSON": (
        "<html>",
        "not an index of a sharded checkpoint (JSONDecodeError: Expecting value: line 1 column 1 (char 0)); it needs a "
        "'weight_map' of names to files. Fetch it again.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDEXES)
def test_a_bad_index(tmp_path: Path, kind: str) -> None:
    weight_map, message = INDEXES[kind]
    assert refusal(index_of(tmp_path, weight_map)) == message


def write_one(path: Path) -> None:
    write_checkpoint(path, {"x": TensorSpec((2,), torch.float32)}, [("x", torch.ones(2))])


def failing_with(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "fsync", failing_with(28))
    with pytest.raises(CheckpointError) as caught:
        write_one(tmp_path / "w.safetensors")
    assert str(caught.value) == (
        f"{tmp_path}/w.safetensors: the disk is full; nothing was written. Free some space and retry."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_really_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *a: real(Path("/dev/full") if mode == "wb" else path, mode, *a)
    )
    with pytest.raises(CheckpointError, match="the disk is full; nothing was written"):
        write_one(tmp_path / "w.safetensors")


def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        write_one(tmp_path / "file" / "w.safetensors")
    assert str(caught.value) == f"{tmp_path}/file/w.safetensors: cannot be written: File exists. Choose another place."


def test_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written: File name too long\. Choose another place\."):
        write_one(tmp_path / f"{300 * 'w'}.safetensors")


def test_a_tensor_that_was_not_given(tmp_path: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        write_checkpoint(tmp_path / "w.safetensors", {"x": TensorSpec((2,), torch.float32)}, [])
    assert str(caught.value) == f"{tmp_path}/w.safetensors: key 'x' was not given."
    assert list(tmp_path.iterdir()) == []
