"""`pacedrl doctor`: what would go wrong with this configuration, found before money is spent."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.policy.chat_template import prompt_ids
from pacedrl.policy.loading import adapter_note, resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import sample
from pacedrl.policy.template_problems import template_problems
from pacedrl.policy.vllm.client import Lost, Server
from pacedrl.policy.vllm.weights import require_fit
from pacedrl.rollouts.engines import require_an_end, training_settings
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
from pacedrl.types import Completion, Prompt

SHOWN = 10
"""Offenders listed by each check."""
ATTACKED = 20
"""Prompts of each task that the verifier is tried on with completions that solve nothing."""
PROBE_TOKENS = 32
GIB = 2**30
ADAM_BYTES = 16
"""Bytes a trainable float32 parameter takes: weight, gradient and AdamW's two moments."""
ACTIVATION_BYTES = 70
"""Bytes of float32 activations a token, layer and hidden unit keep for the backward pass, a rough upper figure
(twice the 34 of half precision in arXiv 2205.05198, without attention scores)."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. A ``fail`` would stop or spoil a run; a ``warn`` deserves a look."""

    level: Literal["ok", "warn", "fail"]
    text: str


def examine(config: Config, console: Console | None = None) -> int:
    """Print the findings as they come; returns the number of failures."""
    console = console or Console()
    failures = 0
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    for finding in findings(config):
        console.print(f"[{styles[finding.level]}]{finding.level:>4}[/]  ", end="")
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
        failures += finding.level == "fail"
    console.print(f"{failures} problem{'s' * (failures != 1)} found." if failures else "Ready to train.")
    return failures


def findings(config: Config) -> Iterator[Finding]:
    """Every check in order; one that cannot go on without an earlier one ends the list."""
    try:
        require_trackers(config)
    except InputError as error:
        yield Finding("fail", str(error))
    try:
        train, held_out = load_tasks(config)
        policy = Policy.load(config.model, resolve_device(config.run.device))
    except InputError as error:
        yield Finding("fail", str(error))
        return
    tasks = [*train, *held_out]
    yield from _model(policy, config.model.name)
    yield from _ends(policy, tasks, config)
    yield from _servers(config)
    try:
        yield from _prompts(policy, tasks, config)
        encoded, token_ids = encode_tasks(policy, tasks, _dropping(config))
    except InputError as error:
        yield Finding("fail", str(error))
        return
    yield from _duplicates(train, held_out)
    yield from _recipe(config, encoded[: len(train)])
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        for task in tasks:
            try:
                yield from _gold(pool, task, config.verifier.check_gold)
                yield from _attacks(pool, task)
            except InputError as error:
                yield Finding("fail", str(error))
    yield from _cost(
        policy, [token_ids[prompt.key] for task in encoded[: len(train)] for prompt in task.prompts], config
    )


def _model(policy: Policy, name: str) -> Iterator[Finding]:
    total = sum(parameter.numel() for parameter in policy.model.parameters())
    trained = sum(parameter.numel() for parameter in policy.parameters())
    yield Finding(
        "ok",
        f"model: {type(policy.causal_lm).__name__}, {total / 1e6:,.1f} M parameters ({trained / 1e6:,.1f} M trained), "
        f"context {policy.context_length or 'not stated'}, on {policy.device}",
    )
    note = adapter_note(name)
    if note is not None:
        yield Finding("ok", note)
    if policy.decoding != "columns":
        apart = ", prompts of each length by themselves" if policy.decoding == "equal" else ""
        yield Finding(
            "ok",
            f"sampling: by transformers' generate with the model's own cache{apart}: slower than with one of keys and "
            "values alone",
        )


def _ends(policy: Policy, tasks: Sequence[Task], config: Config) -> Iterator[Finding]:
    """At which tokens and strings completions end, and whether the chat template's end of a turn is one of them."""
    try:
        require_an_end(config, policy)
    except InputError as error:
        yield Finding("fail", str(error))
        return
    ends = policy.ends(config.sampling.stop)
    named = [*(policy.decode([i]) for i in ends.token_ids), *ends.strings]
    shown = [repr(text) + " (the chat template's end of a turn)" * (text == policy.turn_end) for text in named]
    yield Finding("ok", f"completions end at {', '.join(shown)}, or after {config.sampling.max_new_tokens} tokens")
    chats = [task.name for task in tasks if any(not isinstance(prompt.content, str) for prompt in task.prompts)]
    if chats and policy.turn_end is None:
        yield Finding(
            "warn",
            f"task {chats[0]}: the chat template writes nothing at the end of the assistant's turn, so the model may "
            "not have learned to end one; if completions run on, name what follows an answer with sampling.stop",
        )


