"""How a command ends: a message, and an exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import TSVError

USER_ERROR, OUR_ERROR = 2, 1


@contextmanager
def clean_exit() -> Iterator[None]:
    """Exit with 2 and one message for what the user can mend, with 1 and a traceback for a fault of ours."""
    try:
        yield
    except TSVError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted: nothing was half-written; run the same command to go on.", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)
    except Exception:
        logging.getLogger("tsvlib").exception("This is a fault of tsvlib's, not yours; please report it:")
        sys.exit(OUR_ERROR)
