"""Shared by the tests of PacedTrainer in verl: a Ray cluster without a GPU, configurations, trainers, completions.

What stands in for what needs one: completions are sampled by our own sampler (verl's servers are vLLM's and SGLang's),
and `verl_on_cpu` tells verl of a CPU, on which its own FSDP2 engine trains. Importing this tells verl so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
os.environ |= {
    "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu,pacedrl.integrations.verl",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}

import ray
import torch
import transfer_queue as tq
import verl  # noqa: F401 - registers what the variable names
from datasets import Dataset
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls
from verl.utils import tensordict_utils
from verl.workers.engine_workers import ActorRolloutRefWorker

from pacedrl.config import ModelConfig
from pacedrl.integrations.verl import PacedTrainer
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, TransformersSampler
from pacedrl.seeding import derive_seed
from pacedrl.tasks.skills import skill_rows

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
    """Return the tiny model with a chat template that passes the user's text unchanged, as in pretraining."""
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
    """Return examples/verl/paced.yaml for the tiny model on a CPU, with further overrides."""

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
    """verl's agent loops without servers: verl's own code puts completions of the initial policy into its queue.

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
    """Return the trainer as verl's ``init`` sets it up, without rollout servers and with this many engine processes."""
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
    """End the workers of these trainers, because the cluster has room for one trainer's workers."""
    while trainers:
        group = trainers.pop().actor_rollout_wg
        for worker in group._workers:
            ray.kill(worker)
        for placement in group.resource_pool.get_placement_groups():
            ray.util.remove_placement_group(placement)


def weights(folder: Path) -> list[torch.Tensor]:
    """Return the weights of the policy saved there."""
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [parameter.detach() for parameter in saved.parameters()]


def trained(folder: Path, step: int) -> list[torch.Tensor]:
    """Return the weights in verl's checkpoint of a step."""
    return weights(folder / f"global_step_{step}/actor/huggingface")


def apart(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor], initial: Iterable[torch.Tensor]) -> float:
    """Return the distance between two policies trained from the same start, relative to the distance trained.

    Single weights say little: Adam turns the rounding of a gradient near 0 into a step.
    """
    one, two, start = (torch.cat([w.detach().flatten() for w in policy]) for policy in (first, second, initial))
    assert float((one - start).abs().max()) > RATE  # more than one step of Adam
    return float((one - two).norm() / (one - start).norm())
