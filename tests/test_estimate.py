"""What a plan says of memory and time, against a merge that is measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

MEASURED = """
import json, pathlib, sys, threading, time
from tsvlib.checkpoint import open_checkpoint
from tsvlib.merging import merge
from tsvlib.plan import plan

folder, peak = pathlib.Path(sys.argv[1]), [0]
paths = {name: folder / f"{name}.safetensors" for name in ("base", *"abcd")}
base = paths.pop("base")
planned = plan(base, paths, sys.argv[2], threads=1)
opened = {name: open_checkpoint(path) for name, path in paths.items()}

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

before = anonymous()
threading.Thread(target=watch, daemon=True).start()
start = time.process_time()
merge(open_checkpoint(base), opened, sys.argv[2], out=folder / "out.safetensors", threads=1)
seconds = time.process_time() - start
print(json.dumps([planned.peak_memory_bytes, peak[0] - before, planned.seconds, seconds]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsv-m", "task-arithmetic", "ties", "iso-c"])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_plan_foresees_memory_and_time(tmp_path: Path, method: str) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {"in_proj_weight": (1536, 512), "c_fc.weight": (2048, 512), "c_proj.weight": (512, 2048)}
    base = {f"{i}.{name}": torch.randn(shape, generator=random) for i in range(2) for name, shape in shapes.items()}
    safetensors.torch.save_file(base, tmp_path / "base.safetensors")
    for task in "abcd":
        tuned = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=random) for name, tensor in base.items()}
        safetensors.torch.save_file(tuned, tmp_path / f"{task}.safetensors")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), method], env=environment, capture_output=True, check=True
    )
    planned_bytes, peak_bytes, planned_seconds, seconds = json.loads(ran.stdout)
    assert peak_bytes < planned_bytes < 10 * peak_bytes
    assert planned_seconds / 8 < seconds < 8 * planned_seconds
