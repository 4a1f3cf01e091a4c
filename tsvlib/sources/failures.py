"""What goes wrong on the way to another machine, in plain words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import CheckpointError, UnreachableError

_OFFLINE_SWITCHES = ("TSV_OFFLINE", "HF_HUB_OFFLINE")
_asked_to_stay_offline: ContextVar[bool] = ContextVar("asked_to_stay_offline", default=False)


@contextmanager
def offline() -> Iterator[None]:
    """Ask nothing of any network: whatever would, raises :class:`UnreachableError`."""
    token = _asked_to_stay_offline.set(True)
    try:
        yield
    finally:
        _asked_to_stay_offline.reset(token)


def check_online(uri: str) -> None:
    """Say at once that this machine is offline, rather than after a client's retries.

    Raises:
        UnreachableError: TSV_OFFLINE or HF_HUB_OFFLINE is set.
    """
    if _asked_to_stay_offline.get():
        raise UnreachableError(f"{uri}: lies elsewhere, and was not asked about.")
    for switch in _OFFLINE_SWITCHES:
        if os.environ.get(switch, "0").lower() in ("1", "true", "yes", "on"):
            raise UnreachableError(
                f"{uri}: is not in the store, and {switch} says that this machine is offline. Fetch it where there is "
                "a network ('tsv fetch') and share TSV_STORE, or unset the variable."
            )


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Tell a client library's errors in plain words.

    Raises:
        CheckpointError: in place of any other exception.
        UnreachableError: in place of those that say that no connection was had.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # each client library has an exception tree of its own
        raise _in_plain_words(uri, _reason(error)) from error


def _in_plain_words(uri: str, error: BaseException) -> CheckpointError:
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return CheckpointError(f"{uri}: there is no such file. Check the address.")
    if isinstance(error, PermissionError) or status in (401, 403):
        return CheckpointError(f"{uri}: access is denied: {error}. Check your credentials for it.")
    if status is None and _no_connection(error):
        return UnreachableError(
            f"{uri}: does not answer ({type(error).__name__}). Check the network and the address; what was fetched "
            "before is kept."
        )
    return CheckpointError(f"{uri}: cannot be read: {type(error).__name__}: {error}.")


def _reason(error: BaseException) -> BaseException:
    """What lies behind a FileNotFoundError, which fsspec raises for whatever its first request ran into."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and status_of(cause) != 404:
        return _reason(cause)
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a client library's exception carries, if any."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _no_connection(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__ or error.__context__
    return False
