"""The GRPO family equals TRL's GRPOTrainer in advantages, losses, gradients, and a training step of both loops.

TRL computes everything it is compared by: its own forward passes, π_old, π_ref, advantages, loss and optimiser step.
It is given our completions (through ``rollout_func``), the same reward function and the same initial weights.

Where TRL, the papers and we differ:

- Standard deviation of a group: the GRPO paper does not say which; TRL's is the sample's (n − 1) plus 1e-4, so is ours.
- KL: the GRPO paper adds plain k3 to every token, and so do we. TRL now multiplies it by the importance ratio
  (DeepSeek-V3.2's ``use_bias_correction_kl``, on by default); off here.
- DAPO: the paper's formula takes the mean over the tokens of one prompt's group, implementations over those of the
  whole update. We do the latter, mini-batch by mini-batch; TRL divides each mini-batch by its share of the whole
  generation's tokens. With one mini-batch, as here, the two are the same.
- GSPO: the paper's is TRL's loss type "grpo" on sequence-level ratios; no difference, nor with Dr. GRPO.
- π_old: a forward pass of the trainer, or π_θ itself if no step lies in between, in both.
- A completion that could not be judged enters no group's mean or deviation, in TRL as here. TRL then trains on it with
  advantage 0, so that it counts among the sequences and tokens that a loss is divided by; we leave it out.
- Weight decay: transformers' trainer, and so TRL's, exempts norms and biases, we do not; TRL's is told to decay all
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pacedrl import Config, Trainer
from pacedrl.assets import TINY_MODEL
from pacedrl.config import ModelConfig
from pacedrl.config.method import GrpoConfig
from pacedrl.method import group_relative_advantage
from pacedrl.policy.passes import sequence_logprobs
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import TransformersSampler
from pacedrl.rollouts.collect import sample_groups
from pacedrl.rollouts.engines import training_settings
from pacedrl.tasks.skills import skill_rows
from pacedrl.training.learner import Learner, Update
from pacedrl.training.objectives import build_objective
from pacedrl.training.objectives.base import group_index
from pacedrl.types import Completion, Group, Prompt

trl = pytest.importorskip("trl")

Reward = Callable[..., Sequence[float | None]]
Tensors = dict[str, Tensor]

WITH_KL = {"recipe": "grpo", "objective": {"kl_coefficient": 0.04}}
"""KL coefficient of GRPO's paper; the recipe's is 0."""
ADAM_EPS = 1e-3
"""Adam's ε on both sides. With the usual 1e-8, Adam's first step is nearly the gradient's sign, and a parameter with
a gradient of rounding errors moves as far as any other, and two implementations round differently."""


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl.GRPOTrainer, "_send_telemetry", lambda self: None)


def objective_of(config: Config) -> GrpoConfig:
    assert isinstance(config.objective, GrpoConfig)
    return config.objective


def trl_trainer(folder: Path, config: Config, rows: list[dict[str, Any]], reward: Reward, **arguments: Any) -> Any:
    """Return a GRPOTrainer with the configuration's settings; each prompt in ``rows`` gets G completions."""
    objective, sampling, optimizer = objective_of(config), config.sampling, config.optimizer
    settings: dict[str, Any] = {
        "loss_type": {"sequence_mean": "grpo", "token_mean": "dapo", "constant": "dr_grpo"}[objective.aggregation],
        "scale_rewards": "group" if objective.scale_by_std else "none",
        "importance_sampling_level": objective.ratio,
        "epsilon": objective.clip_low,
        "epsilon_high": objective.clip_high,
        "beta": objective.kl_coefficient,
        "use_bias_correction_kl": False,
        "num_generations": sampling.group_size,
        "max_completion_length": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "num_iterations": optimizer.epochs,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": ADAM_EPS,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "per_device_train_batch_size": len(rows) * sampling.group_size,
        "optim": "adamw_torch",
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(TINY_MODEL), dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(str(TINY_MODEL)),
        reward_funcs=reward,
        args=trl.GRPOConfig(**settings | arguments),
        train_dataset=Dataset.from_list(rows),
    )


