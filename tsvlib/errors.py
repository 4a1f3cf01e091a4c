"""Every error the library raises on purpose.

::

    TSVError
    ├── CheckpointError       a weights file is missing, unreadable or unsafe
    │   ├── ArchiveError      a TSV-C archive that is damaged or does not fit the base
    │   ├── MismatchError     two checkpoints do not fit each other
    │   └── UnreachableError  a source elsewhere does not answer, or this machine is offline
    ├── NumericalError        weights from which nothing can be computed (NaN, Inf)
    ├── MethodError           an unknown method or a parameter it does not take
    ├── StudyError            an unknown study, or an option it does not take
    ├── SuiteError            a suite file that is missing or wrong
    ├── DataError             images or labels that are missing or unreadable
    └── SettingError          an environment variable of ours that cannot be understood

A TSVWarning says where an input leaves a method undefined, and what was done about it.

Each message says what was wrong, with which file, key and value, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TSVError(Exception):
    """Base of all errors that are the user's to mend; the command line prints it and exits with 2."""


class CheckpointError(TSVError):
    """A weights file is missing, unreadable or unsafe."""


class MismatchError(CheckpointError):
    """A fine-tuned checkpoint does not fit its base. Lists every problem found, not only the first."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class UnreachableError(CheckpointError):
    """A source elsewhere does not answer, or this machine is offline."""


class NumericalError(TSVError):
    """Weights from which nothing can be computed, such as NaN or Inf."""


class MethodError(TSVError):
    """An unknown method, or a parameter it does not take."""


class StudyError(TSVError):
    """An unknown study, or an option it does not take."""


class SuiteError(TSVError):
    """A suite file that is missing or wrong."""


class DataError(TSVError):
    """Images or labels that are missing or unreadable."""


class ArchiveError(CheckpointError):
    """A TSV-C archive that is damaged or does not fit the base."""


class SettingError(TSVError):
    """An environment variable of ours that cannot be understood."""


class TSVWarning(UserWarning):
    """An input that leaves a method undefined, such as a tie at the cut; names key, tasks and figures."""


def did_you_mean(word: str, known: Iterable[str], listed_as: str = "There are") -> str:
    """The end of a message about an unknown name: the nearest one, and all there are."""
    names = list(known)
    near = difflib.get_close_matches(word, names, 1)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" {listed_as}: {', '.join(names)}."
