"""Measurements of speed: each is a function of the device that returns its figures and whether an aim is reached.

On a CPU they run with a small model, to show that they work; their figures mean nothing there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from shapes import SHAPES, Mix, learner, mix, random_batch, random_policy, seconds, synchronise
from torch.profiler import ProfilerActivity, profile

from pacedrl.policy.attention import exclude_cudnn, shared_prefix
from pacedrl.policy.flex import flex_row
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

Figures = dict[str, Any]
PROMPTS, GROUP = 32, 8
NEW_TOKENS = 32


def machine(device: str) -> Figures:
    """Measure the device's own limits: bfloat16 matrix multiplication and memory bandwidth."""
    rate, bandwidth = _limits(device)
    return {"bf16_tflops": round(rate / 1e12, 1), "bandwidth_tb_s": round(bandwidth / 1e12, 2), "ok": True}


def decode(device: str) -> Figures:
    """Decode 256 rows of a 1.5B model after prompts of growing length. The aim is 3 times the least time or less.

    The least time is that of reading all weights in bfloat16, and the keys and values, once per token.
    """
    shape, lengths = ("1.5B", (224, 992, 2016, 4064)) if device == "cuda" else ("small", (8, 24))
    policy = random_policy(shape, device)
    policy.eos_ids = [-1]  # no token ends a completion
    _, bandwidth = _limits(device)
    found: Figures = {}
    for length in lengths:
        batch = random_batch([(length, [2])] * PROMPTS, SHAPES[shape]["vocabulary"])
        prompts = [completion.prompt_ids for completion in batch]
        times = {count: _sampling_seconds(policy, prompts, count, device) for count in (2, 2, 2 + NEW_TOKENS)}
        token_s = (times[2 + NEW_TOKENS] - times[2]) / NEW_TOKENS
        least = _bytes_per_token(shape, length + NEW_TOKENS // 2) / bandwidth
        found[f"{length + NEW_TOKENS} columns"] = {
            "tokens_s": round(PROMPTS * GROUP / token_s),
            "ms_per_token": round(token_s * 1e3, 2),
            "times_the_least": round(token_s / least, 2),
            "prefill_s": round(times[2] - 2 * token_s, 3),
        }
    return found | {"ok": all(0 < row["times_the_least"] <= 3 for row in found.values())}


def remedies(device: str) -> Figures:
    """Decode with none of what makes decoding fast on a GPU, with each alone, and with all: tokens per second."""
    shape, length = ("1.5B", 992) if device == "cuda" else ("small", 8)
    policy = random_policy(shape, device)
    policy.eos_ids = [-1]
    batch = random_batch([(length, [2])] * PROMPTS, SHAPES[shape]["vocabulary"])
    prompts = [completion.prompt_ids for completion in batch]
    without: dict[str, Callable[[], Any]] = {
        "bfloat16 copies": lambda: patch("pacedrl.policy.sampler.half_weights", lambda *_: nullcontext()),
        "shared prompts": lambda: patch.object(policy, "shares_prompts", False),
        "rounded columns": lambda: _patched(("cache", "shared_prompts"), "column_step", lambda _: 1),
    }
    found: Figures = {}
    for kept in ("none", *without, "all"):
        with ExitStack() as stack:
            for name, change in without.items():
                if kept not in (name, "all"):
                    stack.enter_context(change())
            times = {count: _sampling_seconds(policy, prompts, count, device) for count in (2, 2, 2 + NEW_TOKENS)}
        found[kept] = round(PROMPTS * GROUP * NEW_TOKENS / (times[2 + NEW_TOKENS] - times[2]))
    return found | {"ok": found["all"] >= max(rate for name, rate in found.items() if name != "all")}


@contextmanager
def _patched(modules: tuple[str, ...], name: str, function: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch(f"pacedrl.policy.{module}.{name}", function))
        yield


def generate_batch(device: str) -> Figures:
    """Decode the same rows with ours and with transformers' continuous batching in bfloat16, with its CUDA graphs."""
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    on_gpu = device == "cuda"
    shape, length, new_tokens, memory = ("1.5B", 992, 128, 0.5) if on_gpu else ("small", 8, 4, 0.01)
    policy = random_policy(shape, device)
    policy.eos_ids = [-1]
    prompts = [c.prompt_ids for c in random_batch([(length, [2])] * PROMPTS, SHAPES[shape]["vocabulary"])]
    ours = [_sampling_seconds(policy, prompts, new_tokens, device) for _ in range(2)][-1]
    found = {"ours": round(PROMPTS * GROUP * new_tokens / ours)}
    model = policy.causal_lm.bfloat16()
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=True, top_k=0, num_return_sequences=GROUP, eos_token_id=-1
    )
    batching = ContinuousBatchingConfig(return_logprobs=True, use_cuda_graph=on_gpu, max_memory_percent=memory, seed=0)
    times = []
    for _ in range(2):  # the first call captures graphs, which the manager keeps for the second
        start = time.perf_counter()
        done = model.generate_batch(prompts, settings, batching, persistent_manager=True)
        synchronise(device)
        times.append(time.perf_counter() - start)
    # If its thread fails, it returns what there is. Some versions return one completion of each group alone.
    if len(done) < PROMPTS or any(len(one.generated_tokens) != new_tokens for one in done.values()):
        return found | {"ok": False, "error": f"generate_batch finished {len(done)} requests"}
    found["transformers"] = round(PROMPTS * GROUP * new_tokens / times[-1])
    return found | {"ok": found["ours"] >= found["transformers"]}