def generating(sequences: Sequence[Completion], prompts: Sequence[Any]) -> Callable[..., dict[str, Any]]:
    """Return a ``rollout_func`` that "generates" ``sequences`` as completions of ``prompts``."""

    def rollout(asked: list[str], trainer: Any) -> dict[str, Any]:
        assert asked == list(prompts)
        return {
            "prompt_ids": [list(sequence.prompt_ids) for sequence in sequences],
            "completion_ids": [list(sequence.token_ids) for sequence in sequences],
            "logprobs": [sequence.logprobs for sequence in sequences],
        }

    return rollout


def parameters(model: torch.nn.Module) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradients(model: torch.nn.Module) -> Tensors:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def largest(tensors: Tensors) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors.values())


def gap(left: Tensors, right: Tensors) -> Tensors:
    assert left.keys() == right.keys()
    return {name: left[name] - right[name] for name in left}


REWARDS: dict[str, list[list[float | None]]] = {
    "binary": [[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]],
    "graded": [[0.1, 0.25, 0.9, 0.3], [1.0, 0.999, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3]],
    "not all judged": [[0.0, None, 1.0, 1.0], [None, None, 1.0, None], [None, 0.5, 0.5, None], [None] * 4],
}


@pytest.mark.parametrize("recipe", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
def test_advantages_are_trls(tmp_path: Path, rewards: list[list[float | None]], recipe: str) -> None:
    """Completions that could not be judged have no advantage here and 0 in TRL."""
    config = Config(recipe=recipe, sampling={"group_size": 4})
    flat = [reward for group in rewards for reward in group]
    rows = [{"prompt": f"copy:{i}="} for i in range(len(rewards))]
    asked = [row["prompt"] for row in rows for _ in range(4)]
    trainer = trl_trainer(tmp_path, config, rows, lambda **columns: flat)
    trainer.rollout_func = generating([Completion([6, 2], [0.0, 0.0], prompt_ids=[1, 5])] * len(flat), asked)
    trainer.model.train()
    theirs_B = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in asked])["advantages"]

    judged = [i for i, reward in enumerate(flat) if reward is not None]
    reward_K, group_K = torch.tensor([flat[i] for i in judged]), group_index([asked[i] for i in judged])
    ours_B = torch.zeros(len(flat))
    ours_B[judged] = group_relative_advantage(reward_K, group_K, objective_of(config).scale_by_std)
    # TRL works in single precision: of a group that differs by 0.001 only, that leaves four digits.
    torch.testing.assert_close(ours_B, theirs_B, rtol=1e-4, atol=1e-6)
    assert float(theirs_B.abs().max()) > 0.3


def move(models: Sequence[torch.nn.Module], seed: int, scale: float) -> None:
    """Add the same noise to the parameters of each model, relative to the parameters' size."""
    for model in models:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.abs().mean() * scale)


def sampled_groups(policy: Policy, config: Config, reward: Reward) -> list[Group]:
    """Return judged groups of prompts of equal length, so that TRL's padding on the left does not move them."""
    skills = [row for row in skill_rows(size=600, seed=3) if len(row["prompt"]) == 14]
    chosen = skills[: config.sampling.prompts_per_step]
    prompts = [
        Prompt(str(i), "skills", row["prompt"], row["answer"], token_ids=policy.encode(row["prompt"]))
        for i, row in enumerate(chosen)
    ]
    sampler = TransformersSampler(policy)
    groups = sample_groups(sampler, prompts, training_settings(config), (0, "golden"))
    for group in groups:
        for completion in group.completions:
            (completion.reward,) = reward(completions=[completion.text], answer=[group.prompt.answer])
    return groups


