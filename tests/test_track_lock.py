"""A locked MLflow database is waited for, and told of in plain words where it stays locked."""

from __future__ import annotations

import pytest

import flows  # noqa: F401 - sets the environment before mlflow is imported
from tasks.track import TrackingError, _clear_lock
from tsvlib.errors import UnreachableError


def test_a_lasting_lock_is_told_in_plain_words_after_further_attempts() -> None:
    message = r"locked by another process\. End that one, then run the same command"
    with pytest.raises(TrackingError, match=message) as caught, _clear_lock():
        raise RuntimeError("(sqlite3.OperationalError) database is locked [SQL: INSERT INTO runs]")
    assert isinstance(caught.value, UnreachableError), "what tasks/fetch.py tries again"


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), _clear_lock():
        raise KeyError("x")
