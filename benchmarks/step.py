"""Compare a training step with one of TRL's GRPOTrainer: the same model, prompts, number of tokens and machine.

    python benchmarks/step.py                        # SmolLM2-135M on 2 cores: about half an hour
    python benchmarks/step.py --steps 1 --checkpointing    # TRL with its defaults: slower, with less memory

Both sides run GRPO on 8 prompts of about 95 tokens × 8 completions of exactly 64 new tokens, in float32 with AdamW;
each side in its own process, one after the other, without counting the first step. Ours is ``recipe=grpo``;
benchmarks/scheduler.py measures what the scheduler adds in other recipes. TRL's micro-batches have 8 sequences, its
default. TRL's default gradient checkpointing is off unless asked for, because it only costs time where memory suffices.
One further step of TRL with 32 sequences per micro-batch shows what that gains. Prints medians and ranges of seconds
and tokens per second for each phase, their ratios, peak memory, and the share of the machine's matrix-multiplication
limit, measured in the same run, that our sampling and update reach. ``make smollm2`` fetches the model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("generate", "verify", "update", "step")
TRL_AT_ONCE = 32
"""Sequences in TRL's larger micro-batches."""
Measured = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The work of both sides. ``rows`` have a prompt and an answer; a step takes the next ``prompts`` rows."""

    model: Path
    rows: list[dict[str, str]]
    prompts: int
    completions: int
    new_tokens: int
    forced: bool
    """Whether no completion ends before ``new_tokens``."""
    steps: int
    """Number of steps that are counted; one more precedes them."""
    tokens_per_micro_batch: int
    trl_batch: int
    """Sequences per micro-batch of TRL."""
    checkpointing: bool = False
    learning_rate: float = 1e-6

    @property
    def sequences(self) -> int:
        return self.prompts * self.completions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--checkpointing", action="store_true", help="use TRL's default gradient checkpointing")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=640, help="of pacedrl")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        save_model(model)
        work = Work(
            model=model,
            rows=word_problems(8 * (options.steps + 1)),
            prompts=8,
            completions=8,
            new_tokens=options.new_tokens,
            forced=True,
            steps=options.steps,
            tokens_per_micro_batch=options.tokens_per_micro_batch,
            trl_batch=8,
            checkpointing=options.checkpointing,
        )
        rate = matmul_rate()
        print(f"matrix multiply: {rate / 1e9:.0f} GFLOP/s; {torch.get_num_threads()} threads", flush=True)
        found = compare(work)
        found["trl_at_once"] = apart(trl, replace(work, trl_batch=TRL_AT_ONCE, steps=1))
        report(f"trl, {TRL_AT_ONCE} sequences a micro-batch", found["trl_at_once"], work)
    limits = least_seconds(work, found["ours"], rate)
    reached = {phase: seconds / median(found["ours"], phase) for phase, seconds in limits.items()}
    print("of the limit, ours: " + ", ".join(f"{phase} {share:.0%}" for phase, share in reached.items()))
    if options.json:
        machine = {"rate": rate, "capability": torch.backends.cpu.get_cpu_capability()}
        options.json.write_text(json.dumps(machine | {"reached": reached} | found, indent=1) + "\n")


def compare(work: Work) -> dict[str, Measured]:
    """Measure both sides, each in its own process, one after the other; print their figures and ratios."""
    found: dict[str, Measured] = {}
    for side, function in (("ours", ours), ("trl", trl)):
        found[side] = apart(function, work)
        report(side, found[side], work)
    ratios = {phase: median(found["trl"], phase) / median(found["ours"], phase) for phase in PHASES}
    print("TRL's seconds to ours: " + ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in ratios.items()))
    print(f"peak memory, ours to TRL's: {found['ours']['peak'] / found['trl']['peak']:.2f}")
    return found


def apart(side: Callable[[Work], Measured], work: Work) -> Measured:
    """Return what a side measures in its own process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(side, (work,))


def save_model(folder: Path) -> None:
    """Save the GGUF file's weights as a folder that both sides can load."""
    from pacedrl.config import ModelConfig
    from pacedrl.policy.policy import Policy

    source = ROOT / "models" / "smollm2"
    files = sorted(source.glob("*.gguf"))
    if not files:
        raise SystemExit(f"{source} holds no model: run `make smollm2`")
    Policy.load(ModelConfig(name=str(source), gguf_file=files[0].name), torch.device("cpu")).save(folder)


def word_problems(count: int) -> list[dict[str, str]]:
    """Make different prompts of about 95 tokens."""
    texts = [
        f"Farmer {i} has {12 + i % 7} fields. On each field stand {30 + i % 11} apple trees and {5 + i % 3} pear "
        "trees. Every apple tree bears four baskets of apples a year, every pear tree three baskets of pears, and one "
        "basket in ten is lost on the way to the market in the town. A basket of apples sells for nine coins, one of "
        "pears for eleven. How many coins does the farmer take home after a year? Work it out step by step."
        for i in range(count)
    ]
    return [{"prompt": text, "answer": "0"} for text in texts]


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Reward the answer and half of all other texts, so that rewards differ within groups."""
    return [float(text.strip() == a or len(set(text)) % 2) for text, a in zip(completions, answer, strict=True)]


def matmul_rate() -> float:
    """Measure FLOP/s of float32 matrix multiplication at the update's shapes."""
    a, b = torch.randn(640, 576), torch.randn(576, 1536)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(200):
            a @ b
        best = max(best, 200 * 2 * 640 * 576 * 1536 / (time.perf_counter() - start))
    return best


