"""Simulate how a step's time falls with the number of devices, and check the formula against real runs.

    python benchmarks/scaling.py                  # the table for assumed GPUs
    python benchmarks/scaling.py --measure        # measured costs, one process per core; predictions beside real steps
    python benchmarks/scaling.py --prompts 1024   # a larger step

A step of P prompts × G completions of lengths L_i on N devices, each of which gets the same number of completions,
takes

    generate(n)  = max over devices of Σ_t (decode + row · completions still being decoded at token t)
    update(n)    = fixed + token · (tokens of the busiest device) + 2 · weights · (n − 1)/n / bandwidth
    colocated:     T(N) = generate(N) + update(N) + driver
    served, ahead: T(N) = max(generate(S), update(N − S)) + weights / bandwidth + driver, with the best S
    driver       = scheduler + exchange · P · G      not divided: it bounds the speed-up by T(1)/driver

The longest completion costs ``decode · max L`` on any number of devices; it and the driver limit scaling. Efficiency is
T(1) / (N · T(N)) with the colocated T(1).

The costs of GPUs are ASSUMED, from data sheets and common experience (see `ASSUMED`); no GPU was available. --measure
shows that the formula predicts real steps of one and two processes, on a random model of 10M parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GROUP_SIZE = 8
DEVICES = tuple(2**i for i in range(11))


@dataclass(frozen=True)
class Costs:
    """Costs in seconds, bytes and bytes per second."""

    decode: float
    """Cost of a decoding iteration for any batch size, because the weights are read once."""
    row: float
    """Cost that each completion adds to a decoding iteration."""
    token: float
    """Cost of one token's forward and backward pass."""
    fixed: float
    """Cost of the optimiser step."""
    weights: float
    bandwidth: float
    exchange: float
    """Cost of a completion on rank 0, which gathers, broadcasts and logs it."""
    scheduler: float
    """Cost of select, replay and observe in a step."""


@dataclass(frozen=True)
class Step:
    generate: float
    update: float
    driver: float
    total: float


ASSUMED = {
    # 80 GB GPUs, 3.35 TB/s of memory, 40% of 990 TFLOP/s in the update (6 FLOP per parameter and token, 8 with
    # checkpointing), 20 µs of cache and sampling per row; 100 GB/s between devices; pickling a completion: 0.2 ms.
    "1.5B": Costs(3e-3, 2e-5, 6 * 1.5e9 / 4e14, 0.05, 6e9, 1e11, 2e-4, 0.5),
    "7B": Costs(8e-3, 4e-5, 8 * 7.6e9 / 4e14, 0.2, 3e10, 1e11, 2e-4, 0.5),
}


def lengths(prompts: int, mean: float, longest: int) -> np.ndarray:
    """Draw lengths of completions, [P·G], log-normal and cut off at ``longest``."""
    draws = np.random.default_rng(0).lognormal(np.log(mean) - 0.32, 0.8, prompts * GROUP_SIZE)
    return np.minimum(np.ceil(draws), longest)


def generate(costs: Costs, length_N: np.ndarray, devices: int) -> float:
    """Return the seconds of sampling on the slowest device."""
    return max(
        costs.decode * float(part.max()) + costs.row * float(part.sum())
        for part in np.array_split(length_N, devices)
        if len(part)
    )


def update(costs: Costs, length_N: np.ndarray, prompt_tokens: int, devices: int) -> float:
    """Return the seconds of an update. Completions share prompts; sequences are divided by tokens, about equally."""
    tokens = float(length_N.sum()) + prompt_tokens * len(length_N) / GROUP_SIZE
    longest = float(length_N.max()) + prompt_tokens
    share = max(tokens / devices, longest)
    return costs.fixed + costs.token * share + 2 * costs.weights * (devices - 1) / devices / costs.bandwidth


def colocated(costs: Costs, length_N: np.ndarray, prompt_tokens: int, devices: int) -> Step:
    made, learned = generate(costs, length_N, devices), update(costs, length_N, prompt_tokens, devices)
    driver = costs.scheduler + costs.exchange * len(length_N)
    return Step(made, learned, driver, made + learned + driver)


def served(costs: Costs, length_N: np.ndarray, prompt_tokens: int, devices: int) -> Step:
    """Return the best split of the devices into samplers and trainers; sampling is a step ahead of the update."""
    best: Step | None = None
    driver = costs.scheduler + costs.exchange * len(length_N)
    for share in np.linspace(0.1, 0.9, 17):
        sampling = min(max(1, round(devices * share)), devices - 1)
        made = generate(costs, length_N, sampling)
        learned = update(costs, length_N, prompt_tokens, devices - sampling)
        total = max(made, learned) + costs.weights / costs.bandwidth + driver
        if best is None or total < best.total:
            best = Step(made, learned, driver, total)
    assert best is not None
    return best


def table(name: str, costs: Costs, prompts: int, mean: float, longest: int, prompt_tokens: int) -> None:
    length_N = lengths(prompts, mean, longest)
    alone = colocated(costs, length_N, prompt_tokens, 1).total
    print(f"\n{name}: {prompts} prompts × {GROUP_SIZE}, {length_N.mean():.0f} tokens on average, at most {longest}")
    print(f"{'devices':>8}{'colocated':>12}{'efficiency':>12}{'driver':>9}{'served':>12}{'efficiency':>12}")
    for devices in DEVICES:
        one = colocated(costs, length_N, prompt_tokens, devices)
        line = f"{devices:>8}{one.total:>10.1f} s{alone / devices / one.total:>12.0%}{one.driver / one.total:>9.0%}"
        if devices > 1:
            two = served(costs, length_N, prompt_tokens, devices)
            line += f"{two.total:>10.1f} s{alone / devices / two.total:>12.0%}"
        print(line)
    bound = costs.scheduler + costs.exchange * len(length_N)
    least = bound + costs.decode * float(length_N.max())
    print(f"never faster than {least:.1f} s: the driver's {bound:.1f} s and the longest completion")


