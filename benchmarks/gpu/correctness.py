"""Checks of correctness: each is a function of the device that returns its figures and whether they are right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from shapes import learner, mix, needs_gpu, random_batch, random_policy
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from pacedrl.config import Config, ModelConfig
from pacedrl.distributed.sharding import whole
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.memory import estimate
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, Any]
PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "vllm", "datasets", "math-verify")
ON_DEVICE = (
    "tests/policy/test_passes.py",
    "tests/method/test_devices.py",
    "tests/training/test_learner.py",
    "tests/training/test_out_of_memory.py",
    "tests/policy/test_policy.py",
    "tests/policy/test_attention.py",
    "tests/policy/test_ends.py",
    "tests/policy/test_sampler.py",
)
"""Tests that compute on the device that PACEDRL_TEST_DEVICE names."""
TINY: dict[str, Any] = {"sampling.prompts_per_step": 8, "sampling.group_size": 4, "verifier.check_gold": False}
"""Changes to examples/demo.yaml for runs of a few steps."""


class TrainingFailed(RuntimeError):
    """A training command ended with an error. The message is its output, whose last lines name the cause."""


def versions(device: str) -> Figures:
    """Report versions and the device, and whether cuDNN's attention is off."""
    found: Figures = {name: _version(name) for name in PACKAGES}
    if device == "cuda":
        Policy.load(ModelConfig(), resolve_device(device))  # sets the backends
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "device": torch.cuda.get_device_name(),
            "capability": torch.cuda.get_device_capability(),
            "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1),
            "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        }
    return found | {"ok": not found.get("cudnn_attention", False)}


def nan(device: str) -> Figures:
    """Count NaN gradients of masked attention with cuDNN's backend and with those that training uses."""
    if needed := needs_gpu(device):
        return needed
    Policy.load(ModelConfig(), resolve_device(device))
    found = {"with_cudnn": {}, "in_training": {}}
    for length in (64, 192, 320, 576, 1088):
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            found["with_cudnn"][length] = _nan_gradients(length)
        found["in_training"][length] = _nan_gradients(length)
    return found | {"ok": not any(found["in_training"].values())}


def _nan_gradients(length: int) -> int | str:
    """Return the number of NaN in the gradients of attention whose rows have a very negative logsumexp."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(4, 8, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    query, key = (query.abs() * 20).requires_grad_(), (-key.abs() * 20).requires_grad_()
    value.requires_grad_()
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
    try:
        scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None]).float().sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0][:120]
    return sum(int(tensor.grad.isnan().sum()) for tensor in (query, key, value) if tensor.grad is not None)


def tests(device: str) -> Figures:
    """Run the tests whose policies and tensors are on the device that PACEDRL_TEST_DEVICE names."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(
        [*command, *(ON_DEVICE if device == "cuda" else ON_DEVICE[:1])],
        env=os.environ | {"PACEDRL_TEST_DEVICE": device}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return counts | {"failures": failures[:20], "ok": done.returncode == 0}


def packed(device: str) -> Figures:
    """Compare log-probabilities and gradients of a packed batch with those of its sequences alone, in float32."""
    batch = random_batch(mix(4, 40, 4, "uniform", 90), 259)
    one = random_policy("small", "cpu")
    other = random_policy("small", device)
    other.model.load_state_dict(one.model.state_dict())
    expected, gradient = _one_by_one(one, batch)
    logprobs_BT, _, mask_BT = other.logprobs([c.prompt_ids for c in batch], [c.token_ids for c in batch])
    logprobs_BT[mask_BT].sum().backward()
    gap = (logprobs_BT[mask_BT].detach().cpu() - expected).abs()
    cosine = float(cosine_similarity(_gradient(other), gradient, dim=0))
    found = {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max()), "gradient_cosine": cosine}
    return found | {"ok": cosine > 0.999 and found["logprob_gap_mean"] < 1e-2}


