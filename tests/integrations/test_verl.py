"""PacedTrainer in verl: registries, configuration, loss path, advantages and prompts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ray_cluster import GROUP, PROMPTS, ROOM, ROOT, ROWS, Configure, _configure, cluster, data, model, queue, start  # noqa: F401 - fixtures
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder
from verl.workers.utils.losses import ppo_loss

import pacedrl.integrations.verl as integration
from pacedrl.errors import InputError
from pacedrl.integrations.verl import PacedTrainer
from pacedrl.method import ClosedFormPartition, DifficultyScheduler, trajectory_balance

pytestmark = pytest.mark.slow


# The names that verl's configuration asks for.


def test_each_registered_name_is_ours() -> None:
    assert get_trainer_cls("paced") is PacedTrainer
    assert core_algos.get_policy_loss_fn("paced") is integration.trajectory_balance
    assert core_algos.get_adv_estimator_fn("paced") is integration.advantage


@pytest.mark.parametrize("named", [True, False])
def test_every_process_of_a_job_knows_them_where_the_example_names_the_module(
    configure: Configure, named: bool
) -> None:
    variables = OmegaConf.to_container(configure().ray_kwargs.ray_init.runtime_env.env_vars)

    @ray.remote
    def known() -> list[bool]:
        from verl.trainer.ppo import core_algos
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        registries = (core_algos.POLICY_LOSS_REGISTRY, core_algos.ADV_ESTIMATOR_REGISTRY, TRAINER_REGISTRY)
        return ["paced" in registry for registry in registries]

    environment = variables if named else dict.fromkeys(variables, "")
    assert ray.get(known.options(runtime_env={"env_vars": environment}).remote()) == [named] * 3


def test_verl_accepts_the_examples_configuration() -> None:
    with initialize_config_dir(str(ROOT / "examples/verl"), version_base=None):
        config = compose("paced")
    validate_config(config, use_reference_policy=False, use_critic=False)
    for name, value in integration.REQUIRED.items():
        assert OmegaConf.select(config, name) == value
    room = config.actor_rollout_ref.actor.ppo_mini_batch_size - config.data.train_batch_size
    assert room * config.actor_rollout_ref.rollout.n == 128  # the paper's buffer
    DifficultyScheduler(["a"], torch.ones(1, 4), **config.trainer.v1.paced)
    assert config.reward.custom_reward_function.path == "examples/verl/reward.py"
    spec = importlib.util.spec_from_file_location("reward", ROOT / config.reward.custom_reward_function.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    score = getattr(module, config.reward.custom_reward_function.name)
    assert [score("math", text, "1/2", extra_info={}) for text in (r"So \boxed{0.5}.", r"So \boxed{2}.")] == [1.0, 0.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would train")
def test_the_launch_script_gets_as_far_as_one_can_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, data: Path
) -> None:
    monkeypatch.delenv("VERL_USE_EXTERNAL_MODULES")  # the configuration names the module itself
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    settings = {
        "data.train_files": data,
        "data.val_files": data,
        "data.train_batch_size": PROMPTS,
        "actor_rollout_ref.model.path": model,
        "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
        "trainer.n_gpus_per_node": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_cpus": 4,
    }
    run = subprocess.run(
        [ROOT / "examples/verl/run.sh", *(f"{name}={value}" for name, value in settings.items())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert run.returncode == 1
    # The trainer was found by its name, and made its scheduler; then verl wants GPUs for the workers.
    assert "Total available GPUs 0 is less than total desired GPUs 1" in run.stderr
    (embeddings,) = (tmp_path / "cache/embeddings").glob("*.npy")
    assert len(np.load(embeddings)) == len(ROWS)


# The loss, on verl's path from the model's output to it.

LENGTHS = [(3, 5), (2, 1), (4, 3), (6, 4)]
"""Number of tokens of prompt and response."""


def batch_of(rows: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Return sequences as verl's workers get them, in double precision; the last one is padding by verl."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, (prompt, response) in enumerate(LENGTHS):
        real = i < len(LENGTHS) - 1
        mask = torch.ones(response, dtype=torch.long) * int(real)
        if i == 0:
            mask[2] = 0  # a tool's token
        made.append(
            {
                "prompts": torch.zeros(prompt, dtype=torch.long),
                "responses": torch.zeros(response, dtype=torch.long),
                "response_mask": mask,
                "old_log_probs": -torch.rand(response, generator=generator, dtype=torch.double),
                "advantages": (torch.rand(1, generator=generator, dtype=torch.double) * 20 - 10) * mask,
                "log_probs": -torch.rand(prompt + response, generator=generator, dtype=torch.double),
            }
        )
    return {name: torch.nested.as_nested_tensor([made[i][name] for i in rows], layout=torch.jagged) for name in made[0]}


def verl_loss(config: Any, rows: Sequence[int], dp_size: int = 1) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    """Return loss and metrics of these sequences by verl's ``ppo_loss``, and the gradient [tokens]."""
    batch = batch_of(rows)
    whole = batch.pop("log_probs")
    values = whole.values().clone().requires_grad_()
    data = TensorDict(batch, batch_size=len(rows))
    tensordict_utils.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=12, global_batch_size=len(LENGTHS))
    output = {"log_probs": torch.nested.nested_tensor_from_jagged(values, whole.offsets())}
    loss, metrics = ppo_loss(config, output, data)
    loss.backward()
    return loss.detach(), metrics, values.grad


