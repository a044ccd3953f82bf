"""The training loop.

prompts  = scheduler.take(P)
groups   = sample(prompts, G); score(groups)     with sampling.ahead: those of the next step, during this one's update
kept     = gate(groups)                          may drop some and ask for more
replayed = scheduler.replay()
update   = learner.update(kept, replayed, advantages of the objective)
scheduler.observe(groups, update.log_ratio)      fits Z, counts, admits to replay
log; evaluate; checkpoint
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pacedrl.config import Config, dump_config
from pacedrl.distributed.ranks import connect
from pacedrl.distributed.scheduler import Scheduler, shared
from pacedrl.evaluation.evaluate import evaluate
from pacedrl.evaluation.tables import headline
from pacedrl.interrupt import Interrupted, InterruptGuard
from pacedrl.policy.cpu import keep_freed_memory
from pacedrl.policy.determinism import deterministic, reserve_workspace
from pacedrl.policy.loading import adapter_note, resolve_device
from pacedrl.policy.passes import sequence_logprobs, true_accuracies
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.collect import Collected, Collector
from pacedrl.rollouts.engines import build_sampler, evaluation_settings
from pacedrl.rollouts.gold import require_some_gold
from pacedrl.rollouts.tasks import (
    encode_tasks,
    load_tasks,
    require_enough_prompts,
    require_oracle_tasks,
    reward_parts,
    unique_prompts,
)
from pacedrl.rollouts.verdicts import commonest_error, require_judged
from pacedrl.seeding import derive_seed
from pacedrl.stopwatch import Stopwatch
from pacedrl.tasks.pool import VerifierPool
from pacedrl.training.alarms import Alarms
from pacedrl.training.budget import ends_at, evaluation_due, steps_at_most
from pacedrl.training.checkpoint import STATE_FORMAT, load_checkpoint_state, load_optimizer_states, save_checkpoint
from pacedrl.training.curriculum import build_scheduler, initial_embeddings
from pacedrl.training.learner import Learner, fresh_rollouts, replayed_rollouts, training_batch
from pacedrl.training.metrics import group_row, rollout_metrics, sample_rows
from pacedrl.training.objectives import build_objective
from pacedrl.training.objectives.base import Objective
from pacedrl.training.pending import dump_collected, load_collected
from pacedrl.training.resume import claim, prompt_fingerprints, refuse_foreign
from pacedrl.training.run_folder import RunFolder
from pacedrl.training.trackers import require_trackers, tracking
from pacedrl.types import Completion, Group
from pacedrl.view import View


class TrainingStopped(Exception):
    """Training cannot continue; the state was saved. The message says why and what to change."""


@dataclass(frozen=True)
class Summary:
    """How a run ended. ``evals`` are the rows of eval.jsonl; the first is from before training."""

    run_dir: Path
    step: int
    rollouts: int
    interrupted: bool
    evals: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Post-trains a model as its configuration says. If the run folder holds a checkpoint, the run is resumed.

    The constructor loads everything and checks the input; `train` runs the loop. Nothing is written to the folder until
    the input has passed all checks. With several processes (`pacedrl.distributed`) each builds a trainer.

    Raises InputError for bad input.
    """

    def __init__(self, config: Config, view: View | None = None) -> None:
        self.config = config
        self.ranks = connect()
        self.view = view or View(quiet=not self.ranks.main)
        self.ranks.run_on_main(lambda: require_trackers(config))
        self.folder = RunFolder(config, writes=self.ranks.main)
        with ExitStack() as undo:
            undo.callback(self.folder.release, abandon=True)
            self._saved = claim(self.folder, self.ranks, self.view)
            self._load()
            undo.callback(self.pool.close)
            if config.verifier.check_gold:
                require_some_gold(self.pool, [*self.train_tasks, *self.eval_tasks])
            self._build_or_resume()
            undo.pop_all()  # no error: folder and pool stay open until training ends

    def _load(self) -> None:
        """Load the data and the model, and create the verifier pool."""
        config = self.config
        if config.run.deterministic:
            reserve_workspace()
        device = resolve_device(config.run.device)
        keep_freed_memory()
        train, held_out = load_tasks(config)
        torch.manual_seed(derive_seed(config.run.seed, "initialisation"))
        self.policy = Policy.load(config.model, device)
        if (note := adapter_note(config.model.name)) is not None:
            self.view.warn(note)
        self.pending: Collected | None = None
        """The next step's groups, if they were sampled ahead."""
        encoded = encode_tasks(self.policy, [*train, *held_out], config)
        self.train_tasks, self.eval_tasks = encoded[: len(train)], encoded[len(train) :]
        self.reward_parts = reward_parts(config, self.train_tasks)
        self.prompts = {prompt.key: prompt for prompt in unique_prompts(self.train_tasks)}
        self.fingerprints = prompt_fingerprints(self.train_tasks)
        require_enough_prompts(config, len(self.prompts))
        require_oracle_tasks(config, self.train_tasks)
        self.pool = VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib)

    def train(self) -> Summary:
        """Train until ``run.steps`` or ``run.max_rollouts``, or until Ctrl-C, which saves the last complete step.

        Raises TrainingStopped after three steps in a row with a loss that is not finite, or without any verdict.
        """
        interrupted = False
        try:
            self._began = self.step
            self.folder.open_at(self.step)
            self.evaluated = (-1, 0)
            for row in self.ranks.broadcast(self.folder.rows("eval.jsonl")[-1:]):
                self.evaluated = (row["step"], row["rollouts/generated"])
            self.view.start(self.step, steps_at_most(self.config, self.step, self.rollouts))
            with InterruptGuard() as self.guard, tracking(self.config, self.step) as self.track:
                self._loop()
        except Interrupted:
            interrupted = True
            self._release_unfinished()
            self._save()
        finally:
            self.view.stop()
            self.pool.close()
            self.folder.release()
        return Summary(self.folder.path, self.step, self.rollouts, interrupted, self.folder.rows("eval.jsonl"))

    def _loop(self) -> None:
        while True:
            if self.ranks.count > 1 and any(self.ranks.gather(self.guard.requested)):
                raise Interrupted
            if self._evaluation_due():
                self._evaluate()
            if self._finished:
                return
            self._step()
            stop = self.alarms.must_stop
            if stop or self._finished or self.step % self.config.checkpoint.every == 0:
                self._save()
            if stop:
                why, remedy = stop
                raise TrainingStopped(f"{why}; the state of step {self.step} is saved in {self.folder.path}. {remedy}")

    def _step(self) -> None:
        clock = Stopwatch()
        collected = self.pending or self._collect()
        if self.step == self._began:  # later in a run, one bad reward must not lose hours of work
            require_judged(collected.sampled, self.collector.tasks)
        clock.seconds |= collected.seconds
        with self._ahead(collected) as following:
            with clock.phase("update"):
                replayed = self.scheduler.replay()
                batch = training_batch(
                    collected.kept,
                    replayed,
                    self.prompts,
                    self.objective,
                    self.scheduler,
                    self.config.replay.anchor,
                    self._reference_logprobs if self.config.objective.needs_reference else None,
                )
                with deterministic(self.config.run.deterministic):
                    update = self.learner.update(batch, self.step, self._tick)
            with clock.phase("wait"):
                self.pending = following()
        keys = [group.prompt.key for group in collected.sampled]
        for group, estimate in zip(collected.sampled, self.scheduler.accuracy_estimate(keys).tolist(), strict=True):
            group.accuracy_estimate = estimate
        pool = self.scheduler.pool()
        with clock.phase("observe"):
            again = [completion for completion in batch if completion.replayed]
            # The results do not name their policy step, because with sampling.ahead all of them have the same age.
            with deterministic(self.config.run.deterministic):
                observed = self.scheduler.observe(
                    fresh_rollouts(collected.sampled, self.objective),
                    replayed_rollouts(again) if self.config.replay.train_partition and again else None,
                )
        age = self.step - collected.policy_step
        self.step += 1
        completions = [completion for group in collected.sampled for completion in group.completions]
        self.rollouts += len(completions)
        self.tokens += sum(len(completion.token_ids) for completion in completions)
        self.trained += update.trained
        skipped = update.skipped > 0 and not update.trained
        self.skipped += skipped
        counters = {
            "rollouts/generated": self.rollouts,
            "rollouts/trained": self.trained,
            "tokens/generated": self.tokens,
            "optim/skipped": float(skipped),
            "optim/skipped_updates": float(update.skipped),
            "optim/skipped_total": self.skipped,
            "replay/trained": float(len(again)),
            "rollouts/age": float(age),
        }
        metrics = (
            counters
            | rollout_metrics(collected.sampled, self.reward_parts)
            | collected.metrics()
            | update.metrics
            | observed
        )
        metrics["kl/old_beta"] = self.objective.beta * metrics["kl/old"]
        self._report(metrics | clock.metrics(), collected.sampled, pool)

    def _tick(self) -> None:
        # Several processes stop together between steps: if one left a step, the others would wait for it forever.
        if self.ranks.count == 1:
            self.guard.check()

    def _collect(self) -> Collected:
        self.sampler.sync(self.policy, self._tick)
        return self.collector.collect(self.step, self.step, self._tick)

    @contextmanager
    def _ahead(self, collected: Collected) -> Iterator[Callable[[], Collected | None]]:
        """Sample the next step's groups in the background, with the current policy, if ``sampling.ahead`` says so."""
        rollouts = self.rollouts + sum(len(group.completions) for group in collected.sampled)
        if not self.config.sampling.ahead or ends_at(self.config, self.step + 1, rollouts):
            yield lambda: None
            return
        self.sampler.sync(self.policy, self._tick)
        with self.collector.ahead(self.step + 1, self.step) as following:
            yield following

    def _release_unfinished(self) -> None:
        """Release the prompts that an interrupted step has taken, so that it can be repeated."""
        before = 0 if self.pending is None else len(self.pending.sampled)  # the oldest leases are those of its prompts
        self.scheduler.release(self.scheduler.leased()[before:])

    def _reference_logprobs(self, batch: Sequence[Completion]) -> list[list[float]]:
        policy = self.initial or self.policy
        temperature, budget = self.config.sampling.temperature, self.config.optimizer.tokens_per_micro_batch
        with policy.adapter_off():
            return sequence_logprobs(policy, batch, temperature, budget, self._tick, self.ranks)

    def _true_accuracies(self) -> list[float]:
        return true_accuracies(
            self.policy,
            list(self.prompts.values()),
            self.config.sampling.temperature,
            self.config.optimizer.tokens_per_micro_batch,
            self._tick,
            self.ranks,
            self.config.sampling.stop,
        )

    def _report(self, metrics: dict[str, float], groups: list[Group], pool: dict[str, Any] | None) -> None:
        row = {"step": self.step} | metrics
        for sample in sample_rows(groups, self.config.run.samples_per_step):
            self.folder.log("samples.jsonl", {"step": self.step} | sample)
        self.folder.log("groups.jsonl", {"step": self.step} | group_row(groups, pool))
        self.folder.log("metrics.jsonl", row)
        self.track(metrics, self.step)
        self.view.step(row)
        for warning in self.alarms.check(metrics, dump_config(self.config), commonest_error(groups)):
            self.view.warn(f"step {self.step}: {warning}")

    @property
    def _finished(self) -> bool:
        return ends_at(self.config, self.step, self.rollouts)

    def _evaluation_due(self) -> bool:
        step, generated = self.evaluated
        new = bool(self.eval_tasks) and step != self.step
        return new and evaluation_due(self.config, self.step, self.rollouts, generated)

    def _evaluate(self) -> None:
        self.sampler.sync(self.policy, self._tick)
        results = evaluate(
            self.sampler,
            self.pool,
            self.eval_tasks,
            evaluation_settings(self.config),
            self.config.eval.k,
            self.config.run.seed,
            self._tick,
            self.view,
            self.ranks,
            strict=self.step == self._began,
        )
        row: dict[str, float] = {"step": self.step, "rollouts/generated": self.rollouts}
        for result in results:
            row |= result.flat()
        self.folder.log("eval.jsonl", row)
        self.evaluated = (self.step, self.rollouts)
        self.track({f"eval/{name}": value for name, value in row.items() if name != "step"}, self.step)
        self.view.line(headline(self.step, results))

    def _save(self) -> None:
        if self.step == 0:
            return
        state = {
            "trainer": {
                "format": STATE_FORMAT,
                "step": self.step,
                "rollouts": self.rollouts,
                "trained": self.trained,
                "tokens": self.tokens,
                "skipped": self.skipped,
                "skipped_in_a_row": self.alarms.skipped_steps,
                "unmixed_in_a_row": self.alarms.unmixed_steps,
                "alarms_said": sorted(self.alarms.said),
                "initial_policy": self.initial_policy,
                "prompts": torch.tensor(list(self.fingerprints.values())),
                "pending": None if self.pending is None else dump_collected(self.pending),
            },
            "optimizer": self.learner.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        save_checkpoint(self.folder.path, self.step, self.policy, state, self.config.checkpoint.keep, self.ranks)

    def _build_or_resume(self) -> None:
        config = self.config
        self.step = self.rollouts = self.trained = self.tokens = self.skipped = 0
        self.alarms = Alarms()
        self.objective: Objective[Any] = build_objective(config)
        self.initial_policy = self.policy.fingerprint()
        saved = self._saved
        if saved is not None:
            refuse_foreign(saved, self.folder.before or config, config, self.initial_policy, self.fingerprints)
        torch.manual_seed(derive_seed(config.run.seed, "partition"))
        own = None
        if self.ranks.main:
            embeddings_NH = initial_embeddings(config, self.policy, list(self.prompts.values()), self.view)
            own = build_scheduler(config, list(self.prompts), embeddings_NH, self.policy.device)
        self.scheduler: Scheduler = shared(own, self.ranks)
        # With LoRA no copy is needed: the initial policy is the policy without its adapter.
        needs_copy = config.objective.needs_reference and config.model.lora is None
        self.initial = self.policy.frozen_copy() if needs_copy else None
        if saved is not None:
            self.policy = Policy.load(config.model, self.policy.device, saved)
        sharded = config.scale.shard and self.ranks.count > 1
        self.sampler = build_sampler(config, self.policy, sharded, self.ranks)
        if sharded:
            self.policy.shard()
        self.learner = Learner(
            self.policy,
            config.optimizer,
            config.run.steps,
            config.sampling.temperature,
            self.objective.loss,
            config.run.seed,
            self.ranks,
        )
        collecting = self.ranks.with_new_group() if config.sampling.ahead else self.ranks
        self.collector = Collector(
            config,
            shared(own, collecting),
            self.sampler,
            self.pool,
            {task.name: task for task in self.train_tasks},
            self.prompts,
            self.view,
            self._true_accuracies,
            collecting,
        )
        if saved is not None:
            self._restore(saved)

    def _restore(self, folder: Path) -> None:
        self.scheduler.load_state_dict(load_checkpoint_state(folder, "scheduler"))
        self.learner.load_state_dict(load_optimizer_states(folder))
        state = load_checkpoint_state(folder, "trainer")
        self.step, self.rollouts, self.trained = state["step"], state["rollouts"], state["trained"]
        self.tokens, self.skipped = state["tokens"], state["skipped"]
        if state["pending"] is not None:
            self.pending = load_collected(state["pending"], self.prompts)
        self.alarms = Alarms(set(state["alarms_said"]), state["unmixed_in_a_row"], state["skipped_in_a_row"])
