"""Prefect flows: they only wire tasks. ``python -m flows.NAME`` runs one from params.yaml, as the DVC stages do."""

from .environment import prepare

prepare()  # before anything imports prefect or mlflow, which read the environment once
