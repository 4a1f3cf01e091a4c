"""The layering rule: tsvlib knows nothing of the workflow tools, and nothing of the lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"prefect", "dvc", "mlflow", "tasks", "flows"}


@pytest.mark.parametrize("package", ["tsvlib", "tsvlab"])
def test_no_workflow_tool_is_imported(package: str) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.name != "__main__.py"
    ]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert not loaded & (FORBIDDEN | ({"tsvlab"} if package == "tsvlib" else set()))


def test_importing_tsvlib_is_light() -> None:
    code = "import sys, tsvlib; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("module", ["tsvlib.comparison", "flows.compare"])
def test_what_only_reads_results_imports_no_model(module: str) -> None:
    code = f"import sys, {module}; print('open_clip' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip().endswith("False")
