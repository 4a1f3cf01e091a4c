"""The ``tsv`` command. Each verb is a file of this folder and is imported when it is called."""

from __future__ import annotations

import logging
import sys
import warnings

from cyclopts import App, CycloptsError

from ..exit_status import USER_ERROR, clean_exit

app = App(
    name="tsv",
    help="Merge and compress fine-tuned CLIP encoders with Task Singular Vectors.",
    suppress_keyboard_interrupt=False,
)
VERBS = {
    "suites": "List the packaged suites; write and check your own.",
    "plan": "Say what a merge will do and cost, and all that stands against it.",
    "fetch": "Bring checkpoints into the store, to work offline.",
    "finetune": "Fine-tune a suite's base on one of its tasks.",
    "merge": "Merge fine-tunes of one base into one checkpoint.",
    "compress": "Store many fine-tunes of one base as one small archive.",
    "extract": "Give back one fine-tune from an archive.",
    "archive": "List, add, remove and check the tasks of an archive.",
    "route": "Evaluate an archive where a router tells the task of each image.",
    "interference": "Measure how much the tasks interfere.",
    "evaluate": "Measure candidates on a suite.",
    "study": "Repeat the analyses of the paper on a suite.",
    "compare": "Show candidates side by side.",
    "export": "Write a folder that classifies images, to serve or to use.",
    "classify": "Classify images with an exported or registered model.",
    "inspect": "Show what a weights file holds and where it comes from.",
    "verify": "Rebuild a file from what its header says, and compare.",
    "convert": "Write a checkpoint as safetensors, under other names.",
    "cache": "List, prune and check what is kept for later runs.",
}
for verb, summary in VERBS.items():
    app.command(f"tsvlib.cli.{verb}:{verb}", name=verb, help=summary)
BESIDE = {  # of packages that are installed with this one; nothing of them is imported before they are called
    "lab": ("tsvlab.cli:lab", "Make the small CLIP that ships with the project, its tasks and fine-tunes."),
    "promote": ("flows.promote:promote_command", "Register the best tracked candidate, by the rules of params.yaml."),
    "serve": ("flows.serve:serve", "Serve a registered model by HTTP."),
    "sweep": ("flows.sweep:sweep_command", "Merge and measure every candidate of a grid, and choose among them."),
    "track": ("flows.track:track", "Send runs that MLflow could not take when they were made."),
}
for verb, (place, summary) in BESIDE.items():
    app.command(place, name=verb, help=summary)


def main() -> None:
    """Run a verb. Exit status: 0 done, 2 the user's to mend (one clean message), 1 a fault of ours."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # tells of its fonts
    warnings.formatwarning = _as_message
    with clean_exit():
        try:
            app(sys.argv[1:], exit_on_error=False)
        except CycloptsError:  # cyclopts has printed what was wrong with the words
            sys.exit(USER_ERROR)


def _as_message(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as people read it: what it says, without the line of code that said it."""
    return f"warning: {message}\n"
