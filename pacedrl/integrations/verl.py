"""PACED-RL in verl: its PPO trainer on Ray with prompts selected by estimated accuracy, trajectory balance, and replay.

    VERL_USE_EXTERNAL_MODULES=pacedrl.integrations.verl python -m verl.trainer.main_ppo \\
        trainer.v1.trainer_mode=paced algorithm.adv_estimator=paced \\
        actor_rollout_ref.actor.policy_loss.loss_mode=paced ...

The variable makes every process that imports verl also import this module, which registers an advantage estimator, a
policy loss and a trainer under the name ``paced``. On a running cluster, set it in the job's environment,
``ray_kwargs.ray_init.runtime_env.env_vars``. `examples/verl` contains a configuration and a launch script.

verl does everything else: engines (FSDP, Megatron), rollout servers (vLLM, SGLang), rewards, logging and checkpoints.
Shapes: ``_B`` sequences, ``_T`` completion tokens (padded on the right), ``_N`` all prompts, ``_H`` hidden features.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from pacedrl.config import ModelConfig
from pacedrl.errors import InputError
from pacedrl.method import DifficultyScheduler, ReplayBuffer, ReplayEntry, Rollouts, sequence_log_ratio
from pacedrl.method import trajectory_balance as balance
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Layer, Policy
from pacedrl.types import prompt_key

try:
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss
    from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
    from verl.utils import tensordict_utils
    from verl.utils.dataset.rl_dataset import collate_fn
    from verl.utils.fs import copy_to_local
    from verl.utils.tokenizer.chat_template import apply_chat_template
except ImportError as error:
    raise InputError(f'pacedrl.integrations.verl needs verl ({error}): pip install "pacedrl[verl]"') from None

NAME = "paced"
STATE = "pacedrl_scheduler"
"""Key of the scheduler's state in ``data.pt`` of verl's checkpoints."""
REQUIRED = {
    "algorithm.adv_estimator": NAME,
    "actor_rollout_ref.actor.policy_loss.loss_mode": NAME,
    "algorithm.use_kl_in_reward": False,
    "algorithm.filter_groups.enable": False,
    "algorithm.rollout_correction.rollout_is": None,
    "algorithm.rollout_correction.rollout_rs": None,
    "trainer.critic_warmup": 0,
}
"""Settings of verl and the only value of each that fits the method: accuracy is the mean raw reward of every group,
trajectory balance needs no importance weights, and there is no critic."""

_scheduler: DifficultyScheduler | None = None
"""The scheduler of this process's trainer. It is global because verl passes no trainer to advantage estimators."""


