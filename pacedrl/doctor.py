"""`pacedrl doctor`: find what is wrong with a configuration before a run costs money."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.console import Console

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.policy import vllm
from pacedrl.policy.activations import uses_checkpointing
from pacedrl.policy.chat_template import prompt_ids
from pacedrl.policy.loading import adapter_note, resolve_device
from pacedrl.policy.memory import GIB, Memory, estimate
from pacedrl.policy.policy import Policy
from pacedrl.policy.template_problems import template_problems
from pacedrl.policy.vllm.client import Lost, Server
from pacedrl.policy.vllm.weights import require_fit
from pacedrl.rollouts.engines import require_an_end, sample_once, training_settings
from pacedrl.rollouts.gold import rejected_gold
from pacedrl.rollouts.tasks import (
    encode_tasks,
    load_tasks,
    require_enough_prompts,
    require_oracle_tasks,
    shorten,
    unique_prompts,
)
from pacedrl.rollouts.verdicts import out_of_range
from pacedrl.tasks.attacks import ATTACKS
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import OUT_OF_RANGE
from pacedrl.training.learner import Learner
from pacedrl.training.objectives import build_objective
from pacedrl.training.trackers import require_trackers
from pacedrl.types import Prompt

SHOWN = 10
"""Maximum number of examples that a check lists."""
ATTACKED = 20
"""Number of prompts per task on which the verifier is tried with completions that solve nothing."""
PROBE_TOKENS = 32
"""Length of the completions that are sampled to measure speed."""

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """The result of a check, one line of output. A ``fail`` would stop or spoil a run; a ``warn`` deserves a look."""

    level: Level
    text: str


def examine(config: Config, console: Console | None = None) -> int:
    """Run all checks, print their results, and return the number of failures."""
    console = console or Console()
    failures = 0
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks(config):
        console.print(f"[{styles[check.level]}]{check.level:>4}[/]  ", end="")
        console.print(check.text, markup=False, highlight=False, soft_wrap=True)
        failures += check.level == "fail"
    console.print(f"{failures} problem{'s' * (failures != 1)} found." if failures else "Ready to train.")
    return failures


def checks(config: Config) -> Iterator[Check]:
    """Run all checks in order. If data, model or prompts cannot be loaded, no further check runs."""
    yield from _failure(lambda: require_trackers(config))
    try:
        train, held_out = load_tasks(config)
        tasks = [*train, *held_out]
        policy = Policy.load(config.model, resolve_device(config.run.device))
        yield from _model(policy, config.model.name)
        yield from _ends(policy, tasks, config)
        yield from _engine(policy, config)
        yield from _servers(config)
        yield from _prompts(policy, tasks, config)
        encoded = encode_tasks(policy, tasks, config, drop_overlong=True)  # `_prompts` has reported them
    except InputError as error:
        yield Check("fail", str(error))
        return
    trained = encoded[: len(train)]
    yield from _duplicates(train, held_out)
    yield from _failure(lambda: require_enough_prompts(config, len(unique_prompts(trained))))
    yield from _failure(lambda: require_oracle_tasks(config, trained))
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        for task in tasks:
            try:
                yield from _gold(pool, task, config.verifier.check_gold)
                yield from _attacks(pool, task)
            except InputError as error:
                yield Check("fail", str(error))
    yield from _cost(policy, [prompt.token_ids for task in trained for prompt in task.prompts], config)


def _failure(require: Callable[[], object]) -> Iterator[Check]:
    try:
        require()
    except InputError as error:
        yield Check("fail", str(error))


def _model(policy: Policy, name: str) -> Iterator[Check]:
    total = sum(parameter.numel() for parameter in policy.model.parameters())
    trained = sum(parameter.numel() for parameter in policy.parameters())
    yield Check(
        "ok",
        f"model: {type(policy.causal_lm).__name__}, {total / 1e6:,.1f} M parameters ({trained / 1e6:,.1f} M trained), "
        f"context {policy.context_length or 'not stated'}, on {policy.device}",
    )
    if (note := adapter_note(name)) is not None:
        yield Check("ok", note)
    if policy.decoding != "columns":
        batches = ", in batches of prompts of equal length" if policy.decoding == "equal" else ""
        yield Check(
            "ok",
            f"sampling: with transformers' generate and the model's own cache{batches}, which is slower than with a "
            "plain cache of keys and values",
        )


def _ends(policy: Policy, tasks: Sequence[Task], config: Config) -> Iterator[Check]:
    """Tokens and strings at which completions end, and whether the chat template's end of turn is among them."""
    try:
        require_an_end(config, policy)
    except InputError as error:
        yield Check("fail", str(error))
        return
    ends = policy.ends(config.sampling.stop)
    named = [*(policy.decode([i]) for i in ends.token_ids), *ends.strings]
    shown = [repr(text) + " (the chat template's end of turn)" * (text == policy.turn_end) for text in named]
    yield Check("ok", f"completions end at {', '.join(shown)}, or after {config.sampling.max_new_tokens} tokens")
    chats = [task.name for task in tasks if any(not isinstance(prompt.content, str) for prompt in task.prompts)]
    if chats and policy.turn_end is None:
        yield Check(
            "warn",
            f"task {chats[0]}: the chat template writes nothing at the end of the assistant's turn, so the model may "
            "not have learned to end one; if completions do not end, set sampling.stop to a text that follows answers",
        )


