"""Gold answers, shown to a task's own verifier before training: it must reward them."""

from collections.abc import Sequence

from pacedrl.errors import InputError, JudgeError
from pacedrl.rollouts.verdicts import out_of_range
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import BUILT_IN, OUT_OF_RANGE, Verdict, gold_completion
from pacedrl.types import Prompt

GOLD_SAMPLE = 32
"""Maximum number of gold answers of each task that are tried before training starts."""
GOLD_FORMS = ("{}", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}")
"""The usual forms in which a completion states an answer."""


def rejected_gold(pool: VerifierPool, task: Task, limit: int | None = None) -> tuple[int, list[tuple[Prompt, str]]]:
    """Try gold answers on the task's own verifier.

    Returns how many were tried, and the prompts whose gold answer does not get full reward, with the reason. Built-in
    verifiers are shown the answer in their own form. A user's function is shown each of `GOLD_FORMS`, because it is not
    known which one it reads; if it rewards none, the first verdict is the reason. Raises InputError for a reward
    outside [0, 1].
    """
    jobs: list[Job] = []
    offenders: list[tuple[Prompt, str]] = []
    for prompt in task.prompts[:limit]:
        try:
            gold = gold_completion(task.verifier, prompt)
        except JudgeError as error:
            offenders.append((prompt, str(error)))
            continue
        if gold is not None:
            forms = (gold,) if task.verifier in BUILT_IN else tuple(form.format(gold) for form in GOLD_FORMS)
            jobs += [Job(task.verifier, prompt, form, task.options) for form in forms]
    unjudged = len(offenders)
    verdicts: dict[str, list[Verdict]] = {}
    for job, verdict in zip(jobs, pool.score(jobs), strict=True):
        if OUT_OF_RANGE in (verdict.error or ""):
            raise out_of_range(task.name, job.verifier, str(verdict.error))
        verdicts.setdefault(job.prompt.key, []).append(verdict)
    for prompt in task.prompts[:limit]:
        shown = verdicts.get(prompt.key, [])
        if shown and all(verdict.reward is None or verdict.reward < 1.0 for verdict in shown):
            offenders.append((prompt, shown[0].error or f"rewarded {shown[0].reward:g}"))
    return len(verdicts) + unjudged, offenders


def require_some_gold(pool: VerifierPool, tasks: Sequence[Task]) -> None:
    """Raise InputError if a verifier rejects every gold answer it is shown, because nothing could be learned from it.

    ``verifier.check_gold=false`` turns this off, for rewards that a bare answer cannot earn.
    """
    for task in tasks:
        tried, offenders = rejected_gold(pool, task, GOLD_SAMPLE)
        if tried and len(offenders) == tried:
            prompt, reason = offenders[0]
            raise InputError(
                f"task {task.name}: the verifier '{task.verifier}' rejects all {tried} gold answers it was shown, "
                f"e.g. {str(prompt.answer)[:60]!r} ({reason}); "
                "check columns.answer and the verifier, or set verifier.check_gold=false",
                docs="verifiers",
            )