def _servers(config: Config) -> Iterator[Finding]:
    """Whether vLLM's servers answer, and were started as they must be."""
    tokens = config.sampling.max_prompt_tokens + config.sampling.max_new_tokens
    for url in config.sampling.servers:
        server = Server(url)
        try:
            workers = server.workers()
            require_fit(server, workers, tokens)
            server.version()
        except Lost as lost:
            yield Finding("fail", f"sampling.servers: {url} does not answer ({lost}); start it as docs/serving.md says")
        except InputError as error:
            yield Finding("fail", str(error))
        else:
            room = min(worker["max_model_len"] for worker in workers)
            devices = f"{len(workers)} × {workers[0]['device']}"
            yield Finding("ok", f"server {url}: {devices}, room for {room:,} tokens, {tokens:,} needed")


def _prompts(policy: Policy, tasks: Sequence[Task], config: Config) -> Iterator[Finding]:
    for task in tasks:
        lengths = [len(prompt_ids(policy.tokenizer, prompt, policy.vocabulary)) for prompt in task.prompts]
        limit = config.sampling.max_prompt_tokens
        overlong = [i for i, length in enumerate(lengths) if length > limit]
        summary = f"task {task.name}: {len(lengths):,} prompts of {min(lengths)} to {max(lengths)} tokens"
        if overlong:
            level: Literal["warn", "fail"] = "warn" if config.data.overlong == "drop" else "fail"
            listed = ", ".join(f"{shorten(task.prompts[i])} ({lengths[i]})" for i in overlong[:SHOWN])
            yield Finding(
                level, f"{summary}; {len(overlong)} longer than sampling.max_prompt_tokens = {limit}: {listed}"
            )
        else:
            yield Finding("ok", f"{summary}, verifier '{task.verifier}'")
        first = task.prompts[0]
        ids = prompt_ids(policy.tokenizer, first, policy.vocabulary)
        yield Finding("ok", f"task {task.name}: the model sees ({_kind(first)}) {policy.tokenizer.decode(ids)!r}")
        bos = policy.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            yield Finding("warn", f"task {task.name}: prompts start with two {policy.tokenizer.bos_token!r} tokens")
        for problem in template_problems(policy.tokenizer, task.prompts, config.sampling.max_new_tokens):
            yield Finding("warn", f"task {task.name}: {problem}")


def _kind(prompt: Prompt) -> str:
    if isinstance(prompt.content, str):
        return "plain text"
    continued = prompt.content[-1]["role"] == "assistant"
    return "chat template, continuing the assistant's message" if continued else "chat template"


def _duplicates(train: Sequence[Task], held_out: Sequence[Task]) -> Iterator[Finding]:
    for task in [*train, *held_out]:
        answers = defaultdict(set)
        for prompt in task.prompts:
            answers[_asked(prompt)].add(str(prompt.answer))
        clashing = [next(p for p in task.prompts if _asked(p) == text) for text, a in answers.items() if len(a) > 1]
        if clashing:
            listed = ", ".join(map(shorten, clashing[:SHOWN]))
            yield Finding("warn", f"task {task.name}: {len(clashing)} prompts occur with differing answers: {listed}")
    seen = {prompt.key for task in train for prompt in task.prompts}
    for task in held_out:
        leaked = sum(prompt.key in seen for prompt in task.prompts)
        if leaked:
            yield Finding(
                "warn", f"task {task.name}: {leaked} of its {len(task.prompts)} held-out prompts are trained on"
            )


def _asked(prompt: Prompt) -> str:
    return str((prompt.content, prompt.template_options))


def _recipe(config: Config, train: Sequence[Task]) -> Iterator[Finding]:
    """What the recipe asks of the data."""
    try:
        require_enough_prompts(config, len(unique_prompts(train)))
        require_oracle_tasks(config, train)
    except InputError as error:
        yield Finding("fail", str(error))


def _gold(pool: VerifierPool, task: Task, check: bool) -> Iterator[Finding]:
    if not check:
        yield Finding("ok", f"task {task.name}: gold answers were not tried, as verifier.check_gold is false")
        return
    tried, offenders = rejected_gold(pool, task)
    if not tried:
        yield Finding("warn", f"task {task.name}: no row states a gold answer, so the verifier cannot be checked")
    elif not offenders:
        yield Finding("ok", f"task {task.name}: the verifier accepts all {tried:,} gold answers")
    else:
        level: Literal["warn", "fail"] = "fail" if len(offenders) == tried else "warn"
        yield Finding(level, f"task {task.name}: the verifier rejects {len(offenders):,} of {tried:,} gold answers:")
        same_reason = len({reason for _, reason in offenders}) == 1
        for prompt, reason in offenders[: 1 if same_reason else SHOWN]:
            each = "each time, e.g. " if same_reason and len(offenders) > 1 else ""
            yield Finding(level, f"    {each}{shorten(prompt)} answer {str(prompt.answer)[:60]!r}: {reason}")


def _attacks(pool: VerifierPool, task: Task) -> Iterator[Finding]:
    """What the verifier rewards although nothing was solved. Raises InputError for a reward outside [0, 1]."""
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
        yield Finding(
            "warn", f"task {task.name}: the verifier rewards completions that solve nothing: {', '.join(found)}"
        )
    else:
        yield Finding("ok", f"task {task.name}: the verifier rewards none of {len(ATTACKS)} ways to solve nothing")


