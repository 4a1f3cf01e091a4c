"""Damaged variants of sound files: a clear TSVError or a load within bounds; no crash, no hang, no memory blow-up."""

from __future__ import annotations

import io
import random
import time
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tsvlib.checkpoint import open_checkpoint
from tsvlib.errors import TSVError

VARIANTS = 120  # of each of the four kinds of file


def sound_file(kind: str) -> bytes:
    tensors = {f"visual.block.{i}.weight": torch.arange(12.0).reshape(3, 4) + i for i in range(4)}
    if kind == "safetensors":
        return safetensors.torch.save(tensors, {"tsv": '{"a": 1}'})
    value = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)) if kind == "module" else tensors
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=kind != "legacy")
    return file.getvalue()


def damage(whole: bytes, random_: random.Random) -> bytes:
    """Cut, flip, insert, remove, repeat or overwrite some bytes, mostly near the start, where the structure is."""
    data = bytearray(whole)
    for _ in range(random_.randint(1, 4)):
        position = min(random_.randrange(len(data) or 1), random_.randrange(len(data) or 1))
        length = random_.choice([1, 1, 2, 8, 64])
        match random_.randrange(6):
            case 0:
                del data[position:]
            case 1:
                data[position : position + 1] = bytes([random_.randrange(256)])
            case 2:
                data[position:position] = random_.randbytes(length)
            case 3:
                del data[position : position + length]
            case 4:
                data[position:position] = data[position : position + length]
            case 5:
                data[position : position + 8] = random_.choice([b"\xff" * 8, bytes(8), b"\x7f" + bytes(7), b"99999999"])
    return bytes(data)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "module"])
def test_damage_is_told_or_harmless(tmp_path: Path, kind: str) -> None:
    whole = sound_file(kind)
    random_ = random.Random(kind)
    path = tmp_path / "weights"
    refused = 0
    for _ in range(VARIANTS):
        path.write_bytes(damage(whole, random_))
        started = time.monotonic()
        tracemalloc.start()
        try:
            loaded, message = dict(open_checkpoint(path)), ""
        except TSVError as error:
            loaded, message = {}, str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert loaded or str(path) in message
        assert sum(tensor.nbytes for tensor in loaded.values()) <= 4 * path.stat().st_size
        assert time.monotonic() - started < 2
        assert peak < 16 * 2**20
        refused += not loaded
    assert refused > VARIANTS / 4  # else the damage misses what matters


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "module"])
def test_every_cut_is_told(tmp_path: Path, kind: str) -> None:
    whole = sound_file(kind)
    path = tmp_path / "weights"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(TSVError):
            dict(open_checkpoint(path))
