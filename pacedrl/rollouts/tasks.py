"""A run's prompts: tasks are loaded, encoded and checked."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.policy.chat_template import prompt_ids
from pacedrl.policy.policy import Policy
from pacedrl.tasks.datasets import Task, load_task
from pacedrl.tasks.verifiers import require_time
from pacedrl.types import Prompt


def load_tasks(config: Config) -> tuple[list[Task], list[Task]]:
    """Load the training and the evaluation tasks. Raises InputError for bad data, or if two tasks have one name."""
    train, held_out = ([load_task(task) for task in part] for part in (config.data.train, config.data.eval))
    for section, tasks in (("train", train), ("eval", held_out)):
        name, count = Counter(task.name for task in tasks).most_common(1)[0] if tasks else ("", 0)
        if count > 1:
            raise InputError(f"data.{section}: {count} tasks are called '{name}'; give each its own name")
    for task in [*train, *held_out]:
        for part in (task.correctness, *task.parts):
            require_time(part.verifier, part.options, config.verifier.timeout_s, "verifier.timeout_s", task.name)
    return train, held_out


def unique_prompts(tasks: Iterable[Task]) -> list[Prompt]:
    """All prompts of the tasks, each once; a prompt that several tasks contain belongs to the first."""
    by_key: dict[str, Prompt] = {}
    for task in tasks:
        for prompt in task.prompts:
            by_key.setdefault(prompt.key, prompt)
    return list(by_key.values())


def encode_tasks(policy: Policy, tasks: Sequence[Task], config: Config, drop_overlong: bool = False) -> list[Task]:
    """Fill in the token ids of all prompts, and return the tasks without overlong prompts.

    Raises InputError for a prompt longer than the limit (unless ``drop_overlong``, or ``data.overlong=drop``), for
    limits that together exceed the model's context, and for a task of which no prompt is left.
    """
    sampling = config.sampling
    limit = sampling.max_prompt_tokens
    prompts = [prompt for task in tasks for prompt in task.prompts]
    ids = {prompt.key: prompt_ids(policy.tokenizer, prompt, policy.vocabulary) for prompt in prompts}
    longest = max((len(tokens) for tokens in ids.values() if len(tokens) <= limit), default=0)
    kept = []
    for task in tasks:
        overlong = [prompt for prompt in task.prompts if len(ids[prompt.key]) > limit]
        if overlong and config.data.overlong == "error" and not drop_overlong:
            first = overlong[0]
            raise InputError(
                f"task {task.name}: {len(overlong)} of {len(task.prompts)} prompts are longer than "
                f"sampling.max_prompt_tokens = {limit}, the first with {len(ids[first.key])} tokens "
                f"({shorten(first)}); raise the limit or set data.overlong=drop"
            )
        if len(overlong) == len(task.prompts):
            raise InputError(f"task {task.name}: every prompt is longer than sampling.max_prompt_tokens = {limit}")
        short = [replace(p, token_ids=ids[p.key]) for p in task.prompts if len(ids[p.key]) <= limit]
        kept.append(replace(task, prompts=short))
    context = policy.context_length
    if context is not None and longest + sampling.max_new_tokens > context:
        raise InputError(
            f"the longest prompt ({longest} tokens) and sampling.max_new_tokens ({sampling.max_new_tokens}) exceed the "
            f"model's context of {context} tokens; lower sampling.max_new_tokens or drop the longest prompts"
        )
    return kept


def reward_parts(config: Config, tasks: Iterable[Task]) -> list[str]:
    """Names of everything that is added to rewards, in order of first appearance."""
    names = dict.fromkeys(part.name for task in tasks for part in task.parts)
    return [*names, *(["overlong"] if config.reward.overlong_buffer else [])]


def require_enough_prompts(config: Config, available: int) -> None:
    """Raise InputError if a step needs more prompts than there are."""
    oversample = config.gate.selection_factor
    needed = config.sampling.prompts_per_step * oversample
    if needed > available:
        times = f" × gate.oversample = {needed}" if oversample > 1 else ""
        raise InputError(
            f"sampling.prompts_per_step: a step needs {config.sampling.prompts_per_step}{times} prompts, but "
            f"data.train has only {available}; lower it or add prompts"
        )


def require_oracle_tasks(config: Config, tasks: Sequence[Task]) -> None:
    """Raise InputError if the estimator is the oracle but a task has more than one right answer to a prompt."""
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


def shorten(prompt: Prompt, width: int = 60) -> str:
    """The beginning of a prompt's question, on one line."""
    line = " ".join(prompt.question.split())
    return repr(line if len(line) <= width else line[: width - 1] + "…")
