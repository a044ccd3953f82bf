"""PacedTrainer inside verl: its registries, its loss path, its queue and its engine, on a Ray cluster without a GPU.

What stands in for what needs one: completions are sampled by our own sampler (verl's servers are vLLM's and SGLang's),
and `verl_on_cpu` tells verl of a CPU, on which its own FSDP2 engine trains.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
os.environ |= {
    "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu,pacedrl.integrations.verl",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}

import numpy as np
import ray
import torch
import transfer_queue as tq
import verl  # noqa: F401 - registers what the variable names
from datasets import Dataset
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.protocol import DataProto
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.losses import ppo_loss

import pacedrl.integrations.verl as integration
from pacedrl import Config, Trainer
from pacedrl.config import ModelConfig
from pacedrl.errors import InputError
from pacedrl.integrations.verl import PacedTrainer
from pacedrl.method import DifficultyScheduler, trajectory_balance
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, TransformersSampler
from pacedrl.seeding import derive_seed
from pacedrl.tasks.skills import skill_rows
from pacedrl.training.setup import build_scheduler
from pacedrl.types import Completion

pytestmark = pytest.mark.slow

PROMPTS, GROUP, NEW, ROOM = 4, 4, 12, 2
RATE = 2e-4
ROWS = [
    {
        "data_source": "skills",
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "reward_model": {"style": "rule", "ground_truth": row["answer"]},
        "extra_info": {"index": i},
    }
    for i, row in enumerate(skill_rows(size=48, seed=3))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template that says what the user says, as it was pretrained."""
    folder = tmp_path_factory.mktemp("model")
    policy = Policy.load(ModelConfig(), torch.device("cpu"))
    policy.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    Dataset.from_list(ROWS).to_parquet(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ["PACEDRL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)  # two for verl's queue
    yield
    ray.shutdown()


@pytest.fixture
def queue() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "examples/verl"), version_base=None):
        config = compose("paced").transfer_queue
    config.enable = True
    config.backend.SimpleStorage.num_data_storage_units = 1
    tq.init(config)
    yield
    tq.close()


Configure = Callable[..., Any]


@pytest.fixture(name="configure")
def _configure(tmp_path: Path, model: Path, data: Path) -> Configure:
    """examples/verl/paced.yaml, for the tiny model on a CPU, with further overrides."""

    def make(*overrides: str) -> Any:
        settings = {
            "data.train_files": data,
            "data.val_files": data,
            "data.train_batch_size": PROMPTS,
            "data.max_prompt_length": 64,
            "data.max_response_length": NEW,
            "data.dataloader_num_workers": 0,
            "data.filter_overlong_prompts": False,
            "actor_rollout_ref.model.path": model,
            "actor_rollout_ref.model.use_remove_padding": False,
            "actor_rollout_ref.model.enable_gradient_checkpointing": False,
            "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
            "actor_rollout_ref.actor.strategy": "fsdp2",
            "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS + ROOM,
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 512,
            "actor_rollout_ref.actor.optim.lr": RATE,
            "actor_rollout_ref.actor.optim.weight_decay": 0.0,
            "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
            "+actor_rollout_ref.actor.fsdp_config.mixed_precision": "{param_dtype: fp32, reduce_dtype: fp32}",
            "actor_rollout_ref.actor.checkpoint.save_contents": "[model, optimizer, extra, hf_model]",
            "actor_rollout_ref.rollout.n": GROUP,
            "trainer.n_gpus_per_node": 1,
            "trainer.device": "cpu",
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.save_freq": 2,
            "trainer.total_training_steps": 2,
            "trainer.default_local_dir": tmp_path / "verl",
        }
        with initialize_config_dir(str(ROOT / "examples/verl"), version_base=None):
            return compose("paced", [f"{name}={value}" for name, value in settings.items()] + list(overrides))

    return make