def _servers(config: Config) -> Iterator[Check]:
    tokens = config.sampling.max_prompt_tokens + config.sampling.max_new_tokens
    for url in config.sampling.servers:
        server = Server(url)
        try:
            workers = server.workers()
            require_fit(server, workers, tokens)
            server.version()
        except Lost as lost:
            yield Check("fail", f"sampling.servers: {url} does not answer ({lost}); start it as docs/serving.md says")
        except InputError as error:
            yield Check("fail", str(error))
        else:
            room = min(worker["max_model_len"] for worker in workers)
            devices = f"{len(workers)} × {workers[0]['device']}"
            yield Check("ok", f"server {url}: {devices}, room for {room:,} tokens, {tokens:,} needed")


def _prompts(policy: Policy, tasks: Sequence[Task], config: Config) -> Iterator[Check]:
    limit, bos = config.sampling.max_prompt_tokens, policy.tokenizer.bos_token_id
    for task in tasks:
        ids = [prompt_ids(policy.tokenizer, prompt, policy.vocabulary) for prompt in task.prompts]
        lengths = [len(tokens) for tokens in ids]
        overlong = [i for i, length in enumerate(lengths) if length > limit]
        summary = f"task {task.name}: {len(lengths):,} prompts of {min(lengths)} to {max(lengths)} tokens"
        if overlong:
            level: Level = "warn" if config.data.overlong == "drop" else "fail"
            listed = ", ".join(f"{shorten(task.prompts[i])} ({lengths[i]})" for i in overlong[:SHOWN])
            yield Check(level, f"{summary}; {len(overlong)} longer than sampling.max_prompt_tokens = {limit}: {listed}")
        else:
            yield Check("ok", f"{summary}, verifier '{task.verifier}'")
        sees = f"({_kind(task.prompts[0])}) {policy.tokenizer.decode(ids[0])!r}"
        yield Check("ok", f"task {task.name}: the model sees {sees}")
        if bos is not None and list(ids[0][:2]) == [bos, bos]:
            yield Check("warn", f"task {task.name}: prompts start with two {policy.tokenizer.bos_token!r} tokens")
        for problem in template_problems(policy.tokenizer, task.prompts, config.sampling.max_new_tokens):
            yield Check("warn", f"task {task.name}: {problem}")


