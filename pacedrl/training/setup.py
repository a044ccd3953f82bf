"""What a run is made of, built from its configuration: tasks, encoded prompts, the scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pacedrl.config import (
    CombinedEstimatorConfig,
    Config,
    CountsEstimatorConfig,
    LiloGateConfig,
    TrajectoryBalanceConfig,
)
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError, JudgeError
from pacedrl.method import DifficultyScheduler, LogPartition, PartitionLearner, ReplayBuffer, project
from pacedrl.policy.chat_template import prompt_ids
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import Sampler, TransformersSampler
from pacedrl.tasks.datasets import Task, load_task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.scoring import out_of_range
from pacedrl.tasks.verifiers import BUILT_IN, OUT_OF_RANGE, Verdict, gold_completion, require_time
from pacedrl.types import Prompt

GOLD_SAMPLE = 32
"""Gold answers of each task that are tried before training starts."""
GOLD_FORMS = ("{}", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}")
"""How a completion may state an answer."""


def load_tasks(config: Config) -> tuple[list[Task], list[Task]]:
    """The training and evaluation tasks. Raises InputError for bad data or two tasks of one name."""
    train, held_out = ([load_task(task) for task in part] for part in (config.data.train, config.data.eval))
    for section, tasks in (("train", train), ("eval", held_out)):
        name, count = Counter(task.name for task in tasks).most_common(1)[0] if tasks else ("", 0)
        if count > 1:
            raise InputError(f"data.{section}: {count} tasks are called '{name}'; give each a name of its own")
    for task in [*train, *held_out]:
        for part in (task.correctness, *task.parts):
            require_time(part.verifier, part.options, config.verifier.timeout_s, "verifier.timeout_s", task.name)
    return train, held_out


def unique_prompts(tasks: Iterable[Task]) -> list[Prompt]:
    """All prompts of the tasks; one that occurs in several belongs to the first."""
    by_key: dict[str, Prompt] = {}
    for task in tasks:
        for prompt in task.prompts:
            by_key.setdefault(prompt.key, prompt)
    return list(by_key.values())


def encode_tasks(policy: Policy, tasks: Sequence[Task], config: Config) -> tuple[list[Task], dict[str, list[int]]]:
    """The tasks without the prompts that were dropped for length, and every prompt's token ids by key.

    Raises InputError for a prompt that is longer than the limit (unless ``data.overlong`` says drop), for limits that
    together exceed the model's context, and for a task left empty.
    """
    sampling = config.sampling
    limit = sampling.max_prompt_tokens
    prompts = [prompt for task in tasks for prompt in task.prompts]
    ids = {prompt.key: prompt_ids(policy.tokenizer, prompt, policy.vocabulary) for prompt in prompts}
    longest = max((len(tokens) for tokens in ids.values() if len(tokens) <= limit), default=0)
    kept = []
    for task in tasks:
        overlong = [prompt for prompt in task.prompts if len(ids[prompt.key]) > limit]
        if overlong and config.data.overlong == "error":
            first = overlong[0]
            raise InputError(
                f"task {task.name}: {len(overlong)} of {len(task.prompts)} prompts are longer than "
                f"sampling.max_prompt_tokens = {limit}, the first with {len(ids[first.key])} tokens "
                f"({shorten(first)}); raise the limit or set data.overlong=drop"
            )
        if len(overlong) == len(task.prompts):
            raise InputError(f"task {task.name}: every prompt is longer than sampling.max_prompt_tokens = {limit}")
        gone = {prompt.key for prompt in overlong}
        kept.append(replace(task, prompts=[prompt for prompt in task.prompts if prompt.key not in gone]))
    context = policy.context_length
    if context is not None and longest + sampling.max_new_tokens > context:
        raise InputError(
            f"the longest prompt ({longest} tokens) and sampling.max_new_tokens ({sampling.max_new_tokens}) exceed the "
            f"model's context of {context} tokens; lower sampling.max_new_tokens or drop the longest prompts"
        )
    return kept, ids


def reward_parts(config: Config, tasks: Iterable[Task]) -> list[str]:
    """Names of all that is added to rewards, in order of first appearance."""
    names = dict.fromkeys(part.name for task in tasks for part in task.parts)
    return [*names, *(["overlong"] if config.reward.overlong_buffer else [])]


def require_enough_prompts(config: Config, available: int) -> None:
    """Raise InputError when a step would ask for more prompts than there are."""
    oversample = config.gate.oversample if isinstance(config.gate, LiloGateConfig) else 1
    needed = config.sampling.prompts_per_step * oversample
    if needed > available:
        times = f" × gate.oversample = {needed}" if oversample > 1 else ""
        raise InputError(
            f"sampling.prompts_per_step: {config.sampling.prompts_per_step}{times} prompts a step asked for, but "
            f"data.train has only {available}; lower it or add prompts"
        )


def require_oracle_tasks(config: Config, tasks: Sequence[Task]) -> None:
    """Raise InputError when true accuracies are asked for of tasks whose right answers cannot be listed."""
    if config.estimator.name != "oracle":
        return
    other = [task for task in tasks if task.verifier != "exact"]
    if other or config.sampling.top_p < 1.0:
        what = f"task {other[0].name} has '{other[0].verifier}'" if other else f"top_p is {config.sampling.top_p}"
        raise InputError(
            f"estimator.name: the oracle computes the probability of the one right answer, so it needs the verifier "
            f"'exact' and sampling.top_p = 1, but {what}; choose another estimator or recipe",
            docs="recipes",
        )


def build_sampler(config: Config, policy: Policy, splits: bool = False, ranks: Ranks | None = None) -> Sampler:
    """What draws the run's completions. Raises InputError where the engine is not installed, or not to be reached.

    A policy that ``splits``, once this is built, is sampled from a copy in one piece. ``ranks`` all build one.
    """
    require_an_end(config, policy)
    if config.sampling.engine == "vllm_server":
        from pacedrl.policy.vllm.server import VllmServerSampler

        return VllmServerSampler(policy, config.sampling, ranks)
    if config.sampling.engine == "vllm":
        from pacedrl.policy.vllm.sampler import VllmSampler

        return VllmSampler(policy, config.sampling)
    return TransformersSampler(policy, own_copy=config.sampling.ahead or splits)


def require_an_end(config: Config, policy: Policy) -> None:
    """Raise InputError when nothing would end a completion but the limit on its length."""
    if not policy.ends(config.sampling.stop):
        raise InputError(
            "model.name: neither the model, its tokenizer nor its chat template names a token that ends a completion; "
            "give a token or a string that does with sampling.stop"
        )


def initial_embeddings(
    config: Config, policy: Policy, prompt_ids: Sequence[Sequence[int]], advance: Callable[[int], None]
) -> Tensor:
    """What log Z reads of each prompt, [N, H] or [N, ``partition.projection``].

    ``policy`` is the initial one, also when a run is resumed: Z reads the same embeddings all run long. Raises
    InputError for a projection to more dimensions than there are.
    """
    embeddings_NH = prompt_embeddings(policy, prompt_ids, advance, config.partition.embedding)
    if config.partition.projection is None:
        return embeddings_NH
    try:
        return project(embeddings_NH, config.partition.projection)
    except ValueError as error:
        raise InputError(f"partition.projection: {error}; lower it, or leave it out") from None


def build_scheduler(
    config: Config, keys: Sequence[str], embeddings_NH: Tensor | None, device: torch.device | None = None
) -> DifficultyScheduler:
    """The difficulty scheduler of the configuration; ``embeddings_NH`` is None where nothing reads log Z.

    Its partition function is initialised from torch's generator, and computed on ``device``: that of the embeddings
    unless given.
    """
    estimator = config.estimator
    evidence: dict[str, Any] = {}
    if isinstance(estimator, CountsEstimatorConfig | CombinedEstimatorConfig):
        evidence["discount"] = estimator.discount
    if isinstance(estimator, CombinedEstimatorConfig):
        evidence["prior_strength"] = estimator.prior_strength
    return DifficultyScheduler(
        keys,
        embeddings_NH,
        learner=None if embeddings_NH is None else _partition_learner(config, embeddings_NH, device),
        replay=_replay_buffer(config),
        selection=config.selection.method,
        estimator=estimator.name,
        target_accuracy=config.selection.target_accuracy,
        explore_fraction=config.selection.explore_fraction,
        cooldown_steps=config.selection.cooldown_steps,
        rescore_share=config.partition.rescore_share,
        seed=config.run.seed,
        **evidence,
    )


def _replay_buffer(config: Config) -> ReplayBuffer:
    settings = config.replay
    return ReplayBuffer(settings.capacity if settings.enabled else 0, settings.admit, settings.max_age)


def _partition_learner(config: Config, embeddings_NH: Tensor, device: torch.device | None) -> PartitionLearner:
    # The GRPO family has no β: log Z is fitted to r/β there, without a log-ratio, and only β·log Z is read.
    beta = getattr(config.objective, "beta", TrajectoryBalanceConfig().beta)
    settings = config.partition
    partition = LogPartition(
        embeddings_NH,
        beta=beta,
        prior_accuracy=settings.prior_accuracy,
        hidden_size=settings.hidden_size,
        dropout=settings.dropout,
    )
    own = settings.learning_rate
    return PartitionLearner(
        partition.to(device or embeddings_NH.device),
        learning_rate=config.optimizer.learning_rate if own is None else own,
        weight_decay=settings.weight_decay,
        fit_steps=settings.fit_steps,
        scale_by_fan_in=own is not None,
    )


def rejected_gold(pool: VerifierPool, task: Task, limit: int | None = None) -> tuple[int, list[tuple[Prompt, str]]]:
    """How many gold answers were tried, and those that the task's own verifier does not reward in full, with why.

    Built-in verifiers are shown the answer in their own form. What form a user's function reads is not known, so it is
    shown each of the usual ones, and the first verdict is the reason given if it rewards none. Raises InputError for a
    reward outside [0, 1].
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
    """Raise InputError when a verifier rejects every gold answer it is shown: nothing could be learned from it.

    ``verifier.check_gold`` turns this off, for rewards that a bare answer cannot earn.
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


def shorten(prompt: Prompt, width: int = 60) -> str:
    """The beginning of what a prompt asks, on one line."""
    line = " ".join(prompt.question.split())
    return repr(line if len(line) <= width else line[: width - 1] + "…")
