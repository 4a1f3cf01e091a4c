"""What must fit before a suite is evaluated: model, base and fine-tunes, told all at once and before any work."""

from __future__ import annotations

from typing import Any

from .checkpoint import Checkpoint, open_checkpoint
from .clip import describe_model
from .compatibility import description_problems, differing, structure_problems
from .errors import MismatchError, SuiteError
from .names import to_open_clip
from .suite import Suite


def check_before_evaluation(suite: Suite) -> None:
    """Check that a suite's model, base and fine-tunes belong together.

    Activation, resolution, mean, deviation and tokenizer are compared as far as each tells, names and shapes of
    parameters always, and a fine-tune that says which base it was made from must name this one.

    Raises:
        MismatchError: they do not; lists all problems.
        CheckpointError: one of them is missing or unreadable.
    """
    if not suite.tasks:
        raise SuiteError(f"suite {suite.name!r}: has no tasks.")
    base = to_open_clip(open_checkpoint(suite.base_uri))
    problems = [
        f"suite {suite.name!r}: {problem} Name the model that the base was trained as."
        for problem in differing(f"model {suite.model}", _about(suite), f"the base {base.source}", base.about)
    ]
    for task, uri in suite.checkpoints.items():
        tuned = to_open_clip(open_checkpoint(uri), base)
        problems += structure_problems(base, task, tuned)
        problems += description_problems(base, task, tuned)
        problems += _other_base(base, task, tuned)
    if problems:
        raise MismatchError(problems)


def _about(suite: Suite) -> dict[str, Any]:
    """Of the model that heads and preprocessing come from."""
    said = open_checkpoint(suite.clip_weights).about if suite.clip_weights else {}
    return {**said, **describe_model(suite.clip_model)}


def _other_base(base: Checkpoint, task: str, tuned: Checkpoint) -> list[str]:
    """A fine-tune made by ``tsv finetune`` or the lab says what it started from."""
    origin = tuned.metadata.get("origin")
    stated = origin.get("base") if isinstance(origin, dict) else None
    if not isinstance(stated, str) or stated == base.digest:
        return []
    return [
        f"{tuned.source} (task {task!r}): was fine-tuned from the base {stated[:12]}…, not from {base.source} "
        f"({base.digest[:12]}…). Use the base that it was fine-tuned from, or fine-tune it anew."
    ]
