"""``python -m benchmarks [NAME ...]``: run some benchmarks, by default all but those that need a suite's data.

Each has options of its own: ``python -m benchmarks.NAME --help``.
"""

from __future__ import annotations

import argparse

from . import evaluation, merging, reuse, serving, workers

BENCHMARKS = {one.__name__.rpartition(".")[2]: one.main for one in (merging, serving, evaluation, reuse, workers)}


def main() -> None:
    """Run the benchmarks that are named, by default all; ``python -m benchmarks.NAME --help`` shows their options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("name", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().name
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}: choose among {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]([])


if __name__ == "__main__":
    main()