CASES: dict[str, dict[str, Any]] = {
    "grpo": {"recipe": "grpo"},
    "grpo with KL": WITH_KL,
    "grpo, tempered": {"recipe": "grpo", "sampling": {"temperature": 0.7}},
    "dr_grpo": {"recipe": "dr_grpo"},
    "dapo": {"recipe": "dapo"},
    "gspo": {"recipe": "gspo"},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_trls(tmp_path: Path, reward: Reward, case: dict[str, Any]) -> None:
    """One policy samples, another is trained, and a third is the reference, so that no ratio is 1.

    The models are in float64: moved this far, the tiny one turns float32's rounding into 3e-5 of a log-probability. Our
    micro-batches hold a few sequences each, so that dividing by a micro-batch's own size would show.
    """
    sampling = {"prompts_per_step": 12, "group_size": 4, "max_new_tokens": 8}
    tree = case | {"sampling": sampling | case.get("sampling", {}), "optimizer": {"tokens_per_micro_batch": 90}}
    config = Config.model_validate(tree)
    ours, reference = (Policy.load(ModelConfig(), torch.device("cpu")) for _ in range(2))
    for policy in (ours, reference):
        policy.model.double()
    move([ours.model], seed=1, scale=0.3)
    groups = sampled_groups(ours, config, reward)
    judged = [(group, completion) for group in groups for completion in group.completions]
    sampled = [completion for _, completion in judged]
    assert len({len(sequence.token_ids) for sequence in sampled}) > 2

    rows = [{"prompt": group.prompt.content, "answer": group.prompt.answer} for group in groups]
    trainer = trl_trainer(tmp_path, config, rows, reward, num_iterations=2)  # with a second pass, TRL computes π_old
    for model in filter(None, (trainer.model, trainer.ref_model)):
        model.double()
    move([trainer.model], seed=1, scale=0.3)
    trainer.rollout_func = generating(sampled, [group.prompt.content for group, _ in judged])
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as train() sets it
    inputs = trainer._generate_and_score_completions([row for row in rows for _ in range(config.sampling.group_size)])
    move([ours.model, trainer.model], seed=2, scale=0.05)
    their_loss = trainer.compute_loss(trainer.model, inputs)
    their_loss.backward()
    seen = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert seen["clip_ratio/low_mean"] > 0.02
    assert seen["clip_ratio/high_mean"] > 0.02
    assert seen["clip_ratio/region_mean"] < 0.6

    temperature, budget = config.sampling.temperature, config.optimizer.tokens_per_micro_batch
    references: Sequence[Any] = [None] * len(sampled)
    if config.objective.needs_reference:
        references = sequence_logprobs(reference, sampled, temperature, budget)
        assert objective_of(config).kl_coefficient * seen["kl"] > 1e-2
    reward_B, group_B = torch.tensor([c.reward for _, c in judged]), group_index([g.prompt.key for g, _ in judged])
    advantages = group_relative_advantage(reward_B, group_B, objective_of(config).scale_by_std).tolist()
    for sequence, advantage, logprobs in zip(sampled, advantages, references, strict=True):
        sequence.anchor_logprobs, sequence.advantage = sequence.logprobs, advantage
        sequence.reference_logprobs = logprobs
    loss = build_objective(config).loss
    totals = Learner(ours, config.optimizer, 1, temperature, loss).accumulate_gradient(sampled)

    assert totals["loss/objective"] == pytest.approx(their_loss.item(), rel=1e-5)
    mine, theirs = gradients(ours.model), gradients(trainer.model)
    assert len(theirs) == len(list(trainer.model.parameters()))
    assert largest(theirs) > 1e-2
    for name, difference in gap(mine, theirs).items():
        assert float(difference.abs().max()) < 1e-5 * float(theirs[name].abs().max()), name


LOOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"recipe": "grpo"}, {}),
    "dr_grpo, accumulated": (
        {"recipe": "dr_grpo"},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3},
    ),
    "dapo, accumulated": (
        {"recipe": "dapo", "optimizer": {"mini_batches": 1}},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3},
    ),
    "gspo, two passes": ({"recipe": "gspo", "optimizer": {"mini_batches": 1, "epochs": 2}}, {}),
    "grpo with KL, two passes": (WITH_KL | {"optimizer": {"epochs": 2}}, {}),
}
"""Our settings and TRL's additional ones."""