# The check against real runs.

TOKENS, STEPS = 48, 6
WORKER = """
import sys, time, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from pacedrl import Trainer
from pacedrl.config import load_config
from pacedrl.distributed.ranks import connect

trainer = Trainer(load_config(Path(sys.argv[1])))
trainer.policy.eos_ids = [-1]  # no token ends a completion
trainer.train()
ranks, found = connect(), {"weights": 4.0 * sum(p.numel() for p in trainer.policy.parameters())}
if ranks.count > 1:
    for p in trainer.policy.parameters():
        p.grad = torch.ones_like(p)
    group = [{"ids": list(range(48)), "logprobs": [0.5] * 48, "text": "x" * 100}] * 64
    for name, work in (("gradients", lambda: ranks.sum_gradients(trainer.policy.parameters())),
                       ("exchange", lambda: ranks.gather(group))):
        seconds = []
        for _ in range(5):
            ranks.gather(0)
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        found[name] = min(seconds)
if ranks.main:
    Path(sys.argv[2]).write_text(json.dumps(found))
"""


def measure() -> dict[str, dict[str, float]]:
    """Fit costs to real steps of 8 and 16 prompts on one process; predict and run steps of 32 on one and on two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _model(folder / "model")
        (folder / "worker.py").write_text(WORKER)
        small, middle = (_run(folder, prompts, 1) for prompts in (8, 16))
        pair = _run(folder, 32, 2)
        large = _run(folder, 32, 1)
    completions = [prompts * GROUP_SIZE for prompts in (8, 16)]
    decode, row = fitted(completions, [step["generate"] / TOKENS for step in (small, middle)])
    fixed, token = fitted([count * TOKENS for count in completions], [step["update"] for step in (small, middle)])
    costs = Costs(
        decode=decode,
        row=row,
        token=token,
        fixed=fixed,
        weights=small["weights"],
        bandwidth=pair["weights"] / pair["gradients"],
        exchange=pair["exchange"] / 64,
        scheduler=small["rest"],
    )
    print(f"measured: {costs}")
    length_N = np.full(32 * GROUP_SIZE, float(TOKENS))
    found: dict[str, dict[str, float]] = {"costs": vars(costs)}
    for devices, real in ((1, large), (2, pair)):
        predicted = colocated(costs, length_N, 0, devices)
        found[str(devices)] = {"predicted": predicted.total, "real": real["step"]}
        print(f"{devices} processes, 32 prompts: predicted {predicted.total:.2f} s, real {real['step']:.2f} s")
        print(f"   generate {predicted.generate:.2f} and {real['generate']:.2f}", end=", ")
        print(f"update {predicted.update:.2f} and {real['update']:.2f}")
    return found


def fitted(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit constant and slope of a cost by least squares. The constant is 0 if noise would make it negative."""
    x, y = np.asarray(amounts, dtype=float), np.asarray(seconds, dtype=float)
    slope, constant = np.polyfit(x, y, 1)
    if constant < 0:
        return 0.0, float(x @ y / (x @ x))
    return float(constant), float(slope)


def _model(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from pacedrl.assets import TINY_MODEL

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    shape = {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 5, "num_key_value_heads": 5}
    config = AutoConfig.for_model("qwen2", **shape, intermediate_size=1280, vocab_size=len(tokenizer))
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _run(folder: Path, prompts: int, processes: int) -> dict[str, float]:
    """Run steps and return rank 0's smallest times after the first step; other load on the machine only adds time."""
    run = folder / f"run-{prompts}-{processes}"
    tree = {
        "recipe": "paced_select",
        "run": {"dir": str(run), "steps": STEPS, "device": "cpu"},
        "model": {"name": str(folder / "model")},
        "data": {"train": {"source": "skills", "options": {"size": 512}}},
        "sampling": {"prompts_per_step": prompts, "max_prompt_tokens": 64, "max_new_tokens": TOKENS},
        "optimizer": {"tokens_per_micro_batch": 2048},
        "verifier": {"workers": 1, "check_gold": False},
        "checkpoint": {"every": 1000},
    }
    config, out = folder / f"{run.name}.json", folder / f"{run.name}.found"
    config.write_text(json.dumps(tree))  # JSON is YAML
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    subprocess.run(
        [sys.executable, *launcher, str(folder / "worker.py"), str(config), str(out)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    found: dict[str, float] = json.loads(out.read_text())
    for phase in ("generate", "update", "step"):
        found[phase] = min(row[f"time/{phase}"] for row in rows)
    found["rest"] = min(row["time/step"] - row["time/generate"] - row["time/update"] for row in rows)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="check the formula against real runs on this machine")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--mean-tokens", type=float, default=1000.0)
    parser.add_argument("--max-tokens", type=int, default=3072)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    options = parser.parse_args(arguments)
    if options.measure:
        start = time.perf_counter()
        found = measure()
        print(f"({time.perf_counter() - start:.0f} s)")
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    else:
        for name, costs in ASSUMED.items():
            table(name, costs, options.prompts, options.mean_tokens, options.max_tokens, options.prompt_tokens)


if __name__ == "__main__":
    main()