class Sampled:
    """verl's agent loops without its servers: completions of the initial policy, put into verl's queue by its own code.

    What it samples depends on the step and the prompt alone. With ``tools`` the second token of a prompt's first
    completion is not the policy's; ``logprobs`` False keeps the servers' log-probabilities back; with ``failing`` the
    first completion of the first prompt cannot be judged.
    """

    def __init__(
        self, trainer: PacedTrainer, model: Path, tools: bool = False, logprobs: bool = True, failing: bool = False
    ) -> None:
        self.trainer, self.tools, self.logprobs, self.failing = trainer, tools, logprobs, failing
        self.policy = Policy.load(ModelConfig(name=str(model)), torch.device("cpu"))
        self.steps: list[dict[tuple[int, ...], list[list[int]]]] = []
        worker_class = AgentLoopWorkerTQ.__ray_metadata__.modified_class
        self.worker = worker_class.__new__(worker_class)
        self.worker.processor = self.worker.reward_loop_worker_handles = None
        self.worker.distillation_enabled = False

    def generate_sequences(self, batch: TensorDict) -> None:
        step = self.trainer.global_steps
        prompts = [self.policy.encode(messages) for messages in batch["raw_prompt"]]
        seeds = [derive_seed(0, step, *ids) for ids in prompts]
        groups = dict(TransformersSampler(self.policy).sample(prompts, SamplingSettings(GROUP, NEW), seeds))
        self.steps.append({tuple(ids): [c.token_ids for c in groups[i]] for i, ids in enumerate(prompts)})
        for i, ids in enumerate(prompts):
            row = {key: tensordict_utils.unwrap_non_tensor_data(value) for key, value in batch[i].items()}
            failed = [0] if self.failing and i == 0 else []
            for session, completion in enumerate(groups[i]):
                if session in failed:
                    continue
                length = len(completion.token_ids)
                right = completion.text.strip() == row["reward_model"]["ground_truth"]
                output = AgentLoopOutput(
                    prompt_ids=ids,
                    response_ids=completion.token_ids,
                    response_mask=[int(not (self.tools and session == 0 and t == 1)) for t in range(length)],
                    response_logprobs=completion.logprobs if self.logprobs else None,
                    reward_score=float(right),
                    num_turns=2,
                    metrics=AgentLoopMetrics(),
                    extra_fields={"min_global_steps": step, "max_global_steps": step},
                )
                asyncio.run(self.worker._agent_loop_postprocess(output, validate=False, session_id=session, **row))
            tq.kv_put(key=row["uid"], partition_id="train", tag={"status": "failure" if failed else "finished"})


def built(config: Any, processes: int = 1) -> PacedTrainer:
    """The trainer with what verl's ``init`` gives it, less rollout servers; its engine in so many processes."""
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer._init_dump_executor()
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.checkpoint_manager = SimpleNamespace(update_weights=lambda step: None, sleep_replicas=lambda: None)
    trainer.distillation_config = None
    worker = RayClassWithInitArgs(ray.remote(ActorRolloutRefWorker), config=config.actor_rollout_ref, role="actor")
    pool = RayResourcePool([processes], use_gpu=False, max_colocate_count=1)
    trainer.actor_rollout_wg = RayWorkerGroup(pool, worker, device_name="cpu")
    trainer.actor_rollout_wg.init_model()
    trainer._load_checkpoint()
    trainer.on_init_end()
    return trainer


@pytest.fixture
def start(queue: None, configure: Configure, model: Path) -> Iterator[Callable[..., tuple[PacedTrainer, Sampled]]]:
    made: list[PacedTrainer] = []

    def make(*overrides: str, processes: int = 1, **options: Any) -> tuple[PacedTrainer, Sampled]:
        give_back(made)
        made.append(built(configure(*overrides), processes))
        return made[-1], Sampled(made[-1], model, **options)

    yield make
    give_back(made)


def give_back(trainers: list[PacedTrainer]) -> None:
    """End the workers of these trainers: the cluster has room for one's."""
    while trainers:
        group = trainers.pop().actor_rollout_wg
        for worker in group._workers:
            ray.kill(worker)
        for placement in group.resource_pool.get_placement_groups():
            ray.util.remove_placement_group(placement)


def weights(folder: Path) -> list[torch.Tensor]:
    """Of the policy saved there."""
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [parameter.detach() for parameter in saved.parameters()]


def trained(folder: Path, step: int) -> list[torch.Tensor]:
    """The weights in verl's checkpoint of a step."""
    return weights(folder / f"global_step_{step}/actor/huggingface")


