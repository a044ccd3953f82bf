"""Errors of verifiers: the commonest one, and those that stop a run before it starts."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pacedrl.errors import InputError
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.verifiers import OUT_OF_RANGE
from pacedrl.types import Group


def require_judged(groups: Sequence[Group], tasks: Mapping[str, Task]) -> None:
    """Raise InputError if a verifier returned a number outside [0, 1], or if no completion could be judged.

    Such completions are left out of training, which would hide that the verifier is wrong. ``tasks`` are by name, as
    for `score_groups`.
    """
    for group in groups:
        task = tasks[group.prompt.task]
        for completion in group.completions:
            error = completion.error or ""
            if OUT_OF_RANGE in error:
                parts = [part for part in task.parts if error.startswith(part_prefix(part.name))]
                raise out_of_range(task.name, parts[0].verifier if parts else task.verifier, error)

    completions = [completion for group in groups for completion in group.completions]
    commonest = commonest_error(groups)
    if commonest is not None and all(completion.reward is None for completion in completions):
        raise InputError(
            f"none of {len(completions)} completions could be judged; the verifier's commonest error: {commonest}; "
            "fix it and try it with `pacedrl judge` or `pacedrl doctor`",
            docs="verifiers",
        )


def commonest_error(groups: Sequence[Group]) -> str | None:
    """The error that most completions have; None if all were judged."""
    errors = Counter(completion.error for group in groups for completion in group.completions if completion.error)
    return errors.most_common(1)[0][0] if errors else None


def out_of_range(task: str, verifier: str, error: str) -> InputError:
    """The InputError for a verdict whose error contains OUT_OF_RANGE."""
    return InputError(
        f"task {task}: {verifier} returned {error.rpartition(OUT_OF_RANGE)[2]}, but a reward lies in [0, 1]: scale it, "
        "e.g. return (reward + 1) / 2 where it is -1 or 1",
        docs="verifiers",
    )


def part_prefix(name: str) -> str:
    """The beginning of an error of the reward part ``name``."""
    return f"reward part '{name}': "