def _one_by_one(policy: Policy, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities and the gradient of their sum from plain forward passes of single sequences."""
    found = []
    for c in batch:
        ids = torch.tensor([[*c.prompt_ids, *c.token_ids]])
        logits_LV = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, len(c.prompt_ids) - 1 : -1].float()
        found.append(torch.log_softmax(logits_LV, dim=-1)[range(len(c.token_ids)), c.token_ids])
    expected = torch.cat(found)
    expected.sum().backward()
    return expected.detach(), _gradient(policy)


def _gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([whole(p.grad).flatten().float().cpu() for p in policy.parameters() if p.grad is not None])


def head(device: str) -> Figures:
    """Measure the gap between the log-probabilities of sampler and trainer, in bfloat16 with the same weights."""
    policy = Policy.load(ModelConfig(), resolve_device(device))
    policy.mixed_precision = True
    prompts = [policy.encode(text) for text in ("sort:312=", "copy:12345=", "add:1234+567=", "reverse:4567=") * 8]
    settings = SamplingSettings(group_size=4, max_new_tokens=16)
    groups = dict(sample(policy, prompts, settings, seeds=range(len(prompts))))
    drawn = [(prompts[i], completion) for i, group in groups.items() for completion in group]
    with torch.no_grad():
        logprobs_BT, _, mask_BT = policy.logprobs([p for p, _ in drawn], [c.token_ids for _, c in drawn])
    sampled = torch.tensor([value for _, c in drawn for value in c.logprobs])
    gap = (logprobs_BT[mask_BT].cpu() - sampled).abs()
    return {"gap_mean": float(gap.mean()), "gap_max": float(gap.max()), "ok": float(gap.mean()) < 2e-3}


def demo(device: str) -> Figures:
    """Train the demo for 50 steps on the CPU and on the device, and compare what was learned."""
    steps = 50 if device == "cuda" else 1
    with tempfile.TemporaryDirectory() as name:
        found: Figures = {}
        for where in dict.fromkeys(("cpu", device)):
            rows = _train(Path(name) / where, where, {"run.steps": steps, "eval.every": steps})
            found[where] = {
                "pass@1": round(sum(rows[-1].values()) / len(rows[-1]), 3),
                "seconds": round(sum(row["time/step"] for row in rows[:-1]), 1),
            }
    return found | {"ok": abs(found["cpu"]["pass@1"] - found[device]["pass@1"]) < 0.1}


def resume(device: str) -> Figures:
    """Compare 6 steps with 3 steps and a resume in the deterministic mode, bit for bit."""
    changes = TINY | {"run.deterministic": True, "optimizer.tokens_per_micro_batch": 512, "data.eval": []}
    with tempfile.TemporaryDirectory() as name:
        whole, parts = Path(name) / "whole", Path(name) / "parts"
        expected = _train(whole, device, changes | {"run.steps": 6})[:-1]
        _train(parts, device, changes | {"run.steps": 3})
        resumed = _train(parts, device, changes | {"run.steps": 6})[:-1]
    same = [_untimed(row) for row in expected] == [_untimed(row) for row in resumed]
    return {"steps": len(resumed), "ok": len(resumed) == 6 and same}


def _untimed(row: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if not name.startswith("time")})


def memory(device: str) -> Figures:
    """Compare the peak memory of an update with doctor's estimate, for four mixes of lengths."""
    if needed := needs_gpu(device):
        return needed
    policy = random_policy("0.5B", device)
    found: Figures = {}
    for name, batch in {
        "even": mix(4, 256, 8, "even", 1024),
        "uniform": mix(4, 256, 8, "uniform", 1024),
        "skewed": mix(8, 256, 8, "skewed", 2048),
        "one long": mix(1, 1024, 2, "even", 8192),
    }.items():
        longest = max(max(lengths) for _, lengths in batch)
        changes = {"sampling": {"max_prompt_tokens": batch[0][0], "max_new_tokens": longest, "batch_size": 1}}
        config = Config.model_validate({"recipe": "grpo"} | changes)
        own = learner(policy)
        own.update(random_batch(mix(1, 64, 2, "even", 64), 151_936), 0)  # makes the optimiser's state
        torch.cuda.reset_peak_memory_stats()
        own.update(random_batch(batch, 151_936), 0)
        peak, expected = torch.cuda.max_memory_allocated(), estimate(policy, config)
        expected = expected.states + expected.update
        found[name] = {"peak_gib": round(peak / 2**30, 2), "estimate_gib": round(expected / 2**30, 2)}
        found[name]["ratio"] = round(expected / peak, 2)
        del own
        torch.cuda.empty_cache()
    return found | {"ok": 0.8 < found["even"]["ratio"] < 1.25}


def out_of_memory(device: str) -> Figures:
    """Give the update less memory than its micro-batch needs: it must use smaller ones and finish."""
    if needed := needs_gpu(device):
        return needed
    policy = random_policy("0.5B", device)
    own = learner(policy, tokens_per_micro_batch=10**6)
    own.update(random_batch(mix(1, 64, 2, "even", 64), 151_936), 0)  # makes the optimiser's state
    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated() + 12 * 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.mem_get_info()[1]))
    update = own.update(random_batch(mix(16, 256, 8, "even", 1024), 151_936), 0)
    halved = own.token_budget < 10**6
    return {"trained": update.trained, "budget": own.token_budget, "ok": update.trained == 128 and halved}