def apart(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor], initial: Iterable[torch.Tensor]) -> float:
    """How far two policies trained from the same initial one are from one another, as a share of the way trained.

    Single weights say little: Adam turns the rounding of a gradient near 0 into a step.
    """
    one, two, start = (torch.cat([w.detach().flatten() for w in policy]) for policy in (first, second, initial))
    assert float((one - start).abs().max()) > RATE  # more than one step of Adam
    return float((one - two).norm() / (one - start).norm())


# The names that verl's configuration asks for.


def test_each_name_is_that_of_ours() -> None:
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
"""Tokens of prompt and response."""


def batch_of(rows: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Sequences as verl's workers get them, in double precision; the last is one verl fills up with."""
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
    """Loss and metrics of these sequences of the batch by verl's ``ppo_loss``, and the gradient, [tokens]."""
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
    """`trajectory_balance` of the same, with the gradient laid out like verl's."""
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
    """By verl's ``compute_advantage``; rewards on the last of 4 tokens, 2 or 4 of which are the policy's."""
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
    with pytest.raises(InputError, match=r"needs log Z: set trainer.v1.trainer_mode=paced too"):
        advantages_of([1.0], ["a"])
    monkeypatch.setattr(integration, "_scheduler", DifficultyScheduler(["a"], torch.ones(1, 4)))
    for reward in (-1.0, 2.0, float("nan")):
        with pytest.raises(InputError, match=rf"rewards in \[0, 1\].* but gave {reward:g}"):
            advantages_of([1.0, reward], ["a", "a"])


# Training: verl's own loop, queue and engine.


def ours(folder: Path, model: Path) -> Trainer:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tree = {
        "run": {"dir": str(folder / "ours"), "steps": 2, "device": "cpu"},
        "model": {"name": str(model)},
        "data": {"train": {"source": str(folder / "rows.jsonl"), "verifier": "exact"}},
        "sampling": {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_prompt_tokens": 64, "max_new_tokens": NEW},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
        "replay": {"capacity": ROOM * GROUP},
    }
    return Trainer(Config.model_validate(tree))


class Recorded:
    """A sampler that gives our trainer the completions that verl's loop trained on, a step at a time."""

    def __init__(self, policy: Policy, steps: list[dict[tuple[int, ...], list[list[int]]]]) -> None:
        self.policy = policy
        self.steps = steps

    def sync(self, policy: Policy) -> None: ...

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seeds: Sequence[int],
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        step = self.steps.pop(0)
        assert {tuple(ids) for ids in prompt_ids} == set(step)  # both have chosen the same prompts
        for i, prompt in enumerate(prompt_ids):
            completions = step[tuple(prompt)]
            with torch.no_grad():
                logprobs_BT, _, mask_BT = self.policy.logprobs([prompt] * len(completions), completions)
            yield (
                i,
                [
                    Completion(ids, row[mask].tolist(), self.policy.decode(ids), "length")
                    for ids, row, mask in zip(completions, logprobs_BT, mask_BT, strict=True)
                ],
            )


def recorded(scheduler: DifficultyScheduler, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[int]]:
    """What the scheduler will have observed, and how many completions it will have given to replay."""
    seen: list[Any] = []
    replayed: list[int] = []
    observe, replay = scheduler.observe, scheduler.replay
    monkeypatch.setattr(scheduler, "observe", lambda fresh: [seen.append(fresh), observe(fresh)][1])

    def counted() -> list[Any]:
        entries = replay()
        replayed.append(len(entries))
        return entries

    monkeypatch.setattr(scheduler, "replay", counted)
    return seen, replayed


def test_two_steps_are_those_of_our_trainer_on_the_same_completions(
    start: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ours(tmp_path, model)

    def as_configured(keys: list[str], embeddings_NH: torch.Tensor, **_: Any) -> DifficultyScheduler:
        torch.manual_seed(derive_seed(own.config.run.seed, "partition"))
        return build_scheduler(own.config, keys, embeddings_NH)

    monkeypatch.setattr(integration, "DifficultyScheduler", as_configured)
    trainer, sampled = start("trainer.logger=[file]")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    seen, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed[0] == 0 < replayed[1]
    assert [len(fresh.keys) for fresh in seen] == [PROMPTS * GROUP] * 2  # neither filling nor replayed ones
    after = trained(tmp_path / "verl", 2)
    own.sampler = own.actor.sampler = Recorded(own.policy, sampled.steps)
    own.train()
    assert apart(own.policy.parameters(), after, weights(model)) < 1e-3
    mine_N, theirs_N = own.scheduler.accuracy_estimates(), trainer.scheduler.accuracy_estimates()
    assert mine_N == pytest.approx(theirs_N, abs=1e-5)
    assert mine_N.std() > 1e-3  # fitted
    assert [e.token_ids for e in own.scheduler.replay()] == [e.token_ids for e in trainer.scheduler.replay()]
    assert len(own.scheduler.replay()) > 0
    logged = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    observed = [float(np.mean(fresh.reward_B)) for fresh in seen]
    assert [row["accuracy/observed_mean"] for row in logged] == pytest.approx(observed)
    assert [row["critic/score/mean"] for row in logged] == pytest.approx(observed)  # verl's own, of fresh ones alone
    assert logged[0]["actor/kl_old"] == pytest.approx(0.0, abs=1e-5)
    assert logged[0]["actor/delta_abs"] == pytest.approx(10.0, abs=1e-4)  # |r - 0.5| / beta
    assert abs(logged[1]["actor/kl_old"]) > 1e-3  # that of what was replayed


def test_a_resumed_run_goes_on_as_if_nothing_had_been(start: Any, tmp_path: Path) -> None:
    whole, sampled = start("trainer.total_training_steps=4", f"trainer.default_local_dir={tmp_path / 'whole'}")
    whole.fit(sampled)
    half, sampled = start(f"trainer.default_local_dir={tmp_path / 'half'}")
    half.fit(sampled)
    resume = ("trainer.total_training_steps=4", f"trainer.default_local_dir={tmp_path / 'half'}")
    resumed, sampled = start(*resume)
    assert resumed.scheduler.step == resumed.global_steps == 2
    resumed.fit(sampled)
    for a, b in zip(trained(tmp_path / "whole", 4), trained(tmp_path / "half", 4), strict=True):
        assert torch.equal(a, b)
    assert resumed.scheduler.accuracy_estimates().tolist() == whole.scheduler.accuracy_estimates().tolist()
    assert resumed.scheduler.replay() == whole.scheduler.replay() != []
    saved = tmp_path / "half/global_step_4/data.pt"
    torch.save({"_snapshot": {}}, saved)
    with pytest.raises(InputError, match=r"data.pt was not saved by PacedTrainer; resume from another"):
        resumed._load_checkpoint()
    saved.unlink()
    resumed.scheduler.step = 0
    with pytest.raises(InputError, match=r"the checkpoint of step 4 holds no data.pt, and so no scheduler"):
        resumed._load_checkpoint()


def test_two_processes_train_as_one_does(start: Any, tmp_path: Path, model: Path) -> None:
    schedulers = []
    for processes in (1, 2):
        trainer, sampled = start(f"trainer.default_local_dir={tmp_path / str(processes)}", processes=processes)
        trainer.fit(sampled)
        schedulers.append(trainer.scheduler)
    assert apart(trained(tmp_path / "1", 2), trained(tmp_path / "2", 2), weights(model)) < 1e-3
    one, two = schedulers
    assert one.accuracy_estimates() == pytest.approx(two.accuracy_estimates(), abs=1e-6)
    assert {e.token_ids for e in one.replay()} == {e.token_ids for e in two.replay()}


def test_under_bypass_the_servers_log_probabilities_are_mu(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, sampled = start("algorithm.rollout_correction.bypass_mode=true")
    seen, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed[1] > 0
    ids_of = dict(zip(trainer.prompt_ids, trainer.prompt_ids.values(), strict=True))
    for fresh in seen:  # of the second step too: the sampler keeps the initial policy, which is no longer the actor's
        prompts = [ids_of[key] for key in fresh.keys]
        with torch.no_grad():
            logprobs_BT, _, mask_BT = sampled.policy.logprobs(prompts, fresh.token_ids)
        for given, row, mask in zip(fresh.logprobs, logprobs_BT, mask_BT, strict=True):
            assert given == pytest.approx(row[mask].tolist(), abs=1e-5)


def test_without_the_servers_log_probabilities_it_trains_and_replays_too(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, sampled = start("actor_rollout_ref.rollout.calculate_log_probs=false", logprobs=False)
    _, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed[1] > 0
    assert trainer.scheduler.step == 2


def test_completions_with_a_tools_tokens_are_observed_and_not_replayed(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, sampled = start("actor_rollout_ref.actor.ppo_mini_batch_size=4", tools=True)
    assert trainer.scheduler.replay_buffer.entries.maxlen == 0  # no room is left
    seen, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed == [0, 0]
    for fresh in seen:
        assert len(fresh.reward_B) == PROMPTS * GROUP
        assert [ids is None for ids in fresh.token_ids].count(True) == PROMPTS


def test_what_nobody_could_judge_is_left_out(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, sampled = start("trainer.total_training_steps=1", "trainer.logger=[file]", failing=True)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    seen, _ = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    (fresh,) = seen
    assert len(fresh.keys) == PROMPTS * GROUP - 1
    assert fresh.keys.count(fresh.keys[0]) == GROUP - 1
    (logged,) = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # Every |δ| is (r - 0.5)/β = 10; δ² is averaged over the whole mini-batch, filled up as it is.
    assert logged["actor/pg_loss"] == pytest.approx(100.0 * 15 / ((PROMPTS + ROOM) * GROUP), rel=1e-4)
    assert logged["actor/delta_abs"] == pytest.approx(10.0, abs=1e-3)


# What needs no engine.


def ready(config: Any) -> PacedTrainer:
    trainer = PacedTrainer(config)
    trainer._init_tokenizer()
    trainer._init_dataloader()
    return trainer


def named(batch: TensorDict) -> list[str]:
    return list(tensordict_utils.get(batch, "uid"))


def test_each_batch_is_what_the_scheduler_names_then(configure: Configure) -> None:
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
        trainer.named.clear()
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


def test_a_scheduler_is_made_of_the_settings(configure: Configure) -> None:
    overrides = ("trainer.v1.paced.beta=0.1", "+trainer.v1.paced.cooldown_steps=3", "+trainer.v1.paced.seed=7")
    one, two = ready(configure(*overrides)), ready(configure(*overrides))
    assert (one.scheduler.learner.beta, one.scheduler.cooldown_steps, one.scheduler.seed) == (0.1, 3, 7)
    assert len(one.scheduler.keys) == len(ROWS)
    assert one.scheduler.replay_buffer.entries.maxlen == ROOM * GROUP
    state, again = (t.scheduler.learner.partition.state_dict() for t in (one, two))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert integration._scheduler is two.scheduler


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.adv_estimator=grpo", r"algorithm.adv_estimator: must be paced with PACED-RL, but is grpo"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla", r"loss_mode: must be paced .* but is vanilla"),
        ("algorithm.use_kl_in_reward=true", r"use_kl_in_reward: must be False .* but is True"),
        ("algorithm.rollout_correction.rollout_is=token", r"rollout_is: must be None .* but is token"),
        ("algorithm.filter_groups.enable=true", r"filter_groups.enable: must be False .* but is True"),
        ("data.train_batch_size=49", r"data.train_files: 49 prompts a step asked for, but there are only 48 different"),
        ("+trainer.v1.paced.cooldown=3", r"trainer.v1.paced: .*unexpected keyword argument 'cooldown'"),
        ("trainer.v1.paced.target_accuracy=1.5", r"trainer.v1.paced: target_accuracy must lie in \[0, 1\], got 1.5"),
    ],
)
def test_what_it_cannot_do_is_refused_before_training(configure: Configure, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(configure(override))


def test_a_checkpoint_of_prompts_that_are_gone_is_refused(configure: Configure) -> None:
    trainer = ready(configure())
    state = trainer.train_dataloader.state_dict()
    state[integration.STATE]["keys"] = ["gone", *trainer.scheduler.keys[1:]]
    with pytest.raises(InputError, match=r"data.train_files: the state holds 1 prompts .* e.g. key gone"):
        trainer.train_dataloader.load_state_dict(state)