def our_step(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, list[Completion]]:
    """Return a trainer that has taken one step, and the batch it trained on."""
    trainer = Trainer(config)
    for group in trainer.learner.optimizer.param_groups:
        group["eps"] = ADAM_EPS
    trained_on: list[Completion] = []
    update = trainer.learner.update

    def recording(batch: list[Completion], *rest: Any) -> Update:
        trained_on.extend(batch)
        return update(batch, *rest)

    monkeypatch.setattr(trainer.learner, "update", recording)
    assert trainer.train().step == 1
    return trainer, trained_on


@pytest.mark.parametrize(("case", "arguments"), LOOPS.values(), ids=LOOPS.keys())
def test_a_training_step_is_trls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: Reward, case: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Both trainers' loops end with the same weights, for prompts and completions of many lengths."""
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    optimizer = {"learning_rate": 2e-3, "max_grad_norm": 0.05, "tokens_per_micro_batch": 200}
    config = Config.model_validate(
        {
            "run": {"dir": str(tmp_path / "ours"), "steps": 1, "device": "cpu"},
            "data": {"train": {"source": "skills", "options": {"size": 64}, "verifier": reward}},
            "sampling": {"prompts_per_step": 6, "group_size": 4, "max_prompt_tokens": 64, "max_new_tokens": 7},
            "verifier": {"workers": 1},
        }
        | case
        | {"optimizer": optimizer | case.get("optimizer", {})}
    )
    ours, trained_on = our_step(config, monkeypatch)
    (metrics,) = ours.folder.rows("metrics.jsonl")
    assert len(trained_on) == 24
    assert len({len(sequence.prompt_ids) for sequence in trained_on}) > 3
    assert len({len(sequence.token_ids) for sequence in trained_on}) > 3
    if config.gate.name == "dynamic":
        assert metrics["gate/dropped_all_right"] + metrics["gate/dropped_all_equal"] > 0

    prompt_of = {tuple(prompt.token_ids): prompt for prompt in ours.prompts.values()}
    prompts = [prompt_of[tuple(sequence.prompt_ids)] for sequence in trained_on]
    rows = [{"prompt": prompt.content, "answer": prompt.answer} for prompt in prompts[:: config.sampling.group_size]]
    passes = config.optimizer.epochs
    theirs = trl_trainer(tmp_path / "trl", config, rows, reward, max_steps=passes, **arguments)
    initial = parameters(theirs.model)
    theirs.rollout_func = generating(trained_on, [prompt.content for prompt in prompts])
    monkeypatch.setattr(theirs, "get_decay_parameter_names", lambda model: list(parameters(model)))
    theirs.train()

    assert theirs.state.global_step == passes
    assert list(theirs._logs["advantages"]) == pytest.approx([sequence.advantage for sequence in trained_on])
    logged = [log for log in theirs.state.log_history if "grad_norm" in log]
    norms = [log["grad_norm"] for log in logged]
    assert metrics["grad_norm"] == pytest.approx(sum(norms) / passes, rel=1e-4)
    assert min(norms) > config.optimizer.max_grad_norm  # so that its clipping shows
    if passes == 2:  # so that the second pass is off the policy that sampled
        assert logged[1]["clip_ratio/region_mean"] > 0.05
    mine, right = parameters(ours.policy.model), parameters(theirs.model)
    assert min(float(moved.abs().max()) for moved in gap(right, initial).values()) > 1e-4
    assert largest(gap(right, initial)) > 1e-3
    assert largest(gap(mine, right)) < 1e-5