def fsdp(device: str) -> Figures:
    """Compare a policy sharded by FSDP2 (over NCCL on a GPU, one process) with one that is not."""
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as name:
        dist.init_process_group(backend, init_method=f"file://{name}/store", rank=0, world_size=1)
        batch = random_batch(mix(4, 40, 4, "uniform", 90), 259)
        logprobs, gradients = [], []
        for sharded in (False, True):
            policy = Policy.load(ModelConfig(), resolve_device(device))  # its normalisations are not all ones
            if sharded:
                policy.shard()
            logprobs_BT, _, mask_BT = policy.logprobs([c.prompt_ids for c in batch], [c.token_ids for c in batch])
            logprobs_BT[mask_BT].sum().backward()
            logprobs.append(logprobs_BT[mask_BT].detach())
            gradients.append(_gradient(policy))
        dist.destroy_process_group()
    cosine, gap = float(cosine_similarity(*gradients, dim=0)), float((logprobs[1] - logprobs[0]).abs().mean())
    return {"gradient_cosine": cosine, "logprob_gap_mean": gap, "ok": cosine > 0.999 and gap < 1e-4}


def lora(device: str) -> Figures:
    """Train an adapter."""
    return _command(device, {"model.lora": {"r": 4}})


def checkpointed(device: str) -> Figures:
    """Train with activation checkpointing."""
    return _command(device, {"optimizer.gradient_checkpointing": True})


def ahead(device: str) -> Figures:
    """Train while the next step's completions are sampled."""
    return _command(device, {"sampling.ahead": True})


def _command(device: str, changes: dict[str, Any]) -> Figures:
    """Train three steps in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        rows = _train(Path(name) / "run", device, TINY | changes | {"run.steps": 3})[:-1]
        gaps = [row["mismatch/logprob_mean"] for row in rows]
        skipped = sum(row.get("optim/skipped", 0) for row in rows)
        return {"steps": len(rows), "mismatch": gaps, "skipped": skipped, "ok": len(rows) == 3 and not skipped}


def _train(folder: Path, device: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the demo with changes; return the rows of metrics.jsonl, and as the last one held-out pass@1 by task.

    Raises TrainingFailed with what the command wrote.
    """
    tree = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    tree["run"] |= {"dir": str(folder), "device": device}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tree))
    settings = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PACEDRL_CACHE": str(folder.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "pacedrl.cli", "train", str(path), *settings],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise TrainingFailed(done.stderr.strip() or done.stdout.strip())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = folder / "eval.jsonl"
    last = json.loads((evaluated.read_text().splitlines() or ["{}"])[-1]) if evaluated.exists() else {}
    return [*rows, {name: value for name, value in last.items() if name.endswith("/pass@1")}]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


CHECKS: dict[str, tuple[Callable[[str], Figures], float]] = {
    "versions": (versions, 40),
    "nan": (nan, 40),
    "packed": (packed, 90),
    "head": (head, 60),
    "memory": (memory, 90),
    "out_of_memory": (out_of_memory, 60),
    "fsdp": (fsdp, 60),
    "lora": (lora, 70),
    "checkpointed": (checkpointed, 70),
    "ahead": (ahead, 70),
    "resume": (resume, 150),
    "demo": (demo, 120),
    "tests": (tests, 210),
}
"""Check → its function and its time limit in seconds, the quick ones first."""
