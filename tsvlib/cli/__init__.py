"""The ``tsv`` command. Each verb is a file of this folder and is imported when it is called."""

from __future__ import annotations

import logging
import sys

from cyclopts import App, CycloptsError

from ..exit_status import USER_ERROR, clean_exit

app = App(
    name="tsv",
    help="Merge and compress fine-tuned CLIP encoders with Task Singular Vectors.",
    suppress_keyboard_interrupt=False,
)
for verb in (
    "suites", "plan", "fetch", "finetune", "merge", "compress", "extract", "interference", "evaluate", "compare",
    "inspect", "verify", "convert", "cache", "export", "classify",
):  # fmt: skip
    app.command(f"tsvlib.cli.{verb}:{verb}", name=verb)
app.command("tsvlab.cli:lab", name="lab")


def main() -> None:
    """Run a verb. Exit status: 0 done, 2 the user's to mend (one clean message), 1 a fault of ours."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with clean_exit():
        try:
            app(sys.argv[1:], exit_on_error=False)
        except CycloptsError:  # cyclopts has printed what was wrong with the words
            sys.exit(USER_ERROR)
