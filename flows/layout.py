"""Where what is made of a suite stands. Apart from what makes it, which takes seconds to import."""

from __future__ import annotations

from pathlib import Path


def candidate_folder(suite: str) -> Path:
    """Where a suite's candidates stand."""
    return Path("models") / suite


def made_candidates(suite: str) -> dict[str, Path]:
    """The candidates that merging and compressing have left for a suite, by name."""
    return {file.stem: file for file in sorted(candidate_folder(suite).glob("*.safetensors"))}


def predictions_file(suite: str) -> Path:
    """Where every answer of an evaluation stands, for ``tsv compare``."""
    return Path("predictions") / f"{suite}.parquet"