@register_adv_est(NAME)  # type: ignore[untyped-decorator]
def advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Return A = r/β − log Z(x) of each sequence on all of its tokens, as both advantages and returns, [B, T].

    Args:
        token_level_rewards: [B, T]; they sum to the sequence's raw reward r in [0, 1].
        response_mask: [B, T]; sequences without a token, with which verl pads batches, get the advantage 0.
        index: verl's uids [B], which `PacedTrainer` sets to the prompts' keys.
        config: unused.

    Raises InputError for a reward outside [0, 1] and without a running `PacedTrainer`.
    """
    if _scheduler is None:
        raise InputError(f"algorithm.adv_estimator: {NAME} needs log Z: also set trainer.v1.trainer_mode={NAME}")
    reward_B = token_level_rewards.sum(dim=1)
    wrong = [float(reward) for reward in reward_B if not 0.0 <= reward <= 1.0]
    if wrong:
        raise InputError(
            f"the reward function must return rewards in [0, 1], whose mean is the accuracy, but returned {wrong[0]:g}"
        )
    real = response_mask.any(dim=1).nonzero()[:, 0]
    advantage_B = torch.zeros_like(reward_B)
    advantage_B[real] = _scheduler.advantage([index[i] for i in real.tolist()], reward_B[real]).to(reward_B)
    advantage_BT = advantage_B[:, None] * response_mask
    return advantage_BT, advantage_BT


@register_policy_loss(NAME)  # type: ignore[untyped-decorator]
def trajectory_balance(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean of δ² over sequences (`pacedrl.method.trajectory_balance`) with verl's signature.

    Like verl's own losses, the mean counts the sequences that pad the mini-batch. This is a constant factor, to which
    Adam is invariant.

    Args:
        old_log_prob: log μ [B, T], computed by the actor at the start of the step or, with
            ``algorithm.rollout_correction.bypass_mode``, by the rollout server.
        log_prob: log π_θ [B, T].
        advantages: [B, T]; A on every token of a sequence.
        response_mask: [B, T].
        loss_agg_mode: no effect, because δ² belongs to a whole sequence.
        config: gives the size of the whole batch and the number of data-parallel processes.
        rollout_is_weights: no effect; the trainer refuses the setting that creates them.

    Returns:
        The loss and two metrics, means over the sequences including replayed ones: |δ| (``actor/delta_abs``) and
        log μ − log π_θ, an estimate of KL(μ‖π_θ) (``actor/kl_old``).
    """
    mask_BT = response_mask.bool()
    first_B1 = mask_BT.int().argmax(dim=1, keepdim=True)
    advantage_B = (advantages.gather(1, first_B1) * mask_BT.gather(1, first_B1))[:, 0]
    whole = config.global_batch_info if config is not None else {}
    size = whole.get("global_batch_size")
    # Each data-parallel process has a share of the batch, and their gradients are averaged.
    normalizer = None if size is None else size / whole.get("dp_size", 1)
    loss, _ = balance(log_prob, old_log_prob, mask_BT, advantage_B, normalizer)
    log_ratio_B = sequence_log_ratio(log_prob.detach(), old_log_prob, mask_BT)
    count = max(int(mask_BT.any(dim=1).sum()), 1)
    return loss, {
        "actor/delta_abs": float((log_ratio_B - advantage_B).abs().sum()) / count,
        "actor/kl_old": -float(log_ratio_B.sum()) / count,
    }


