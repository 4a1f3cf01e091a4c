"""What a Dask worker does first: enter the flow's place. Not among the flows, as importing these sets a place up."""

from __future__ import annotations

from distributed import Worker, WorkerPlugin

from .place import Place


class EnterPlace(WorkerPlugin):
    """Runs in every worker, those that join later among them."""

    name = "tsvlib-place"

    def __init__(self, place: Place) -> None:
        self.place = place

    def setup(self, worker: Worker) -> None:
        """Move into the folder of the flow."""
        self.place.enter()
