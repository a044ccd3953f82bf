"""Trajectory balance equals torchgfn's losses on trajectories that torchgfn samples in a small hypergrid.

Our δ = Σ_t (log π_θ − log μ) − A is theirs with log P_F for log π_θ, log P_B for log μ and A = log R − log Z. Otherwise
they differ: torchgfn also trains P_B, while our μ is fixed, and trains log Z by the same loss, while ours is fitted
separately by the same gradient. Its log-partition-variance loss (VarGrad) is ours with the batch's own mean for log Z.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pacedrl.method import group_mean_log_z, trajectory_balance, trajectory_balance_advantage
from pacedrl.method.objectives import sequence_log_ratio

gflownet = pytest.importorskip("gfn.gflownet")
gym = pytest.importorskip("gfn.gym")
modules = pytest.importorskip("gfn.modules")
networks = pytest.importorskip("gfn.utils.modules")

TRAJECTORIES = 48
ONE_GROUP = torch.zeros(TRAJECTORIES, dtype=torch.long)
LOG_Z = 0.7
EXPLORING = [0.0, 0.5]
"""Shares of random actions: on-policy and off-policy."""


def policies(env: Any) -> tuple[Any, Any]:
    """Return P_F and P_B, untrained networks of the state."""
    torch.manual_seed(1)
    made = []
    for backward in (False, True):
        network = networks.NeuralNet(env.preprocessor.output_dim, env.n_actions - backward, 16, 2)
        made.append(modules.DiscretePolicyEstimator(network, env.n_actions, env.preprocessor, is_backward=backward))
    return made[0], made[1]


def as_ours(net: Any, trajectories: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return log P_F and log P_B of every action [B, T], arbitrary after a trajectory's end, and the mask."""
    forward_TB, backward_TB = net.get_pfs_and_pbs(trajectories, recalculate_all_logprobs=True)
    mask_BT = ~trajectories.actions.is_dummy.T
    return forward_TB.T.masked_fill(~mask_BT, -torch.inf), backward_TB.T.masked_fill(~mask_BT, 5.0), mask_BT


def gradient(loss: Tensor, module: Any) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))])


def assert_same_gradient(mine: Tensor, right: Tensor) -> None:
    assert float(right.abs().max()) > 0.1
    torch.testing.assert_close(mine, right, rtol=0, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("exploring", EXPLORING)
def test_trajectory_balance_is_torchgfns(exploring: float) -> None:
    env = gym.HyperGrid(ndim=2, height=5)
    net = gflownet.TBGFlowNet(*policies(env), logZ=LOG_Z)
    trajectories = net.sample_trajectories(env, TRAJECTORIES, save_logprobs=False, epsilon=exploring)
    assert len(trajectories.when_is_done.unique()) > 3
    theirs = net.loss(env, trajectories, recalculate_all_logprobs=True)
    (log_z_gradient,) = torch.autograd.grad(theirs, net.logZ, retain_graph=True)

    tensors = as_ours(net, trajectories)
    advantage_B = trajectory_balance_advantage(trajectories.log_rewards, torch.full((TRAJECTORIES,), LOG_Z), beta=1.0)
    ours, metrics = trajectory_balance(*tensors, advantage_B)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert metrics["loss/objective"].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradient(gradient(ours, net.pf), gradient(theirs, net.pf))
    delta_B = (sequence_log_ratio(*tensors) - advantage_B).detach()
    assert log_z_gradient.item() == pytest.approx(2 * delta_B.mean().item(), rel=1e-5)
    assert abs(log_z_gradient.item()) > 0.1


@pytest.mark.parametrize("exploring", EXPLORING)
def test_the_group_mean_makes_it_torchgfns_log_partition_variance(exploring: float) -> None:
    env = gym.HyperGrid(ndim=2, height=5)
    net = gflownet.LogPartitionVarianceGFlowNet(*policies(env))
    trajectories = net.sample_trajectories(env, TRAJECTORIES, save_logprobs=False, epsilon=exploring)
    assert len(trajectories.when_is_done.unique()) > 3
    theirs = net.loss(env, trajectories, recalculate_all_logprobs=True)

    tensors, log_reward_B = as_ours(net, trajectories), trajectories.log_rewards
    log_z_B = group_mean_log_z(log_reward_B, ONE_GROUP, 1.0, sequence_log_ratio(*tensors).detach())
    ours, _ = trajectory_balance(*tensors, trajectory_balance_advantage(log_reward_B, log_z_B, beta=1.0))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradient(gradient(ours, net.pf), gradient(theirs, net.pf))


def test_our_loss_alone_finds_torchgfns_true_partition_function() -> None:
    """With fixed P_B exactly one policy balances every trajectory, and the environment knows its log Z."""
    torch.manual_seed(0)
    env = gym.HyperGrid(ndim=2, height=4, preprocessor_name="Enum")
    forward, uniform = networks.Tabular(env.n_states, env.n_actions), networks.DiscreteUniform(env.n_actions - 1)
    pf = modules.DiscretePolicyEstimator(forward, env.n_actions, env.preprocessor)
    pb = modules.DiscretePolicyEstimator(uniform, env.n_actions, env.preprocessor, is_backward=True)
    net = gflownet.LogPartitionVarianceGFlowNet(pf, pb)
    optimizer = torch.optim.Adam(pf.parameters(), lr=0.1)
    found = []
    for _ in range(100):
        trajectories = net.sample_trajectories(env, TRAJECTORIES, save_logprobs=False, epsilon=0.2)
        tensors, log_reward_B = as_ours(net, trajectories), trajectories.log_rewards
        log_z_B = group_mean_log_z(log_reward_B, ONE_GROUP, 1.0, sequence_log_ratio(*tensors).detach())
        loss, _ = trajectory_balance(*tensors, trajectory_balance_advantage(log_reward_B, log_z_B, beta=1.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append((float(log_z_B[0]), loss.item()))
    assert abs(found[0][0] - env.log_partition) > 0.1
    assert found[-1][0] == pytest.approx(env.log_partition, abs=0.02)
    assert found[-1][1] < 1e-2 * found[0][1]