def ours(work: Work) -> Measured:
    from pacedrl import Config, Trainer

    folder = Path(tempfile.mkdtemp(dir=work.model.parent))
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in work.rows))
    tree = {
        "recipe": "grpo",
        "run": {"dir": str(folder / "run"), "steps": work.steps + 1},
        "model": {"name": str(work.model)},
        "data": {"train": {"source": str(data), "verifier": f"{Path(__file__).resolve()}:reward"}},
        "sampling": {
            "prompts_per_step": work.prompts,
            "group_size": work.completions,
            "max_prompt_tokens": 256,
            "max_new_tokens": work.new_tokens,
        },
        "optimizer": {
            "mini_batches": 1,
            "tokens_per_micro_batch": work.tokens_per_micro_batch,
            "learning_rate": work.learning_rate,
        },
        "checkpoint": {"every": 1000},
        "verifier": {"check_gold": False},
    }
    trainer = Trainer(Config.model_validate(tree))
    if work.forced:
        trainer.policy.eos_ids = [-1]  # no token ends a completion
    trainer.train()
    rows = trainer.folder.rows("metrics.jsonl")
    assert not work.forced or all(row["completion/length_mean"] == work.new_tokens for row in rows)
    lengths = [len(prompt.token_ids) for prompt in trainer.prompts.values()]
    parameters = sum(parameter.numel() for parameter in trainer.policy.parameters())
    return {
        "seconds": {phase: [row[f"time/{phase}"] for row in rows[1:]] for phase in PHASES},
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "prompt_tokens": statistics.mean(lengths),
        "new_tokens": statistics.mean(row["completion/length_mean"] for row in rows[1:]),
        "head": trainer.policy.head.weight_VH.numel(),
        "body": parameters - trainer.policy.head.weight_VH.numel(),
    }


def trl(work: Work) -> Measured:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}

    class Timed(GRPOTrainer):  # type: ignore[misc, valid-type]
        def _generate(self, *arguments: Any, **named: Any) -> Any:
            return timed("generate", super()._generate, *arguments, **named)

        def _calculate_rewards(self, *arguments: Any, **named: Any) -> Any:
            return timed("verify", super()._calculate_rewards, *arguments, **named)

    def timed(phase: str, function: Any, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **named)
        seconds[phase].append(time.perf_counter() - start)
        return result

    class Steps(TrainerCallback):  # type: ignore[misc, valid-type]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds["step"].append(time.perf_counter() - self.start)

    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(dir=work.model.parent),
        per_device_train_batch_size=work.trl_batch,
        gradient_accumulation_steps=work.sequences // work.trl_batch,
        num_generations=work.completions,
        max_completion_length=work.new_tokens,
        generation_kwargs={"min_new_tokens": work.new_tokens} if work.forced else None,
        max_steps=work.steps + 1,
        learning_rate=work.learning_rate,
        gradient_checkpointing=work.checkpointing,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    rows = Dataset.from_list(work.rows)
    trainer = Timed(model, reward, settings, train_dataset=rows, processing_class=tokenizer, callbacks=[Steps()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    tokens = [len(tokenizer(row["prompt"]).input_ids) for row in work.rows]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    parts = zip(seconds["step"], seconds["generate"], seconds["verify"], strict=True)
    seconds["update"] = [step - generate - verify for step, generate, verify in parts]
    return {
        "seconds": {phase: values[1:] for phase, values in seconds.items()},
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "prompt_tokens": statistics.mean(tokens),
        "new_tokens": statistics.mean(lengths[1:]),
    }


def report(side: str, measured: Measured, work: Work) -> None:
    shape = f"{measured['prompt_tokens']:.0f} prompt and {measured['new_tokens']:.1f} new tokens"
    print(f"{side} ({shape}, peak {measured['peak'] / 2**30:.1f} GiB)")
    for phase in PHASES:
        values = measured["seconds"][phase]
        median_s = statistics.median(values)
        rollouts, tokens = work.sequences / median_s, work.sequences * measured["new_tokens"] / median_s
        print(
            f"  {phase:9}{median_s:9.3f} s ({min(values):.3f}-{max(values):.3f}, {len(values)} steps)"
            f"{rollouts:9.1f} rollouts/s{tokens:9.0f} tokens/s",
            flush=True,
        )


def median(measured: Measured, phase: str) -> float:
    return float(statistics.median(measured["seconds"][phase]))


def least_seconds(work: Work, measured: Measured, rate: float) -> dict[str, float]:
    """Return the seconds of the matrix multiplications alone, with 2 FLOP per weight and token forward, 4 backward.

    Prompts pass through the model once. A new token's logits are computed once to sample it (2 FLOP per weight);
    learning from it computes them twice (4 FLOP) and their gradient (4 FLOP).
    """
    body, head = measured["body"], measured["head"]
    prompt_tokens, new = work.prompts * measured["prompt_tokens"], work.sequences * measured["new_tokens"]
    generate = 2 * body * (prompt_tokens + new) + 2 * head * new
    update = 6 * body * (prompt_tokens + new) + 8 * head * new
    return {"generate": generate / rate, "update": update / rate}


if __name__ == "__main__":
    main()
