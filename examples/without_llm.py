"""PACED-RL (arXiv 2602.12642) without a language model, on a problem small enough to check it exactly.

It uses only `pacedrl.method`. A prompt is a subset-sum instance: eight weights, a target and a tolerance. A completion
is eight bits; it is correct if the weights whose bit is 1 sum to the target within the tolerance. With only 256
completions, accuracy, KL and log Z can be enumerated. There is no replay. Shapes: _N prompts, _F features, _B
completions of a step, _T bits, _S all 256 completions.
"""

import argparse
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from pacedrl import method

BITS, PROMPTS_PER_STEP, GROUP_SIZE, UPDATES_PER_STEP, LEARNING_RATE = 8, 32, 8, 2, 5e-4
BETA, FROZEN_BETA = 0.05, 0.5  # at 0.05 the optimum against a frozen reference is almost always correct
EVERY_ST = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * BITS)
SELECTIONS = {"nearest": {}, "nearest, 1/4 explored": {"explore_fraction": 0.25}, "uniform": {"selection": "uniform"}}


def make_prompts(count: int, seed: int) -> Tensor:
    """Return [count, 10]: weights 1..9, a sum of few or many as target (rare sums are hard), tolerance 0..12."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 10, (count, BITS))
    target = (weights * (rng.random((count, BITS)) < rng.random((count, 1)))).sum(1)
    return torch.from_numpy(np.column_stack([weights, target, rng.integers(0, 13, count)])).float()


def reward(x_F: Tensor, y_T: Tensor) -> Tensor:
    """Return 1 if the chosen weights sum to the target within the tolerance, else 0; leading dimensions broadcast."""
    return (((x_F[..., :BITS] * y_T).sum(-1) - x_F[..., BITS]).abs() <= x_F[..., BITS + 1]).float()


class Policy(nn.Module):
    """An autoregressive policy: each bit depends on the prompt and the bits before it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(BITS + 2, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, x_BF: Tensor, y_BT: Tensor) -> Tensor:
        """Return each bit's log-probability [B, T]: bit t sees the weights from t on and the sum they must reach."""
        weights_BT, target_B1, tolerance_B1 = x_BF.split([BITS, 1, 1], dim=1)
        missing_BT = target_B1 - (weights_BT * y_BT).cumsum(1) + weights_BT * y_BT
        bounds_BT2 = torch.stack([missing_BT - tolerance_B1, missing_BT + tolerance_B1], dim=-1)
        state_BTF = torch.cat([weights_BT[:, None].expand(-1, BITS, -1).triu(), bounds_BT2], dim=-1)
        return nn.functional.logsigmoid((2 * y_BT - 1) * self.net(state_BTF / 10).squeeze(-1))

    @torch.no_grad()
    def sample(self, x_BF: Tensor) -> Tensor:
        y_BT = torch.ones(len(x_BF), BITS)
        for t in range(BITS):  # bit t is still 1 before it is drawn, so this is the probability of a 1
            y_BT[:, t] = torch.bernoulli(self(x_BF, y_BT)[:, t].exp())
        return y_BT

    @torch.no_grad()
    def enumerated(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Return log π(y|x) of all completions [N, S] and the accuracy p(x) = Σ_y π(y|x)·r(x, y) [N] in float64."""
        log_pi_NS = torch.stack([self(x_F.expand(len(EVERY_ST), -1), EVERY_ST).double().sum(1) for x_F in x_NF])
        return log_pi_NS, (log_pi_NS.exp() * reward(x_NF[:, None], EVERY_ST)).sum(1)


def train(policy: Policy, x_NF: Tensor, steps: int, seed: int, **options) -> tuple[Policy, method.DifficultyScheduler]:
    """Train the policy in place; return the last step's π_old and the scheduler, whose keys are rows of ``x_NF``."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)
    partition = method.MlpPartition(method.LogPartition(x_NF, BETA, hidden_size=64), x_NF)
    keys = [str(row) for row in range(len(x_NF))]
    scheduler = method.DifficultyScheduler(keys, partition=partition, seed=seed, **options)
    for _ in range(steps):
        keys_B = [key for key in scheduler.select(PROMPTS_PER_STEP) for _ in range(GROUP_SIZE)]
        x_BF = x_NF[[int(key) for key in keys_B]]
        old = deepcopy(policy)
        y_BT = old.sample(x_BF)
        old_BT, reward_B, mask_BT = old(x_BF, y_BT).detach(), reward(x_BF, y_BT), torch.ones_like(y_BT)
        advantage_B = scheduler.advantage(keys_B, reward_B)  # r/β − log Z(x)
        for _ in range(UPDATES_PER_STEP):
            new_BT = policy(x_BF, y_BT)
            loss, _ = method.trajectory_balance(new_BT, old_BT, mask_BT, advantage_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        log_ratio_B = method.sequence_log_ratio(new_BT.detach(), old_BT, mask_BT)
        scheduler.observe(method.Rollouts(keys_B, reward_B, log_ratio_B))
    return old, scheduler


def best_intercept(log_old_NS: Tensor, log_new_NS: Tensor, reward_NS: Tensor) -> Tensor:
    """Return log Z* [N], the argmin of E_old[δ²], by a Newton step from 0, which is exact for a parabola."""
    log_z_N = torch.zeros(len(reward_NS), dtype=torch.float64, requires_grad=True)
    (log_old_NS.exp() * (log_z_N[:, None] + log_new_NS - log_old_NS - reward_NS / BETA).square()).sum().backward()
    return -log_z_N.grad / 2


def fit_to_frozen(log_mu_NS: Tensor, x_NF: Tensor, reward_NS: Tensor) -> Tensor:
    """Fit β·log Z [N] by trajectory balance against a frozen reference μ; a tabular policy has an optimum."""
    table_NS = nn.Parameter(log_mu_NS.clone())
    optimizer = torch.optim.Adam([table_NS], 0.03)
    partition = method.MlpPartition(method.LogPartition(x_NF, FROZEN_BETA, hidden_size=64, dropout=0.0), x_NF)
    mu_B1, mask_B1 = log_mu_NS.reshape(-1, 1), torch.ones(log_mu_NS.numel(), 1)  # a whole completion is one action
    for step in range(200):
        log_pi_NS, log_z_N = table_NS.log_softmax(1), partition.network(x_NF)
        advantage_NS = method.trajectory_balance_advantage(reward_NS, log_z_N[:, None], FROZEN_BETA)
        loss, _ = method.trajectory_balance(log_pi_NS.reshape(-1, 1), mu_B1, mask_B1, advantage_NS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The mean of the 256 completions has the same gradient as all of them.
        partition.fit(np.arange(len(x_NF)), reward_NS.mean(1), (log_pi_NS - log_mu_NS).mean(1), seed=step)
    return torch.from_numpy(partition.accuracy())


def show(name: str, p: Tensor, estimate: Tensor) -> None:
    p, estimate = p.numpy(), estimate.numpy()
    raw, clipped = (method.calibration_metrics(values, p) for values in (estimate, estimate.clip(0, 1)))
    errors = raw["accuracy/mae"], clipped["accuracy/mae"], np.abs(p - np.median(p)).mean()
    print(f"{name:37}{len(p):8}" + "".join(f"{f:10.3f}" for f in (p.mean(), *errors, raw["accuracy/spearman"])))


def main(steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    start, x_NF, held_out_MF = Policy(), make_prompts(512, seed), make_prompts(128, seed + 1000)
    reward_NS, (log_mu_NS, p_mu_N) = reward(x_NF[:, None], EVERY_ST).double(), start.enumerated(x_NF)
    print(f"p before: {p_mu_N.mean():.3f}, held out {start.enumerated(held_out_MF)[1].mean():.3f}")
    print("p: exact accuracy, p^: beta*log Z     prompts         p    |p^-p|  p^ in 0-1   constant  spearman")
    for name, options in SELECTIONS.items():
        old, scheduler = train(policy := deepcopy(start), x_NF, steps, seed, **options)
        (log_old_NS, p_old_N), (log_new_NS, p_N) = old.enumerated(x_NF), policy.enumerated(x_NF)
        estimate_N, seen_N = torch.from_numpy(scheduler.accuracy_estimates()), torch.from_numpy(scheduler.visits_N > 0)
        for group, rows in (("all", seen_N | True), ("selected", seen_N), ("never selected", ~seen_N)):
            if rows.any():
                show(f"{name}: {group}", p_N[rows], estimate_N[rows])
        estimate_M = torch.from_numpy(scheduler.partition.accuracy_of(held_out_MF))
        show(f"{name}: held out", policy.enumerated(held_out_MF)[1], estimate_M)
        kl_N = (log_old_NS.exp() * (log_old_NS - log_new_NS)).sum(1)
        gap_N = best_intercept(log_old_NS, log_new_NS, reward_NS) - (p_old_N / BETA + kl_N)
        print(f"  |log Z* - (p_old/beta + KL)| <= {gap_N.abs().max():.0e}, beta*KL of a step: {BETA * kl_N.mean():.5f}")
    exact_N = FROZEN_BETA * torch.logsumexp(log_mu_NS + reward_NS / FROZEN_BETA, dim=1)
    closed_N = FROZEN_BETA * torch.log1p(p_mu_N * np.expm1(1 / FROZEN_BETA))
    fitted_N = fit_to_frozen(log_mu_NS, x_NF, reward_NS)
    errors = [(other_N - exact_N).abs().mean() for other_N in (closed_N, fitted_N, p_mu_N)]
    print("frozen reference, error of beta*log Z: closed form {:.0e}, fitted {:.4f}, p instead {:.4f}".format(*errors))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