def our_loss(rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `trajectory_balance` of the same sequences, with the gradient in verl's layout."""
    batch = batch_of(rows)
    whole = batch.pop("log_probs")
    values = whole.values().clone().requires_grad_()
    ends = whole.offsets().tolist()
    lengths = [LENGTHS[i][1] for i in rows]
    # The log-probability of a token stands where it is predicted, one before it.
    shifted = [values[end - n - 1 : end - 1] for end, n in zip(ends[1:], lengths, strict=True)]
    logprobs, old, mask, advantages = (
        torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        for rows in (shifted, *(batch[name].unbind() for name in ("old_log_probs", "response_mask", "advantages")))
    )
    advantage_B = advantages.sum(1) / mask.sum(1).clamp(min=1)
    loss, _ = trajectory_balance(logprobs, old, mask, advantage_B, normalizer=len(LENGTHS))
    loss.backward()
    return loss.detach(), values.grad


def test_the_loss_is_trajectory_balance(configure: Configure) -> None:
    config = omega_conf_to_dataclass(configure().actor_rollout_ref.actor)
    loss, metrics, gradient = verl_loss(config, range(4))
    expected, expected_gradient = our_loss(range(4))
    assert float(expected) > 1.0
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6)
    assert int((gradient != 0).sum()) == 4 + 1 + 3  # the policy's own tokens
    ratios = []
    batch = batch_of(range(3))
    for logprob, old, mask in zip(
        *(batch[n].unbind() for n in ("log_probs", "old_log_probs", "response_mask")), strict=True
    ):
        ratios.append(float(((logprob[-len(mask) - 1 : -1] - old) * mask).sum()))
    assert metrics["actor/kl_old"].aggregate() == pytest.approx(-np.mean(ratios))
    deltas = [
        abs(ratio - float(a.values()[0] if a.is_nested else a[0]))
        for ratio, a in zip(ratios, batch["advantages"].unbind(), strict=True)
    ]
    assert metrics["actor/delta_abs"].aggregate() == pytest.approx(np.mean(deltas))


def test_micro_batches_and_processes_add_up(configure: Configure) -> None:
    config = omega_conf_to_dataclass(configure().actor_rollout_ref.actor)
    whole, _, gradient = verl_loss(config, range(4))
    parts = [verl_loss(config, rows) for rows in ([0, 1], [2, 3])]
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), gradient)
    processes = [verl_loss(config, rows, dp_size=2) for rows in ([0, 1], [2, 3])]  # whose gradients FSDP averages
    torch.testing.assert_close(sum(part[0] for part in processes) / 2, whole)
    torch.testing.assert_close(torch.cat([part[2] for part in processes]) / 2, gradient)


# The advantages.


def advantages_of(rewards: Sequence[float], uids: Sequence[str]) -> torch.Tensor:
    """Return advantages by verl's ``compute_advantage``; rewards are on the last of 4 tokens, 2 or 4 sampled."""
    mask = torch.ones(len(uids), 4)
    mask[1::2, 2:] = 0
    mask[[uid.startswith("pad") for uid in uids]] = 0
    token_rewards = torch.zeros(len(uids), 4)
    token_rewards[:, 3] = torch.tensor(rewards)
    data = DataProto.from_dict(
        {"token_level_rewards": token_rewards, "response_mask": mask}, {"uid": np.array(uids, dtype=object)}
    )
    return compute_advantage(data, adv_estimator="paced", config=OmegaConf.create()).batch["advantages"]


def test_advantages_are_reward_over_beta_less_log_z(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scheduler = DifficultyScheduler(["a", "b"], torch.randn(2, 8), beta=0.1)
    for _ in range(20):
        scheduler.observe(integration.Rollouts(["a", "a", "b", "b"], [0.0, 0.0, 1.0, 1.0]))
    monkeypatch.setattr(integration, "_scheduler", scheduler)
    log_z = dict(zip("ab", scheduler.log_z(["a", "b"]).tolist(), strict=True))
    assert log_z["b"] - log_z["a"] > 3.0
    advantages = advantages_of([1.0, 0.0, 0.25, 1.0], ["a", "b", "b", "pad123"])
    full, half = torch.ones(4), torch.tensor([1.0, 1.0, 0.0, 0.0])
    expected = [(10.0 - log_z["a"]) * full, -log_z["b"] * half, (2.5 - log_z["b"]) * full, 0.0 * full]
    torch.testing.assert_close(advantages, torch.stack(expected))


def test_what_is_no_accuracy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "_scheduler", None)
    with pytest.raises(InputError, match=r"needs log Z: also set trainer.v1.trainer_mode=paced"):
        advantages_of([1.0], ["a"])
    monkeypatch.setattr(integration, "_scheduler", DifficultyScheduler(["a"], torch.ones(1, 4)))
    for reward in (-1.0, 2.0, float("nan")):
        with pytest.raises(InputError, match=rf"rewards in \[0, 1\].* but returned {reward:g}"):
            advantages_of([1.0, reward], ["a", "a"])


