"""Evaluates a policy on held-out tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pacedrl.config import Config
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.evaluation.metrics import Estimate, PromptResult, summarise
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import Sampler, SamplingSettings
from pacedrl.rollouts.collect import sample_groups, score_groups
from pacedrl.rollouts.engines import build_sampler, evaluation_settings
from pacedrl.rollouts.tasks import encode_tasks, load_tasks
from pacedrl.rollouts.verdicts import require_judged
from pacedrl.tasks.completions import stated_answer
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import VerifierPool
from pacedrl.types import Group, Prompt
from pacedrl.view import View


@dataclass(frozen=True)
class TaskResult:
    """The figures of one task (`pacedrl.evaluation.metrics.summarise`) and how many completions they rest on."""

    task: str
    prompts: int
    figures: dict[str, Estimate]
    truncated: float
    """Share of completions that were cut off at the token limit."""
    errors: int
    """Number of completions that the verifier could not judge; the figures leave them out."""
    completions: int
    """Number of all completions, unjudged ones included."""

    @property
    def left_out(self) -> float:
        """Share of completions that the figures leave out."""
        return self.errors / self.completions

    def flat(self) -> dict[str, float]:
        """Return numbers with slash names: ``TASK/pass@1``, ``TASK/pass@1_low``, ``TASK/pass@1_high``, ..."""
        row: dict[str, float] = {}
        for name, estimate in self.figures.items():
            row[f"{self.task}/{name}"] = estimate.mean
            row[f"{self.task}/{name}_low"] = estimate.low
            row[f"{self.task}/{name}_high"] = estimate.high
        return row | {
            f"{self.task}/truncated": self.truncated,
            f"{self.task}/verifier_errors": float(self.errors),
            f"{self.task}/left_out": self.left_out,
        }


def evaluate(
    sampler: Sampler,
    pool: VerifierPool,
    tasks: Sequence[Task],
    settings: SamplingSettings,
    ks: Sequence[int],
    seed: int,
    tick: Callable[[], None] = lambda: None,
    view: View | None = None,
    ranks: Ranks | None = None,
    strict: bool = False,
) -> list[TaskResult]:
    """Sample ``settings.group_size`` completions of every prompt of every task, judge and summarise them.

    The same seed gives the same random numbers for every policy, so that two policies are compared on common numbers.
    The ``ranks`` divide the prompts, and all return the whole result. ``strict`` refuses rewards outside [0, 1], which
    otherwise count as errors, and a task without any verdict.

    Raises ValueError if some k exceeds the number of samples. Raises InputError if the verifier could not judge enough
    completions of a task, or, with ``strict``, returned a reward outside [0, 1].
    """
    if max(ks) > settings.group_size:
        raise ValueError(f"pass@{max(ks)} needs at least {max(ks)} samples per prompt, not {settings.group_size}")
    results = []
    view = view or View()
    view.phase("evaluating", sum(len(task.prompts) for task in tasks) * settings.group_size)
    for task in tasks:

        def judged(prompts: Sequence[Prompt], task: Task = task) -> list[Group]:
            groups = sample_groups(sampler, prompts, settings, (seed, "eval"), tick, view.advance)
            score_groups(pool, groups, {task.name: replace(task, parts=())})
            return groups

        groups = (ranks or Ranks()).map(task.prompts, judged)
        if strict:
            require_judged(groups, {task.name: task})
        results.append(_result(task, groups, ks))
    return results


def run_evaluation(config: Config, view: View) -> list[TaskResult]:
    """Load ``model.name`` and evaluate it on ``data.eval``, outside a training run."""
    _, tasks = load_tasks(config.model_copy(update={"data": config.data.model_copy(update={"train": []})}))
    policy = Policy.load(config.model, resolve_device(config.run.device))
    tasks = encode_tasks(policy, tasks, config)
    sampler = build_sampler(config, policy)
    settings, k, seed = evaluation_settings(config), config.eval.k, config.run.seed
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        return evaluate(sampler, pool, tasks, settings, k, seed, view=view, strict=True)


def _result(task: Task, groups: Sequence[Group], ks: Sequence[int]) -> TaskResult:
    completions = [completion for group in groups for completion in group.completions]
    errors = [completion.error for completion in completions if completion.reward is None]
    judged = [[c for c in group.completions if c.reward is not None] for group in groups]
    answers = [[stated_answer(task.verifier, completion.text) for completion in part] for part in judged]
    try:
        figures = summarise(list(map(PromptResult, (group.rewards for group in groups), answers)), ks)
    except ValueError:
        raise InputError(
            f"task {task.name}: the verifier '{task.verifier}' failed on {len(errors)} of {len(completions)} "
            f"completions, too many for pass@{max(ks)}; the first failure: {errors[0]}"
        ) from None
    truncated = sum(completion.finish_reason == "length" for completion in completions) / len(completions)
    return TaskResult(task.name, len(groups), figures, truncated, len(errors), len(completions))