@register_trainer(NAME)
class PacedTrainer(PPOTrainerSync):  # type: ignore[misc]
    """verl's synchronous trainer with PACED-RL (arXiv 2602.12642): selection, trajectory balance and replay.

    The scheduler runs in verl's driver process. Before each generation it selects the prompts with its current
    estimates; verl's data loader, whose workers prefetch rows, is not used. ``trainer.v1.paced`` contains arguments of
    `pacedrl.method.DifficultyScheduler` by name, and ``layer``, the layer whose hidden states embed a prompt
    (``middle`` or ``last``); the defaults are the paper's settings.

    log Z is fitted with a log-ratio of 0, because verl's actor does not return the log-probabilities of single
    sequences from its update; at the start of a step π_θ = π_old. With ``bypass_mode``, μ is the rollout server's, and
    the fit neglects the difference between server and actor.

    Replayed completions take the sequences by which ``actor.ppo_mini_batch_size`` exceeds ``data.train_batch_size``
    (verl allows this with ``actor.use_dynamic_bsz``), so that a batch is still one optimiser step. With 8 completions
    per prompt, the sizes 144 and 128 leave room for the paper's 128 sequences. With equal sizes there is no replay.
    Replayed completions keep the μ of their sampling, and log Z is not fitted to them. Multi-turn completions are not
    replayed. verl's metrics of rewards, lengths and advantages exclude replayed completions; ``actor/entropy``,
    ``rollout_corr/…`` and ``training/rollout_probs_diff…`` include them.

    Departures from `pacedrl.training`: verl drops a completion whose reward function fails, so it is not counted
    anywhere, and each output of an agent loop with several outputs counts as a completion. verl's asynchronous trainers
    are not supported: this class extends the synchronous one. Its older trainer (``use_v1=False``) is not
    supported either: although only it calls a dataset's ``on_batch_end``, its workers have fetched the next rows by
    then.

    Raises InputError for settings that the method excludes, for models with other inputs than text, for too few
    prompts, and for checkpoints without a scheduler.
    """

    def __init__(self, config: Any) -> None:
        for name, value in REQUIRED.items():
            if OmegaConf.select(config, name) != value:
                raise InputError(f"{name}: must be {value} with PACED-RL, but is {OmegaConf.select(config, name)}")
        super().__init__(config)

    def _build_replay_buffer(self) -> Any:
        """Build verl's queue of finished rollouts."""
        # verl checks this name to recognise a synchronous trainer. The registered name is no longer needed here.
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        if self.processor is not None:
            raise InputError("actor_rollout_ref.model.path: PacedTrainer trains on text, but this model is multimodal")
        self.row_of: dict[str, int] = {}
        self.prompt_ids: dict[str, list[int]] = {}
        """Token ids of each prompt, as verl's agent loop computes them."""
        options = OmegaConf.to_container(self.config.data.get("apply_chat_template_kwargs") or OmegaConf.create())
        for i in range(len(self.train_dataset)):
            row = self.train_dataset[i]
            key = prompt_key(row["raw_prompt"], [row.get("data_source"), row.get("reward_model")])
            if key not in self.row_of:
                self.row_of[key] = i
                self.prompt_ids[key] = list(apply_chat_template(self.tokenizer, row["raw_prompt"], **options))
        wanted = self.config.data.train_batch_size
        if len(self.row_of) < wanted:
            raise InputError(
                f"data.train_files: each step needs {wanted} different prompts, but there are only {len(self.row_of)}"
            )
        self.scheduler = self._make_scheduler()
        # verl saves and loads its data loader's state; the scheduler takes that place.
        self.train_dataloader = _SavedScheduler(self.scheduler)
        global _scheduler
        _scheduler = self.scheduler

    def _make_scheduler(self) -> DifficultyScheduler:
        model = self.config.actor_rollout_ref.model
        # The task requests no CPU: in a small cluster verl's queue may hold all of them, and the task would wait
        # forever.
        embed = ray.remote(num_cpus=0, num_gpus=min(1, ray.cluster_resources().get("GPU", 0)))(_embeddings)
        settings = OmegaConf.to_container(self.config.trainer.v1.get(NAME) or OmegaConf.create())
        layer = settings.pop("layer", "last")
        if layer not in get_args(Layer):
            raise InputError(f"trainer.v1.{NAME}.layer: must be middle or last, got {layer!r}")
        embeddings_NH = ray.get(
            embed.remote(model.path, model.get("trust_remote_code", False), list(self.prompt_ids.values()), layer)
        )
        room = self.config.actor_rollout_ref.actor.ppo_mini_batch_size - self.config.data.train_batch_size
        replay = ReplayBuffer(capacity=max(room, 0) * self.config.actor_rollout_ref.rollout.n)
        torch.manual_seed(settings.get("seed", 0))  # log Z's initial weights
        try:
            settings = {"group_size": self.config.actor_rollout_ref.rollout.n} | settings
            return DifficultyScheduler(list(self.row_of), embeddings_NH, replay=replay, **settings)
        except (TypeError, ValueError) as error:
            raise InputError(f"trainer.v1.{NAME}: {error}") from None

    def _fetch_one_gen_batch(self) -> Any:
        """Return the prompts that the scheduler selects, with their keys as uids; a step has no prompt twice."""
        count = self.config.data.get("gen_batch_size") or self.config.data.train_batch_size
        keys = self.scheduler.take(count)
        batch = collate_fn([self.train_dataset[self.row_of[key]] for key in keys])
        batch["uid"] = np.array(keys, dtype=object)
        return tensordict_utils.get_tensordict(batch)

    def _balance_batch(self, batch: Any, metrics: dict[str, Any], **options: Any) -> Any:
        """Add the replayed completions before verl pads the batch."""
        self.replayed: dict[str, ReplayEntry] = {}
        entries = self.scheduler.replay()
        if entries:
            batch = self._joined(batch, entries)
        return super()._balance_batch(batch, metrics, **options)

    def _joined(self, batch: Any, entries: list[ReplayEntry]) -> Any:
        """Put the entries into verl's queue, with the batch's first row as template, and return the extended batch."""
        first = tq.kv_batch_get(keys=batch.keys[:1], partition_id=batch.partition_id)[0]
        blank, blank_tag = construct_minimal_padding_template(first, batch.tags[0], self.tokenizer.eos_token_id)
        rows, tags = [], []
        for i, entry in enumerate(entries):
            prompt = torch.tensor(self.prompt_ids[entry.key])
            response = torch.tensor(entry.token_ids)
            ids = torch.cat([prompt, response])
            reward_T = torch.zeros(len(response))
            reward_T[-1] = entry.reward
            row = blank | {
                "uid": entry.key,
                "prompts": prompt,
                "responses": response,
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)),
                "response_mask": torch.ones_like(response),
                "loss_mask": torch.ones_like(response),
                "rm_scores": reward_T,
                "rollout_log_probs": torch.tensor(entry.logprobs),
            }
            rows.append(row)
            # verl excludes rows tagged as padding from its metrics, which are meant for fresh completions.
            lengths = {"prompt_len": len(prompt), "response_len": len(response), "seq_len": len(ids)}
            tags.append(blank_tag | lengths)
            self.replayed[f"{entry.key}_{self.config.actor_rollout_ref.rollout.n + i}_0"] = entry
        fields = tensordict_utils.list_of_dict_to_tensordict(rows)
        tq.kv_batch_put(keys=list(self.replayed), partition_id=batch.partition_id, fields=fields, tags=tags)
        keys, tags = [*batch.keys, *self.replayed], [*batch.tags, *tags]
        return tq.KVBatchMeta(keys, tags, batch.partition_id, batch.fields, batch.extra_info)

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Compute log μ of fresh completions as verl does; replayed ones keep the values of their sampling."""
        batch = super()._compute_old_log_prob(batch, metrics)
        if self.replayed:
            logprobs = [torch.tensor(entry.logprobs) for entry in self.replayed.values()]
            nested = torch.nested.as_nested_tensor(logprobs, layout=torch.jagged)
            fields = TensorDict({"old_log_probs": nested}, batch_size=len(logprobs))
            tq.kv_batch_put(keys=list(self.replayed), partition_id=batch.partition_id, fields=fields)
        return batch

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._update_actor(batch, metrics)
        metrics.update(self._observe(batch))
        return batch

    def _observe(self, batch: Any) -> dict[str, float]:
        place = {key: i for i, key in enumerate(self.scheduler.leased())}

        def order(row: str) -> tuple[int, int, int]:
            key, session, output = row.rsplit("_", 2)
            return place[key], int(session), int(output)

        # Sorted by the order of selection, because the fit depends on the order and verl's order varies.
        rows = [row for row, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        fresh = sorted(rows, key=order)
        fields = ["uid", "prompts", "responses", "response_mask", "rm_scores", "old_log_probs"]
        data = tq.kv_batch_get(keys=fresh, partition_id=batch.partition_id, select_fields=fields)
        keys = tensordict_utils.get(data, "uid")
        prompts, responses, masks, rewards, logprobs = (data[name].unbind() for name in fields[1:])
        # A multi-turn completion contains tokens that the policy did not sample, so replay would need verl's mask.
        whole = [
            bool(mask.all()) and prompt.tolist() == self.prompt_ids[key]
            for key, prompt, mask in zip(keys, prompts, masks, strict=True)
        ]
        observed = self.scheduler.observe(
            Rollouts(
                keys,
                [float(reward_T.sum()) for reward_T in rewards],
                token_ids=[ids.tolist() if kept else None for ids, kept in zip(responses, whole, strict=True)],
                logprobs=[logprobs_T.tolist() for logprobs_T in logprobs],
            )
        )
        return {name: value for name, value in observed.items() if not math.isnan(value)}

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps > 0 and self.scheduler.step == 0:
            raise InputError(
                f"the checkpoint of step {self.global_steps} has no data.pt, and so no scheduler; resume from another"
            )


class _SavedScheduler:
    """Stands in for verl's data loader, so that a checkpoint's ``data.pt`` contains the scheduler's state."""

    def __init__(self, scheduler: DifficultyScheduler) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        return {STATE: self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scheduler's state; raise InputError for the state of a data loader and for prompts that are gone."""
        if STATE not in state:
            raise InputError("the checkpoint's data.pt was not saved by PacedTrainer; resume from another")
        try:
            self.scheduler.load_state_dict(state[STATE])
        except ValueError as error:
            raise InputError(f"data.train_files: {error}") from None


def _embeddings(model: str, trust_remote_code: bool, prompt_ids: list[list[int]], layer: Layer) -> Tensor:
    """Return the prompts' embeddings [N, H] on the CPU; runs as a Ray task, with a GPU if the cluster has one."""
    config = ModelConfig(name=copy_to_local(model), trust_remote_code=trust_remote_code)
    return prompt_embeddings(Policy.load(config, resolve_device("auto")), prompt_ids, layer=layer)