def attention(device: str) -> Figures:
    """Time attention alone, forward and backward, over packed rows: padded with a mask, and with FlexAttention."""
    if device == "cuda":
        exclude_cudnn()  # as in training
    heads, key_values, size = (12, 2, 128) if device == "cuda" else (4, 2, 16)
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    ways: dict[str, Any] = {"padded": shared_prefix} | ({"flex": flex_row} if device == "cuda" else {})
    found: Figures = {}
    for name, batch in _batches(device).items():
        completions = random_batch(batch, 259)
        for way, pack in ways.items():
            row = pack([c.prompt_ids for c in completions], [c.token_ids for c in completions], torch.device(device))
            states = [
                torch.randn(1, count, len(row.token_N), size, device=device, dtype=kind, requires_grad=True)
                for count in (heads, key_values, key_values)
            ]
            passed = seconds(lambda row=row, states=states: row.attend(*states, None, 0).sum().backward(), device)
            found[f"{name} {way}"] = round(passed * 1e3, 2)
    return found | {"ok": device != "cuda" or all(found[f"{n} flex"] < found[f"{n} padded"] for n in _batches(device))}


def update(device: str) -> Figures:
    """Measure an update of a 1.5B model with micro-batches of 4k, 16k and 32k tokens. The aim is 40% of the peak."""
    shape = "1.5B" if device == "cuda" else "small"
    policy = random_policy(shape, device)
    rate, _ = _limits(device)
    found: Figures = {}
    for name, batch in _batches(device).items():
        completions = random_batch(batch, SHAPES[shape]["vocabulary"])
        tokens = sum(length + sum(lengths) for length, lengths in batch)
        for checkpointing in (True, False):
            own = learner(policy, tokens_per_micro_batch=tokens, gradient_checkpointing=checkpointing)
            kind = "checkpointed" if checkpointing else "plain"
            passed = seconds(lambda own=own, batch=completions: own.accumulate_gradient(batch), device)
            share = 6 * _parameters(shape) * tokens / passed / rate
            found[f"{name} {kind}"] = {
                "tokens_s": round(tokens / passed),
                "share_of_peak": round(share, 3),
                "halved": own.token_budget < tokens,  # it did not fit into memory at once
            }
    return found | {"ok": any(row["share_of_peak"] >= 0.4 for row in found.values())}


