"""The place where a flow works, for workers elsewhere to enter: its folder and its store, shared by path.

Imports nothing that takes time, as every worker imports it first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHARED = (
    "TSV_STORE",
    "TSV_CACHE",
    "MLFLOW_TRACKING_URI",
    "PREFECT_LOCAL_STORAGE_PATH",
    "HF_HUB_OFFLINE",
    "DO_NOT_TRACK",
)
VARIABLE = "TSV_WORKER_PLACE"


@dataclass(frozen=True)
class Place:
    """What a worker elsewhere must share with the flow: its folder, where relative paths start, and its store."""

    folder: Path
    environment: Mapping[str, str]

    @classmethod
    def of_this_process(cls) -> Place:
        """The folder, store and settings of the flow."""
        found = {name: os.environ[name] for name in SHARED if name in os.environ}
        store = Path(os.environ.get("TSV_STORE", ".tsv/store")).absolute()
        store.mkdir(parents=True, exist_ok=True)
        return cls(Path.cwd(), found | {"TSV_STORE": str(store)})

    def enter(self) -> None:
        """Work there from now on.

        Raises:
            FileNotFoundError: this machine does not see the folder or the store.
        """
        for place in (self.folder, Path(self.environment["TSV_STORE"])):
            if not place.is_dir():
                raise FileNotFoundError(f"{place}: not there on this worker; it must see the same path as the flow.")
        os.chdir(self.folder)
        os.environ.update(self.environment)

    def described(self) -> dict[str, str]:
        """As an environment variable, for :func:`enter_described`."""
        return {VARIABLE: json.dumps({"folder": str(self.folder), "environment": dict(self.environment)})}


def enter_described() -> None:
    """Enter the place that the environment describes; what a worker of a Ray cluster does."""
    place = json.loads(os.environ[VARIABLE])
    Place(Path(place["folder"]), place["environment"]).enter()