def _kind(prompt: Prompt) -> str:
    if isinstance(prompt.content, str):
        return "plain text"
    continued = prompt.content[-1]["role"] == "assistant"
    return "chat template, continuing the assistant's message" if continued else "chat template"


def _duplicates(train: Sequence[Task], held_out: Sequence[Task]) -> Iterator[Check]:
    """Prompts with several answers, and held-out prompts that are also training prompts."""
    for task in [*train, *held_out]:
        asked: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in task.prompts:
            asked[str((prompt.content, prompt.template_options))].append(prompt)
        clashing = [same[0] for same in asked.values() if len({str(prompt.answer) for prompt in same}) > 1]
        if clashing:
            listed = ", ".join(map(shorten, clashing[:SHOWN]))
            yield Check("warn", f"task {task.name}: {len(clashing)} prompts occur with differing answers: {listed}")
    train_keys = {prompt.key for task in train for prompt in task.prompts}
    for task in held_out:
        both = sum(prompt.key in train_keys for prompt in task.prompts)
        if both:
            shared = f"{both} of its {len(task.prompts)} held-out prompts are also training prompts"
            yield Check("warn", f"task {task.name}: {shared}")


def _gold(pool: VerifierPool, task: Task, check: bool) -> Iterator[Check]:
    if not check:
        yield Check("ok", f"task {task.name}: gold answers were not tried, because verifier.check_gold is false")
        return
    tried, offenders = rejected_gold(pool, task)
    if not tried:
        yield Check("warn", f"task {task.name}: no row has a gold answer, so the verifier cannot be checked")
    elif not offenders:
        yield Check("ok", f"task {task.name}: the verifier accepts all {tried:,} gold answers")
    else:
        level: Level = "fail" if len(offenders) == tried else "warn"
        yield Check(level, f"task {task.name}: the verifier rejects {len(offenders):,} of {tried:,} gold answers:")
        same_reason = len({reason for _, reason in offenders}) == 1
        for prompt, reason in offenders[: 1 if same_reason else SHOWN]:
            each = "each time, e.g. " if same_reason and len(offenders) > 1 else ""
            yield Check(level, f"    {each}{shorten(prompt)} answer {str(prompt.answer)[:60]!r}: {reason}")


def _attacks(pool: VerifierPool, task: Task) -> Iterator[Check]:
    """Completions that solve nothing but are rewarded. Raises InputError for a reward outside [0, 1]."""
    prompts = task.prompts[:ATTACKED]
    jobs = [Job(task.verifier, prompt, text(prompt), task.options) for text in ATTACKS.values() for prompt in prompts]
    verdicts = pool.score(jobs)
    for verdict in verdicts:
        if OUT_OF_RANGE in (verdict.error or ""):
            raise out_of_range(task.name, task.verifier, str(verdict.error))
    rewarded = [(verdict.reward or 0.0) > 0.0 for verdict in verdicts]
    counts = {name: sum(rewarded[i * len(prompts) : (i + 1) * len(prompts)]) for i, name in enumerate(ATTACKS)}
    found = [f"{name} ({count} of {len(prompts)})" for name, count in counts.items() if count]
    if found:
        what = f"completions that solve nothing: {', '.join(found)}"
        yield Check("warn", f"task {task.name}: the verifier rewards {what}")
    else:
        yield Check("ok", f"task {task.name}: the verifier rewards none of {len(ATTACKS)} ways to solve nothing")


def _engine(policy: Policy, config: Config) -> Iterator[Check]:
    """Recommend vLLM for a GPU."""
    if policy.device.type == "cuda" and config.sampling.engine == "transformers":
        first = "" if vllm.installed() else f"{vllm.INSTALL}, then "
        yield Check(
            "warn",
            "sampling.engine: transformers decodes one operation of one layer at a time, which leaves a GPU idle in "
            f"between; {first}set sampling.engine=vllm (docs/serving.md)",
        )