# What needs no engine.


def ready(config: Any) -> PacedTrainer:
    trainer = PacedTrainer(config)
    trainer._init_tokenizer()
    trainer._init_dataloader()
    return trainer


def named(batch: TensorDict) -> list[str]:
    return list(tensordict_utils.get(batch, "uid"))


def test_each_batch_has_the_prompts_that_the_scheduler_selects(configure: Configure) -> None:
    trainer = ready(configure("data.dataloader_num_workers=8"))
    trainer.global_steps = 0
    for step in range(3):
        expected = trainer.scheduler.select(PROMPTS)
        batch = trainer._next_train_batch()
        assert named(batch) == expected
        rows = [trainer.row_of[key] for key in expected]
        assert list(batch["raw_prompt"]) == [ROWS[row]["prompt"] for row in rows]
        assert [value["ground_truth"] for value in batch["reward_model"]] == [
            ROWS[row]["reward_model"]["ground_truth"] for row in rows
        ]
        rollouts = integration.Rollouts(expected, [float(step % 2)] * PROMPTS)
        trainer.scheduler.observe(rollouts)
        assert trainer.scheduler.select(PROMPTS) != expected


def test_prompts_have_the_token_ids_of_verls_agent_loop(configure: Configure) -> None:
    trainer = ready(configure())
    builder = ContinuousTokenBuilder(trainer.tokenizer)
    for key, row in trainer.row_of.items():
        assert trainer.prompt_ids[key] == builder.build_initial_tokens(ROWS[row]["prompt"])


def test_prompts_fetched_in_parts_are_all_different(configure: Configure) -> None:
    trainer = ready(configure("data.gen_batch_size=1"))
    trainer.global_steps = 0
    keys = named(trainer._next_train_batch()) + named(trainer._next_train_batch(2))
    assert len(set(keys)) == len(keys) == PROMPTS + 2


def test_the_scheduler_has_the_configured_settings(configure: Configure) -> None:
    overrides = ("trainer.v1.paced.beta=0.1", "+trainer.v1.paced.cooldown_steps=3", "+trainer.v1.paced.seed=7")
    one, two = ready(configure(*overrides)), ready(configure(*overrides))
    assert (one.scheduler.partition.beta, one.scheduler.cooldown_steps, one.scheduler.seed) == (0.1, 3, 7)
    assert len(one.scheduler.keys) == len(ROWS)
    assert one.scheduler.replay_buffer.entries.maxlen == ROOM * GROUP
    state, again = (t.scheduler.partition.network.state_dict() for t in (one, two))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert integration._scheduler is two.scheduler
    closed = ready(configure("+trainer.v1.paced.partition=closed_form", "+trainer.v1.paced.layer=middle"))
    assert isinstance(closed.scheduler.partition, ClosedFormPartition)
    assert not torch.equal(closed.scheduler.partition.embeddings_NH, one.scheduler.partition.embeddings_NH)
    other = ready(configure("+trainer.v1.paced.selection=mapp", "+trainer.v1.paced.estimator=bots"))
    assert (other.scheduler.selection, other.scheduler.estimator.name) == ("mapp", "bots")
    assert other.scheduler.group_size == GROUP


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.adv_estimator=grpo", r"algorithm.adv_estimator: must be paced with PACED-RL, but is grpo"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla", r"loss_mode: must be paced .* but is vanilla"),
        ("algorithm.use_kl_in_reward=true", r"use_kl_in_reward: must be False .* but is True"),
        ("algorithm.rollout_correction.rollout_is=token", r"rollout_is: must be None .* but is token"),
        ("algorithm.filter_groups.enable=true", r"filter_groups.enable: must be False .* but is True"),
        ("data.train_batch_size=49", r"data.train_files: each step needs 49 different prompts, but there are only 48"),
        ("+trainer.v1.paced.cooldown=3", r"trainer.v1.paced: .*unexpected keyword argument 'cooldown'"),
        ("trainer.v1.paced.target_accuracy=1.5", r"trainer.v1.paced: target_accuracy must lie in \[0, 1\], got 1.5"),
    ],
)
def test_unsupported_settings_are_refused_before_training(configure: Configure, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(configure(override))


def test_a_checkpoint_of_prompts_that_are_gone_is_refused(configure: Configure) -> None:
    trainer = ready(configure())
    state = trainer.train_dataloader.state_dict()
    state[integration.STATE]["keys"] = ["gone", *trainer.scheduler.keys[1:]]
    with pytest.raises(InputError, match=r"data.train_files: the state holds 1 prompts .* e.g. key gone"):
        trainer.train_dataloader.load_state_dict(state)
