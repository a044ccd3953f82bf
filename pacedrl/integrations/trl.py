"""PACED-RL in TRL: its GRPOTrainer with prompts selected by estimated accuracy, trajectory balance, and replay.

    from trl import GRPOConfig
    from pacedrl.integrations.trl import PacedTrainer

    trainer = PacedTrainer(model, accuracy_reward, GRPOConfig(...), train_dataset=dataset)
    trainer.train()

TRL does everything else: models, peft, vLLM, reward functions, logging, checkpoints and several processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pacedrl.errors import InputError
from pacedrl.method import DifficultyScheduler, Rollouts, trajectory_balance
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.policy import Layer, Policy
from pacedrl.training.learner import replayed_completion
from pacedrl.training.state import load_state, save_state
from pacedrl.types import Completion, prompt_key

try:
    from accelerate.utils import broadcast_object_list, gather_object
    from datasets import Dataset
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from trl import GRPOTrainer
except ImportError as error:
    raise InputError(f'pacedrl.integrations.trl needs trl ({error}): pip install "pacedrl[trl]"') from None

SchedulerFactory = Callable[[list[str], Tensor], DifficultyScheduler]
"""Makes a scheduler from prompt keys and embeddings [N, H]."""
STATE = "scheduler"
"""Name of the scheduler's files in a checkpoint; `pacedrl.training.state` adds the suffixes."""
NOT_APPLIED = {"beta": 0.0, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "entropy_coef": 0.0}
"""Settings of GRPO's loss that have no effect here, with the values that turn them off. Other values are refused."""


class PacedTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer with PACED-RL (arXiv 2602.12642): selection, trajectory balance and replay.

    Before each generation the scheduler selects the prompts with its current estimates; only the data loader's length
    is used. The first reward function gives the verdict in [0, 1] whose mean is a prompt's accuracy. The other reward
    functions only shape the reward the policy is trained on. A completion with the reward None is left out.
    ``loss_type``, ``epsilon`` and ``scale_rewards`` have no effect. With vLLM, the behaviour policy's log-probabilities
    are vLLM's, and its importance sampling correction has no effect, because trajectory balance does not need it.

    The arguments are those of GRPOTrainer (``model``, ``reward_funcs``, ``args``, ``train_dataset`` and any other by
    name) and two more:

    Args:
        scheduler: makes the scheduler; the default uses the paper's settings. Other settings:
            ``functools.partial(DifficultyScheduler, partition="closed_form", cooldown_steps=3)``.
        layer: layer whose hidden states embed a prompt, ``middle`` or ``last``. With log Z in closed form, ``middle``
            ranks the prompts of a language model better.

    Raises InputError for a dataset that cannot be indexed or has too few prompts, for images and tools, and for
    settings of GRPO's loss that would have no effect.
    """

    _name = "PACED-RL"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Any = None,
        train_dataset: Any = None,
        *,
        scheduler: SchedulerFactory = DifficultyScheduler,
        layer: Layer = "last",
        **others: Any,
    ) -> None:
        super().__init__(model, reward_funcs, args, train_dataset, **others)
        self._refuse_what_has_no_effect()
        self.row_of = _rows_by_key(self.train_dataset)
        self.prompts_per_step = self.args.generation_batch_size // self.num_generations
        if len(self.row_of) < self.prompts_per_step:
            raise InputError(
                f"train_dataset: each generation needs {self.prompts_per_step} different prompts, but it has only "
                f"{len(self.row_of)}"
            )
        ids, _, _ = self._tokenize_prompts([self.train_dataset[row]["prompt"] for row in self.row_of.values()])
        self.prompt_ids = dict(zip(self.row_of, ids, strict=True))
        policy = Policy(self.accelerator.unwrap_model(self.model), self._tokenizer, self.accelerator.device)
        with policy.adapter_off():
            embeddings_NH = prompt_embeddings(policy, list(self.prompt_ids.values()), layer=layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)  # TRL seeds processes differently, but log Z must start the same in all
            self.scheduler = scheduler(list(self.row_of), embeddings_NH)

    def _refuse_what_has_no_effect(self) -> None:
        for name, nothing in NOT_APPLIED.items():
            if getattr(self.args, name) != nothing:
                raise InputError(
                    f"GRPOConfig.{name}: belongs to GRPO's loss and has no effect here, but is "
                    f"{getattr(self.args, name)}; remove it"
                )
        if not isinstance(self.train_dataset, Dataset):
            raise InputError(
                f"train_dataset: prompts are selected by index, so it must be a datasets.Dataset, not "
                f"{type(self.train_dataset).__name__}"
            )
        if self._is_vlm or self.tools or self.environment_factories is not None:
            raise InputError("PacedTrainer trains on single-turn text only: no images, tools or environments")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            evaluated: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return evaluated
        keys = self._select(len(inputs))
        batch = super()._generate_and_score_completions([self.train_dataset[self.row_of[key]] for key in keys])
        return self._batch(keys, batch)

    def _select(self, count: int) -> list[str]:
        """Return the prompt key of each of this process's completions; those of one prompt are adjacent."""
        chosen = [self.scheduler.select(self.prompts_per_step)]
        broadcast_object_list(chosen)
        keys = [key for key in chosen[0] for _ in range(self.num_generations)]
        first = self.accelerator.process_index * count
        return keys[first : first + count]

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> Tensor:
        rewards_BF: Tensor = super()._calculate_rewards(*arguments, **named)
        self._rewards_BF = rewards_BF
        return rewards_BF

    def _batch(self, keys: list[str], batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch to train on: fresh completions, this process's share of the replayed ones, and blank ones.

        Completions without tokens have the weight 0. They stand for those that could not be judged, and bring the
        micro-batches to equal size.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        rewards_BF = self._rewards_BF[rank * len(keys) :][: len(keys)].cpu().double()
        verdict_B = self._verdicts(rewards_BF)
        total_B = (rewards_BF * self.reward_weights.cpu()).nansum(dim=1)
        advantage_B = self.scheduler.advantage(keys, total_B.numpy()).tolist()
        anchors = batch.get("sampling_per_token_logps", batch.get("old_per_token_logps"))
        self._fresh: list[Completion] = []
        for i, (key, verdict) in enumerate(zip(keys, verdict_B, strict=True)):
            completion = Completion([], [], reward=verdict, key=key, prompt_ids=self.prompt_ids[key])
            if verdict is not None:
                kept = batch["completion_mask"][i].bool()
                # TRL masks out every token of a truncated completion if it is told to.
                completion.token_ids = batch["completion_ids"][i][kept].tolist()
                completion.advantage = advantage_B[i] if completion.token_ids else 0.0
                completion.anchor_logprobs = None if anchors is None else anchors[i][kept].tolist()
            self._fresh.append(completion)
        replayed = self.scheduler.replay()
        again_M = self.scheduler.advantage([e.key for e in replayed], [e.reward for e in replayed]).tolist()
        replays = [replayed_completion(entry, self.prompt_ids[entry.key]) for entry in replayed]
        for completion, advantage in zip(replays, again_M, strict=True):
            completion.advantage = advantage
        # Sequences per optimiser step and process: gradients are averaged over processes.
        trained = sum(gather_object([sum(bool(completion.token_ids) for completion in self._fresh)])) + len(replays)
        steps = self.args.steps_per_generation / self.args.gradient_accumulation_steps
        self._sequences = max(trained / processes / steps, 1.0)
        every = [*self._fresh, *replays[rank::processes]]
        blank = Completion([], [], prompt_ids=self._fresh[0].prompt_ids)
        return self._tensors([*every, *[blank] * (-len(every) % self.args.steps_per_generation)])

    def _verdicts(self, rewards_BF: Tensor) -> list[float | None]:
        """Return the rewards of the first reward function; None where it returned None."""
        verdict_B = [None if math.isnan(value) else value for value in rewards_BF[:, 0].tolist()]
        wrong = [value for value in verdict_B if value is not None and not 0.0 <= value <= 1.0]
        if wrong:
            raise InputError(
                f"reward_funcs: the first, {self.reward_func_names[0]}, must return rewards in [0, 1], whose mean "
                f"is the accuracy, but returned {wrong[0]:g}"
            )
        return verdict_B

    def _tensors(self, batch: Sequence[Completion]) -> dict[str, Tensor]:
        pad_id = self._tokenizer.pad_token_id

        def padded(sequences: Sequence[Sequence[float]], value: float, dtype: torch.dtype, side: str) -> Tensor:
            tensors = [torch.tensor(sequence, dtype=dtype) for sequence in sequences]
            return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

        prompts, completions = [c.prompt_ids for c in batch], [c.token_ids or [pad_id] for c in batch]
        unknown = [[math.nan] * len(ids) for ids in completions]  # the current policy's value takes its place
        anchors = [c.anchor_logprobs or nan for c, nan in zip(batch, unknown, strict=True)]
        tensors = {
            "prompt_ids": padded(prompts, pad_id, torch.long, "left"),
            "prompt_mask": padded([[1] * len(ids) for ids in prompts], 0, torch.long, "left"),
            "completion_ids": padded(completions, pad_id, torch.long, "right"),
            "completion_mask": padded([[1] * len(ids) for ids in completions], 0, torch.long, "right"),
            "anchor_logps": padded(anchors, math.nan, torch.float32, "right"),
            "advantages": torch.tensor([c.advantage for c in batch]),
            "weight": torch.tensor([float(bool(c.token_ids)) for c in batch]),
            "number": torch.arange(len(batch)),
        }
        return {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        if "number" not in inputs:  # an evaluation batch
            evaluated: Tensor = super()._compute_loss(model, inputs)
            return evaluated
        ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        logprobs_BT, entropy_BT, _ = self._get_per_token_logps_and_entropies(
            model, ids_BL, attention_BL, inputs["completion_ids"].shape[1], compute_entropy=True
        )
        anchor_BT = torch.where(inputs["anchor_logps"].isnan(), logprobs_BT.detach(), inputs["anchor_logps"])
        mask_BT = inputs["completion_mask"].bool() & (inputs["weight"] > 0)[:, None]
        loss, metrics = trajectory_balance(logprobs_BT, anchor_BT, mask_BT, inputs["advantages"], self._sequences)
        self._remember(inputs["number"].tolist(), logprobs_BT.detach(), anchor_BT, mask_BT)
        logged = {"delta_abs": metrics["objective/delta_abs"] * self.current_gradient_accumulation_steps}
        logged["entropy"] = (entropy_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)
        for name, value in logged.items():
            self._metrics["train"][name].append(self.accelerator.gather(value).mean().item())
        return loss

    def _remember(self, numbers: list[int], logprobs_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> None:
        """Fill in log μ and the log-ratio of the fresh completions, for `_observe`."""
        log_ratio_B = ((logprobs_BT - anchor_BT) * mask_BT).sum(dim=1).tolist()
        for i, number in enumerate(numbers):
            if number < len(self._fresh) and bool(mask_BT[i].any()):
                self._fresh[number].logprobs = anchor_BT[i][mask_BT[i]].tolist()
                self._fresh[number].log_ratio = log_ratio_B[i]

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss: Tensor = super().training_step(*arguments, **named)
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            self._observe()
        return loss

    def _observe(self) -> None:
        """Show the completions of all processes to this process's scheduler, so that all schedulers stay equal."""
        seen = [
            (
                c.key,
                math.nan if c.reward is None else c.reward,
                c.log_ratio or 0.0,
                None if c.log_ratio is None else c.token_ids,
                c.logprobs,
            )
            for c in self._fresh
        ]
        keys, verdicts, log_ratios, token_ids, logprobs = zip(*gather_object(seen), strict=True)
        metrics = self.scheduler.observe(Rollouts(keys, verdicts, log_ratios, token_ids, logprobs))
        for name, value in metrics.items():
            if not math.isnan(value):
                self._metrics["train"][name].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_state(folder, STATE, self.scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            try:
                state = load_state(Path(checkpoint), STATE)
            except FileNotFoundError:
                raise InputError(
                    f"{checkpoint}: contains no {STATE}.json, so PacedTrainer did not save it, or not completely; "
                    "resume from another checkpoint"
                ) from None
            self.scheduler.load_state_dict(state)


def _rows_by_key(dataset: Any) -> dict[str, int]:
    """Map a hash of each distinct row's content to the index of its first occurrence."""
    rows: dict[str, int] = {}
    for i, row in enumerate(dataset):
        rows.setdefault(prompt_key(row["prompt"], {name: value for name, value in row.items() if name != "prompt"}), i)
    return rows
