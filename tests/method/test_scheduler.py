"""The scheduler with a simulated policy and numpy rewards, and the paper's theorem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bandits import BETA, Bandit, scheduler_for

from pacedrl.method import DifficultyScheduler, LogPartition, MlpPartition, Rollouts


def test_theorem_estimates_converge_to_the_accuracy_of_a_fixed_policy() -> None:
    """β·log Z → p_old at π_θ = π_old, within 0.05 for seen prompts and not much worse for unseen ones."""
    seen, unseen = Bandit(64, seed=0), Bandit(64, seed=1)
    torch.manual_seed(0)
    partition = MlpPartition(LogPartition(seen.embeddings(), BETA, hidden_size=64), seen.embeddings())
    scheduler = DifficultyScheduler(seen.keys, partition=partition, explore_fraction=1.0)
    start = np.abs(scheduler.accuracy_estimates() - seen.accuracy).mean()
    for _ in range(250):
        scheduler.observe(seen.rollouts(scheduler.select(32)))
    for group in partition.optimizer.param_groups:
        group["lr"] /= 10  # average out the noise of the last batches
    for _ in range(100):
        scheduler.observe(seen.rollouts(scheduler.select(32)))
    seen_error = np.abs(scheduler.accuracy_estimates() - seen.accuracy).mean()
    unseen_error = np.abs(partition.accuracy_of(unseen.embeddings()) - unseen.accuracy).mean()
    print(f"mean absolute error: start {start:.3f}, seen {seen_error:.3f}, unseen {unseen_error:.3f}")
    assert start > 0.2
    assert seen_error <= 0.05
    assert unseen_error <= 0.10


def test_theorem_off_policy_the_gap_is_beta_times_kl() -> None:
    """β·log Z* − p_old = β·KL(π_old‖π_θ) (Prop. 4.1) with samples from categorical policies."""
    generator = torch.Generator().manual_seed(0)
    logits_old = torch.randn(6, generator=generator)
    logits_new = logits_old + 1.5 * torch.randn(6, generator=generator)
    old, new = logits_old.log_softmax(0), logits_new.log_softmax(0)
    kl = float((old.exp() * (old - new)).sum())
    reward_of = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    accuracy = float((old.exp() * reward_of).sum())
    beta, samples = 0.5, 40_000
    action = torch.multinomial(old.exp(), samples, replacement=True, generator=generator)
    embeddings = torch.ones(1, 4)
    torch.manual_seed(0)
    network = LogPartition(embeddings, beta, dropout=0.0)
    partition = MlpPartition(network, embeddings, learning_rate=0.02, fit_steps=200)
    scheduler = DifficultyScheduler(["x"], partition=partition)
    log_ratio = (new - old)[action]
    metrics = scheduler.observe(Rollouts(["x"] * samples, reward_of[action].numpy(), log_ratio.numpy()))
    gap = scheduler.accuracy_estimates()[0] - accuracy
    monte_carlo_error = float((reward_of[action] - beta * log_ratio).std()) / samples**0.5
    assert beta * kl > 20 * monte_carlo_error  # the gap is there to be seen
    assert gap == pytest.approx(beta * kl, abs=4 * monte_carlo_error)
    assert metrics["accuracy/observed_mean"] == pytest.approx(accuracy, abs=0.02)


def test_selection_moves_to_the_prompts_of_medium_difficulty() -> None:
    bandit = Bandit(256)
    scheduler = scheduler_for(bandit)
    distances = []
    for _ in range(120):
        chosen = scheduler.select(16)
        distances.append(np.abs(bandit.accuracy[[bandit.keys.index(key) for key in chosen]] - 0.5).mean())
        scheduler.observe(bandit.rollouts(chosen))
    uniform = np.abs(bandit.accuracy - 0.5).mean()
    assert distances[0] == pytest.approx(uniform, abs=0.1)  # a fresh Z knows nothing
    assert np.mean(distances[-20:]) < 0.5 * uniform


def test_advantage_is_reward_over_beta_less_log_z() -> None:
    bandit = Bandit(8)
    scheduler = scheduler_for(bandit)
    scheduler.observe(bandit.rollouts(bandit.keys))
    keys = ["prompt-3", "prompt-3", "prompt-5"]
    estimate = scheduler.accuracy_estimate(keys)
    assert scheduler.log_z(keys).numpy() == pytest.approx(estimate / BETA, rel=1e-6)
    expected = (np.array([1.0, 0.0, 1.0]) - estimate) / BETA
    assert scheduler.advantage(keys, [1, 0, 1]).numpy() == pytest.approx(expected, rel=1e-5)


def test_selecting_again_before_observing_gives_the_same_prompts() -> None:
    bandit = Bandit(64)
    scheduler = scheduler_for(bandit, cooldown_steps=3, explore_fraction=0.25)
    assert scheduler.select(16) == scheduler.select(16)
    first = scheduler.select(16)
    scheduler.observe(bandit.rollouts(first))
    assert not set(first) & set(scheduler.select(16))


def test_calibration_is_measured_before_the_fit() -> None:
    bandit = Bandit(16)
    scheduler = scheduler_for(bandit)
    rollouts = bandit.rollouts(bandit.keys)
    metrics = scheduler.observe(rollouts)
    observed = np.asarray(rollouts.reward_B).reshape(16, 8).mean(axis=1)
    assert metrics["accuracy/estimate_mean"] == pytest.approx(0.5)
    assert metrics["accuracy/mae"] == pytest.approx(np.abs(observed - 0.5).mean())


def test_unjudged_completions_are_left_out_and_not_counted_as_wrong() -> None:
    bandit = Bandit(4)
    with_errors, without = scheduler_for(bandit), scheduler_for(bandit)
    keys = ["prompt-0", "prompt-0", "prompt-1", "prompt-2"]
    metrics = with_errors.observe(Rollouts(keys, [1.0, np.nan, 0.5, np.nan], 0.0, [[1]] * 4, [[-1.0]] * 4))
    without.observe(Rollouts(["prompt-0", "prompt-1"], [1.0, 0.5]))
    assert metrics["accuracy/observed_mean"] == pytest.approx(0.75)
    assert np.array_equal(with_errors.accuracy_estimates(), without.accuracy_estimates())
    assert [entry.key for entry in with_errors.replay()] == ["prompt-0"]
    assert metrics["selection/coverage"] == pytest.approx(0.75)  # prompt-2 was used, though nothing was learned


def test_a_step_without_verdicts_changes_no_estimate() -> None:
    bandit = Bandit(4)
    scheduler = scheduler_for(bandit)
    metrics = scheduler.observe(Rollouts(["prompt-0"], [np.nan]))
    assert scheduler.accuracy_estimates() == pytest.approx(np.full(4, 0.5))
    assert np.isnan([metrics["accuracy/mae"], metrics["loss/partition"], metrics["replay/age_mean"]]).all()
    assert scheduler.step == 1


def test_only_correct_completions_enter_replay_with_their_prompts_misjudgement() -> None:
    bandit = Bandit(4)
    scheduler = scheduler_for(bandit)
    keys = ["prompt-0"] * 4 + ["prompt-1"] * 4
    reward = [1, 0, 0, 0, 1, 1, 1, 0.9]
    ids = [[i] for i in range(8)]
    scheduler.observe(Rollouts(keys, reward, 0.0, ids, [[-float(i)] for i in range(8)]))
    entries = {entry.token_ids[0]: entry for entry in scheduler.replay()}
    assert sorted(entries) == [0, 4, 5, 6]
    assert entries[0].priority == pytest.approx(0.25)
    assert entries[5].priority == pytest.approx(3.9 / 4 - 0.5)
    assert entries[5].logprobs == (-5.0,)
    assert entries[5].step == 0


def test_replay_reaches_log_z_only_when_asked() -> None:
    bandit = Bandit(8)

    def estimate_after(replayed: Rollouts | None) -> float:
        scheduler = scheduler_for(bandit)
        fresh = Rollouts(["prompt-0", "prompt-1"] * 4, [0.0, 1.0] * 4)
        for _ in range(5):
            scheduler.observe(fresh, replayed)
        return float(scheduler.accuracy_estimate(["prompt-0"])[0])

    correct = Rollouts(["prompt-0"] * 8, [1.0] * 8)
    assert estimate_after(correct) > estimate_after(None) + 0.1


def test_rewards_outside_the_unit_interval_are_refused() -> None:
    scheduler = scheduler_for(Bandit(4))
    with pytest.raises(ValueError, match="z-scored"):
        scheduler.observe(Rollouts(["prompt-0", "prompt-1"], [1.5, -1.0]))
    with pytest.raises(ValueError, match="2 keys but 1 rewards"):
        scheduler.observe(Rollouts(["prompt-0", "prompt-1"], [1.0]))


@pytest.mark.parametrize("partition", ["mlp", "closed_form"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (Rollouts(["prompt-0", "prompt-1"], [1.0, 0.0], [0.0, np.nan]), ValueError, "prompt 'prompt-1' is not finite"),
        (Rollouts(["prompt-0"], [1.0], np.inf), ValueError, "prompt 'prompt-0' is not finite"),
        (Rollouts(["prompt-0", "nope"], [1.0, np.nan]), KeyError, "'nope' is not the key of a prompt"),
        (Rollouts(["prompt-0"], [1.0], policy_step_B=[-3]), ValueError, "must lie between 0 and the present step 0"),
    ],
)
def test_a_refused_observation_changes_nothing(
    partition: str, wrong: Rollouts, error: type[Exception], message: str
) -> None:
    bandit = Bandit(4)
    scheduler = scheduler_for(bandit, partition=partition)
    before = scheduler.accuracy_estimates().copy()
    for observe in (lambda: scheduler.observe(wrong), lambda: scheduler.observe(wrong, wrong)):
        with pytest.raises(error, match=message):
            observe()
    assert scheduler.step == 0
    assert np.array_equal(scheduler.accuracy_estimates(), before)
    assert not scheduler.visits_N.any()


def test_arguments_that_make_no_sense_are_refused() -> None:
    scheduler = scheduler_for(Bandit(4))
    for count in (-1, 2.5):
        with pytest.raises(ValueError, match="count must be a whole number of at least 0"):
            scheduler.take(count)
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="share must lie between 0 and 1"):
            scheduler.accuracy_interval(["prompt-0"], share)


@pytest.mark.parametrize("partition", ["mlp", "closed_form"])
def test_embeddings_that_are_not_finite_are_refused(partition: str) -> None:
    embeddings_NH = Bandit(4).embeddings()
    embeddings_NH[2, 0] = torch.nan
    with pytest.raises(ValueError, match="embeddings must be finite, but that of prompt 2"):
        DifficultyScheduler(["a", "b", "c", "d"], embeddings_NH, partition=partition)


def test_embeddings_may_be_a_numpy_array() -> None:
    bandit = Bandit(4)
    scheduler = DifficultyScheduler(bandit.keys, bandit.embeddings().numpy(), partition="closed_form")
    assert np.isfinite(scheduler.accuracy_estimates()).all()


@pytest.mark.parametrize(
    ("keys", "rows", "options", "message"),
    [
        (["a", "a"], 2, {}, "unique"),
        (["a", "b"], 3, {}, "2 keys but 3 embeddings"),
        (["a", "b"], 2, {"target_accuracy": 1.5}, "target_accuracy"),
    ],
)
def test_refuses_inconsistent_input(keys: list[str], rows: int, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DifficultyScheduler(keys, torch.randn(rows, 3), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 7, 16, 60])
def test_uniform_selection_visits_every_prompt_before_any_recurs(batch: int) -> None:
    bandit = Bandit(60)
    scheduler = DifficultyScheduler(bandit.keys, selection="uniform", estimator="none")
    orders = []
    for _ in range(40):
        chosen = scheduler.select(batch)
        assert len(set(chosen)) == batch
        orders.append(tuple(chosen))
        scheduler.observe(bandit.rollouts(chosen))
        assert np.ptp(scheduler.visits_N) <= 1
    assert scheduler.visits_N.sum() == 40 * batch
    assert len(set(orders)) > 1  # shuffled anew


@pytest.mark.parametrize("selection", ["nearest", "uniform", "thompson", "learnability", "noise"])
def test_exploration_and_cooldown_work_with_every_selector(selection: str) -> None:
    bandit = Bandit(40)
    scheduler = scheduler_for(
        bandit, selection=selection, estimator="combined", explore_fraction=0.25, cooldown_steps=2
    )
    recent: list[set[str]] = []
    for _ in range(12):
        chosen = scheduler.select(10)
        assert len(set(chosen)) == 10
        assert not any(set(chosen) & used for used in recent[-2:])
        recent.append(set(chosen))
        scheduler.observe(bandit.rollouts(chosen))
    explorer = scheduler_for(bandit, selection=selection, estimator="combined", explore_fraction=1.0)
    hits = np.zeros(40)
    for step in range(400):
        explorer.step = step
        hits[[bandit.keys.index(key) for key in explorer.select(10)]] += 1
    assert hits == pytest.approx(np.full(40, 100), abs=45)  # uniform, whatever the selector would want


def test_a_cooldown_longer_than_the_pool_never_starves_the_batch() -> None:
    bandit = Bandit(12)
    scheduler = scheduler_for(bandit, selection="thompson", estimator="counts", cooldown_steps=9)
    for _ in range(6):
        chosen = scheduler.select(8)
        assert len(set(chosen)) == 8
        scheduler.observe(bandit.rollouts(chosen))


@pytest.mark.parametrize("estimator", ["counts", "combined"])
def test_estimates_with_counts_converge_to_each_prompts_own_accuracy(estimator: str) -> None:
    bandit = Bandit(32)
    scheduler = scheduler_for(bandit, estimator=estimator, selection="uniform", discount=1.0)
    for _ in range(40):
        scheduler.observe(bandit.rollouts(scheduler.select(32)))
    assert np.abs(scheduler.accuracy_estimates() - bandit.accuracy).mean() < 0.03
    assert scheduler.estimate_strength(bandit.keys) == pytest.approx(
        np.full(32, 320 + {"counts": 2, "combined": 4}[estimator])
    )


def test_the_combined_estimate_is_the_posterior_of_log_z_and_counts() -> None:
    bandit = Bandit(8)
    scheduler = scheduler_for(bandit, estimator="combined", prior_strength=3.0, discount=0.5)
    scheduler.observe(Rollouts(["prompt-0"] * 4, [1.0, 1.0, 1.0, 0.0]))
    scheduler.observe(Rollouts(["prompt-0"] * 4, [0.0, 0.0, 1.0, 0.0]))
    assert scheduler.partition is not None
    z = scheduler.partition.accuracy().clip(0.01, 0.99)
    right, wrong = 0.5 * 3 + 1, 0.5 * 1 + 3
    assert scheduler.accuracy_estimate(["prompt-0"])[0] == pytest.approx((3 * z[0] + right) / (3 + right + wrong))
    assert scheduler.accuracy_estimate(["prompt-1"])[0] == pytest.approx(z[1])
    assert scheduler.log_z(["prompt-0"]).item() == pytest.approx(scheduler.partition.accuracy()[0] / BETA, rel=1e-5)


def test_thompson_selection_finds_the_medium_prompts_and_visits_the_others() -> None:
    bandit = Bandit(128)
    scheduler = scheduler_for(bandit, estimator="combined", selection="thompson")
    for _ in range(60):
        scheduler.observe(bandit.rollouts(scheduler.select(16)))
    distance = np.abs(bandit.accuracy - 0.5)
    assert np.corrcoef(distance, scheduler.visits_N)[0, 1] < -0.5
    assert (scheduler.visits_N > 0).mean() > 0.9


def test_the_oracle_selects_by_the_truth_it_is_told() -> None:
    bandit = Bandit(40)
    scheduler = DifficultyScheduler(bandit.keys, estimator="oracle")
    with pytest.raises(ValueError, match="NaN"):
        scheduler.select(4)
    scheduler.set_truth(bandit.accuracy)
    nearest = np.argsort(np.abs(bandit.accuracy - 0.5))[:4]
    assert set(scheduler.select(4)) == {bandit.keys[i] for i in nearest}
    with pytest.raises(ValueError, match="expected 40"):
        scheduler.set_truth([0.5])


def test_without_embeddings_there_is_no_log_z() -> None:
    bandit = Bandit(4)
    scheduler = DifficultyScheduler(bandit.keys, selection="uniform", estimator="none")
    metrics = scheduler.observe(Rollouts(["prompt-0", "prompt-0", "prompt-1"], [1.0, 0.0, 1.0]))
    assert np.isnan([metrics["accuracy/mae"], metrics["accuracy/spearman"], metrics["loss/partition"]]).all()
    assert metrics["accuracy/observed_mean"] == 0.75
    with pytest.raises(ValueError, match="no log Z"):
        scheduler.log_z(["prompt-0"])
    with pytest.raises(ValueError, match="needs embeddings_NH"):
        DifficultyScheduler(bandit.keys)


def test_log_z_can_be_fitted_to_another_reward_than_the_raw_one() -> None:
    bandit = Bandit(8)
    shaped, raw = scheduler_for(bandit), scheduler_for(bandit)
    for _ in range(30):
        shaped.observe(Rollouts(bandit.keys, [1.0] * 8, partition_reward_B=[-1.0] * 8))
        metrics = raw.observe(Rollouts(bandit.keys, [1.0] * 8))
    assert metrics["accuracy/observed_mean"] == 1.0
    assert shaped.accuracy_estimates().max() < 0.2 < 0.8 < raw.accuracy_estimates().min()


def test_completions_without_a_target_stay_out_of_the_fit_but_count() -> None:
    bandit = Bandit(8)
    partly, only = scheduler_for(bandit, estimator="combined"), scheduler_for(bandit, estimator="combined")
    targets = [0.3, 0.4, np.nan, np.nan]
    partly.observe(Rollouts(bandit.keys[:4], [1.0, 0.0, 1.0, 0.0], partition_reward_B=targets))
    only.observe(Rollouts(bandit.keys[:2], [1.0, 0.0], partition_reward_B=targets[:2]))
    assert torch.equal(partly.log_z(bandit.keys), only.log_z(bandit.keys))
    assert partly.estimator.counts.right_N.sum() == 2
    assert np.isnan(partly.observe(Rollouts(["prompt-0"], [1.0], partition_reward_B=[np.nan]))["loss/partition"])


def test_completions_without_tokens_are_not_replayed() -> None:
    bandit = Bandit(2)
    scheduler = scheduler_for(bandit)
    scheduler.observe(Rollouts(bandit.keys, [1.0, 1.0], token_ids=[[1, 2], None], logprobs=[[-1.0, -1.0], []]))
    assert [entry.key for entry in scheduler.replay()] == ["prompt-0"]