def shares(device: str) -> Figures:
    """Say which operations the time of an update and of decoding goes to, by their own time on the device."""
    shape = "1.5B" if device == "cuda" else "small"
    policy = random_policy(shape, device)
    policy.eos_ids = [-1]
    batch = random_batch(_batches(device)["4k"], SHAPES[shape]["vocabulary"])
    own = learner(policy, tokens_per_micro_batch=10**6, gradient_checkpointing=True)
    prompts = [completion.prompt_ids for completion in batch[:: len(batch) // 2]]
    work = {
        "update": lambda: own.accumulate_gradient(batch),
        "decode": lambda: _sampling_seconds(policy, prompts, NEW_TOKENS, device),
    }
    return {name: _largest_shares(call, device) for name, call in work.items()} | {"ok": True}


def step(device: str) -> Figures:
    """Measure the sampling and the update of a whole step: 16 prompts × 8 completions of 1,024 tokens."""
    shape, prompts, new_tokens = ("1.5B", 16, 1024) if device == "cuda" else ("small", 2, 8)
    policy = random_policy(shape, device)
    policy.eos_ids = [-1]
    batch = random_batch([(256, [2])] * prompts, SHAPES[shape]["vocabulary"])
    prompts_ids = [completion.prompt_ids for completion in batch]
    sampling_s = [_sampling_seconds(policy, prompts_ids, count, device) for count in (2, new_tokens)][-1]
    completions = random_batch([(256, [new_tokens] * GROUP)] * prompts, SHAPES[shape]["vocabulary"])
    own = learner(policy, gradient_checkpointing=True)
    update_s = seconds(lambda: own.update(completions, 0), device, repeats=1)
    return {"sampling_s": round(sampling_s, 2), "update_s": round(update_s, 2), "ok": True}


def _batches(device: str) -> dict[str, Mix]:
    if device != "cuda":
        return {"4k": mix(2, 8, 4, "uniform", 16)}
    return {
        "4k": mix(1, 256, 8, "uniform", 1024, seed=1),
        "16k": mix(4, 256, 8, "uniform", 1024, seed=1),
        "32k": mix(8, 256, 8, "uniform", 1024, seed=1),
    }


def _sampling_seconds(policy: Policy, prompts: list[Any], new_tokens: int, device: str) -> float:
    settings = SamplingSettings(group_size=GROUP, max_new_tokens=new_tokens, batch_size=len(prompts) * GROUP)
    start = time.perf_counter()
    for _ in sample(policy, prompts, settings, seeds=range(len(prompts))):
        pass
    synchronise(device)
    return time.perf_counter() - start


def _limits(device: str) -> tuple[float, float]:
    """Return FLOP/s of bfloat16 matrix multiplication and bytes/s of copying, read and written bytes together."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * size**3 / seconds(lambda: a @ b, device, repeats=9)
    source = torch.empty(size**2 * 32, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds(lambda: target.copy_(source), device, repeats=9)
    return rate, bandwidth


def _parameters(shape: str) -> int:
    """Number of weights that a token is multiplied with, the output layer included."""
    size = SHAPES[shape]
    head = size["hidden_size"] // size["heads"]
    attention = size["hidden_size"] * head * (2 * size["heads"] + 2 * size["key_values"])
    layer = attention + 3 * size["hidden_size"] * size["mlp"]
    return size["layers"] * layer + size["hidden_size"] * size["vocabulary"]


def _bytes_per_token(shape: str, columns: int) -> int:
    """Bytes read for one more token of every row: all weights, the prompts once a group, and the rows' own columns."""
    size = SHAPES[shape]
    one = 2 * 2 * size["layers"] * size["key_values"] * (size["hidden_size"] // size["heads"])
    return 2 * _parameters(shape) + one * (PROMPTS * columns + PROMPTS * GROUP * NEW_TOKENS // 2)


def _largest_shares(work: Callable[[], Any], device: str, count: int = 8) -> dict[str, float]:
    work()
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as measured:
        work()
        synchronise(device)
    times: Counter[str] = Counter()
    for event in measured.key_averages():
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        times[event.key[:60]] += own
    total = sum(times.values()) or 1
    return {name: round(own / total, 3) for name, own in times.most_common(count)}


CHECKS: dict[str, tuple[Callable[[str], Figures], float]] = {
    "machine": (machine, 30),
    "decode": (decode, 100),
    "remedies": (remedies, 80),
    "generate_batch": (generate_batch, 60),
    "attention": (attention, 50),
    "update": (update, 100),
    "shares": (shares, 50),
    "step": (step, 70),
}
"""Measurement → its function and its time limit in seconds."""