def _cost(policy: Policy, prompt_ids: Sequence[Sequence[int]], config: Config) -> Iterator[Finding]:
    sampling = config.sampling
    rollouts = sampling.prompts_per_step * sampling.group_size
    probe = sorted(prompt_ids, key=len)[len(prompt_ids) // 2 :][: max(1, sampling.batch_size // sampling.group_size)]
    tokens = min(PROBE_TOKENS, sampling.max_new_tokens)
    start = time.perf_counter()
    settings = replace(training_settings(config), max_new_tokens=tokens)
    groups = list(sample(policy, probe, settings, seeds=range(len(probe))))
    generated = sum(len(c.token_ids) for _, completions in groups for c in completions)
    generate_rate = generated / (time.perf_counter() - start)
    batch = [completion for _, completions in groups[:4] for completion in completions]
    for i, completions in groups[:4]:
        for completion in completions:
            completion.prompt_ids, completion.anchor_logprobs = probe[i], completion.logprobs
    update_rate = _update_rate(policy, batch, config)
    prompt_mean = sum(map(len, prompt_ids)) / len(prompt_ids)
    generate_s = config.gate.sampling_factor * rollouts * sampling.max_new_tokens / generate_rate
    passes = config.optimizer.epochs + config.objective.needs_reference / 3  # a backward pass costs two forward ones
    update_s = passes * rollouts * (prompt_mean + sampling.max_new_tokens) / update_rate
    yield Finding(
        "ok",
        f"time: at most about {generate_s + update_s:,.0f} s a step if every completion runs to "
        f"{sampling.max_new_tokens} tokens ({generate_s:,.0f} s sampling at {generate_rate:,.0f} tokens/s, "
        f"{update_s:,.0f} s update at {update_rate:,.0f} tokens/s, both measured on short completions)",
    )
    needed = memory_estimate(policy, config)
    available = _available_memory(policy.device)
    level: Literal["ok", "warn"] = "ok" if needed < available else "warn"
    yield Finding(level, f"memory: about {needed / GIB:,.1f} GiB at most of {available / GIB:,.1f} GiB available")


def _update_rate(policy: Policy, batch: Sequence[Completion], config: Config) -> float:
    """Tokens a second of forward and backward; the weights stay as they are."""
    loss = build_objective(Config()).loss  # beside forward and backward the cost of any loss is negligible
    learner = Learner(policy, config.optimizer, total_steps=1, temperature=config.sampling.temperature, loss=loss)
    start = time.perf_counter()
    learner.accumulate_gradient(batch)
    rate = sum(completion.length for completion in batch) / (time.perf_counter() - start)
    learner.optimizer.zero_grad(set_to_none=True)
    return rate


def memory_estimate(policy: Policy, config: Config) -> float:
    """Bytes at the larger of sampling (weights, cache) and update (weights, gradients, moments, activations)."""
    text = policy.causal_lm.config.get_text_config()
    frozen = sum(parameter.numel() for parameter in policy.model.parameters() if not parameter.requires_grad)
    reference = 4 * sum(parameter.numel() for parameter in policy.model.parameters())
    frozen_bytes = 4 * frozen + (reference if config.objective.needs_reference and config.model.lora is None else 0)
    states = frozen_bytes + ADAM_BYTES * sum(parameter.numel() for parameter in policy.parameters())
    element = 2 if policy.device.type == "cuda" else 4
    context = config.sampling.max_prompt_tokens + config.sampling.max_new_tokens
    rows = min(config.sampling.batch_size, config.sampling.prompts_per_step * config.sampling.group_size)
    cache = sum(map(_cached_elements, _layer_configs(text))) * element * rows * context
    layers = 1 if config.optimizer.gradient_checkpointing else text.num_hidden_layers
    tokens = max(config.optimizer.tokens_per_micro_batch, context)
    activations = ACTIVATION_BYTES * tokens * text.hidden_size * layers * element / 4
    return float(states + max(cache, activations))


def _layer_configs(text: Any) -> list[Any]:
    """The configuration of each layer, in models whose layers have their own as in those that have one for all."""
    own = getattr(text, "per_layer_config", None)
    return list(own) if own else [text] * text.num_hidden_layers


def _cached_elements(layer: Any) -> int:
    """Keys and values that a layer keeps of a token; none in a layer without attention."""
    attention_heads = getattr(layer, "num_attention_heads", None)
    if not attention_heads:
        return 0
    heads = getattr(layer, "num_key_value_heads", None) or attention_heads
    width = getattr(layer, "head_dim", None) or layer.hidden_size // attention_heads
    return int(2 * heads * width)


def _available_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _dropping(config: Config) -> Config:
    """The same configuration with overlong prompts dropped: they were reported already."""
    return config.model_copy(update={"data": config.data.model_copy(update={"overlong": "drop"})})