def _cost(policy: Policy, prompt_ids: Sequence[Sequence[int]], config: Config) -> Iterator[Check]:
    """Upper bounds on time and memory."""
    try:
        yield _time(policy, prompt_ids, config)
    except InputError as error:
        yield Check("fail", str(error))
    except Lost as lost:
        yield Check("warn", f"time: not measured, because a server does not answer ({lost})")
    yield _memory(policy, config)


def _time(policy: Policy, prompt_ids: Sequence[Sequence[int]], config: Config) -> Check:
    """Bound the time of a step from the speed of the configured engine and of the update on short completions.

    Raises what `sample_once` raises.
    """
    sampling = config.sampling
    rollouts = sampling.prompts_per_step * sampling.group_size
    probe = sorted(prompt_ids, key=len)[len(prompt_ids) // 2 :][: max(1, sampling.batch_size // sampling.group_size)]
    settings = replace(training_settings(config), max_new_tokens=min(PROBE_TOKENS, sampling.max_new_tokens))
    groups, seconds = sample_once(config, policy, probe, settings)
    generate_rate = sum(len(completion.token_ids) for group in groups for completion in group) / seconds
    batch = [completion for group in groups[:4] for completion in group]
    for ids, group in zip(probe, groups[:4], strict=False):
        for completion in group:
            completion.prompt_ids, completion.anchor_logprobs = ids, completion.logprobs
    loss = build_objective(Config()).loss  # Any objective will do: the time of the loss itself is negligible.
    learner = Learner(policy, config.optimizer, total_steps=1, temperature=sampling.temperature, loss=loss)
    _ = policy.packing  # compiled when it is first used, which a run does once
    start = time.perf_counter()
    learner.accumulate_gradient(batch)  # The weights do not change.
    update_rate = sum(completion.length for completion in batch) / (time.perf_counter() - start)
    learner.optimizer.zero_grad(set_to_none=True)
    prompt_mean = sum(map(len, prompt_ids)) / len(prompt_ids)
    generate_s = config.gate.sampling_factor * rollouts * sampling.max_new_tokens / generate_rate
    # A backward pass costs two forward passes.
    passes = config.optimizer.epochs + config.objective.needs_reference / 3
    update_s = passes * rollouts * (prompt_mean + sampling.max_new_tokens) / update_rate
    return Check(
        "ok",
        f"time: at most about {generate_s + update_s:,.0f} s per step, if every completion has "
        f"{sampling.max_new_tokens} tokens ({generate_s:,.0f} s sampling with {sampling.engine} at "
        f"{generate_rate:,.0f} tokens/s, {update_s:,.0f} s update at {update_rate:,.0f} tokens/s, both measured on "
        "short completions)",
    )


def _memory(policy: Policy, config: Config) -> Check:
    """Compare the estimate, which includes the weights already loaded, with the memory that the device has for it."""
    if policy.device.type == "cuda":
        free, size = torch.cuda.mem_get_info(policy.device)
        room = free + torch.cuda.memory_reserved(policy.device)
    else:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = estimate(policy, config, size)
    parts = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in vars(needed).items())
    text = f"memory: about {needed.peak / GIB:,.1f} GiB ({parts}) of {room / GIB:,.1f} GiB available"
    if needed.peak < room:
        return Check("ok", text)
    return Check("warn", f"{text}; {_remedy(policy, config, needed, room)}")


def _remedy(policy: Policy, config: Config, needed: Memory, room: float) -> str:
    """Return the setting to change so that less memory is needed."""
    if needed.states > room:
        return "set model.lora.r=16, or scale.shard=true on several GPUs"
    if needed.sampling > needed.update:
        return "lower sampling." + ("gpu_memory" if config.sampling.engine == "vllm" else "batch_size")
    if not uses_checkpointing(policy.causal_lm, config.optimizer.gradient_checkpointing, policy.device):
        return "set optimizer.gradient_checkpointing=true"
    return "lower optimizer.tokens_per_micro_batch"
