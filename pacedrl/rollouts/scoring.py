"""Rewards of completions: the verdict of a task's verifier, and the parts that a task adds to it.

The verdict alone is the completion's ``reward``: accuracy is estimated from it, gates decide by it, and evaluation
reports it. Parts, each with a verifier and a weight of its own, only shape what the policy is trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pacedrl.errors import InputError
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import OUT_OF_RANGE
from pacedrl.types import Group


def score_groups(pool: VerifierPool, groups: Sequence[Group], tasks: Mapping[str, Task]) -> None:
    """Fill in the reward and the parts of every completion, or its error; ``tasks`` by name (``Prompt.task``).

    If a part cannot be judged, the completion has an error and no reward, because its total is unknown.
    """
    completions = [(group.prompt, completion) for group in groups for completion in group.completions]
    rows = [
        (completion, part, Job(part.verifier, prompt, completion.text, part.options))
        for prompt, completion in completions
        for part in (tasks[prompt.task].correctness, *tasks[prompt.task].parts)
    ]
    verdicts = pool.score([job for _, _, job in rows])
    for _, completion in completions:
        completion.error = None
        completion.parts = {}
    for (completion, part, _), verdict in zip(rows, verdicts, strict=True):
        if part.weight is None:
            completion.reward, completion.error = verdict.reward, verdict.error
        elif verdict.reward is not None:
            completion.parts[part.name] = part.weight * verdict.reward
        elif completion.error is None:
            completion.reward, completion.error = None, f"{_part_prefix(part.name)}{verdict.error}"


def require_judged(groups: Sequence[Group], tasks: Mapping[str, Task]) -> None:
    """Raise InputError if a verifier returned a number outside [0, 1], or if no completion could be judged.

    Such completions are left out of training, which would hide that the verifier is wrong. ``tasks`` by name, as given
    to `score_groups`.
    """
    for group in groups:
        task = tasks[group.prompt.task]
        for completion in group.completions:
            error = completion.error or ""
            if OUT_OF_RANGE in error:
                parts = [part for part in task.parts if error.startswith(_part_prefix(part.name))]
                raise out_of_range(task.name, parts[0].verifier if parts else task.verifier, error)

    completions = [completion for group in groups for completion in group.completions]
    commonest = commonest_error(groups)
    if commonest is not None and all(completion.reward is None for completion in completions):
        raise InputError(
            f"none of {len(completions)} completions could be judged; the verifier's commonest error: {commonest}; "
            "mend it and try it with `pacedrl judge` or `pacedrl doctor`",
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


def _part_prefix(name: str) -> str:
    return f"reward part '{name}': "


def add_overlong_penalty(groups: Sequence[Group], limit: int, buffer: int, penalty: float) -> None:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), as the part ``overlong``.

    It is 0 for completions of up to ``limit − buffer`` tokens, −penalty for those of ``limit`` tokens, and linear in
    between.
    """
    for group in groups:
        for completion in group.completions:
            excess = len(completion.token_ids) - (limit - buffer)
            completion.parts["overlong"] = -penalty * min(max(excess / buffer, 0.0), 1.0)


class Scorer:
    """Judges groups in the background, while others are still being sampled.

        with Scorer(pool, tasks) as scorer:
            ...                     # scorer.add(group) as each is done
            scorer.wait()

    If the context is left with an exception, groups that are not judged yet are dropped.
    """

    def __init__(self, pool: VerifierPool, tasks: Mapping[str, Task]) -> None:
        self.pool = pool
        self.tasks = tasks
        self._waiting: list[Group] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pacedrl-scorer")
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._waiting.clear()
            self.pool.cancel()
        self._thread.shutdown(cancel_futures=kind is not None)

    def add(self, group: Group) -> None:
        """Judge this group as soon as the pool is free."""
        self._waiting.append(group)
        self._futures.append(self._thread.submit(self._score_waiting))

    def wait(self) -> None:
        """Wait until everything added is judged; raise what judging raised."""
        for future in self._futures:
            future.result()

    def _score_waiting(self) -> None:
        # Everything that has piled up goes to the pool at once; what arrives while the pool works goes next time.
        groups, self._waiting = self._waiting, []
        if groups:
            score_groups(self.pool, groups, self.tasks)
