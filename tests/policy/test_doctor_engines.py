"""The doctor's view of the engine that samples: what it recommends on a GPU, and that it times the configured one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_fake import FakeVllm

from pacedrl import doctor
from pacedrl.config import Config
from pacedrl.policy import vllm
from pacedrl.policy.policy import Policy
from pacedrl.policy.vllm import sampler as vllm_sampler
from pacedrl.policy.vllm.sampler import VllmSampler
from pacedrl.rollouts import engines
from pacedrl.rollouts.engines import sample_once, training_settings
from pacedrl.types import Completion

CPU = torch.device("cpu")
PROMPTS = [[1, 9, 8, 7], [1, 5, 6]]


def configured(**sampling: Any) -> Config:
    sizes = {"prompts_per_step": 2, "group_size": 3, "max_prompt_tokens": 8, "max_new_tokens": 6}
    return Config(sampling=sizes | sampling)


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    fake = FakeVllm()
    yield fake
    fake.die()


@pytest.mark.parametrize(
    ("device", "engine", "installed", "said"),
    [
        ("cuda:0", "transformers", True, "; set sampling.engine=vllm (docs/serving.md)"),
        ("cuda:0", "transformers", False, f"; {vllm.INSTALL}, then set sampling.engine=vllm (docs/serving.md)"),
        ("cuda:0", "vllm", True, None),
        ("cpu", "transformers", True, None),
    ],
)
def test_vllm_is_recommended_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, engine: str, installed: bool, said: str | None
) -> None:
    monkeypatch.setattr(vllm, "installed", lambda: installed)
    policy: Any = SimpleNamespace(device=torch.device(device))
    found = list(doctor._engine(policy, configured(engine=engine)))
    if said is None:
        assert found == []
    else:
        [check] = found
        assert check.level == "warn"
        assert check.text.endswith(said)
    assert vllm.INSTALL == 'pip install "pacedrl[vllm]"'


def test_a_server_is_asked_and_keeps_its_weights(policy: Policy, server: FakeVllm) -> None:
    weights = [parameter.clone() for parameter in server.policy.parameters()]
    config = configured(engine="vllm_server", servers=[server.url])
    groups, seconds = sample_once(config, policy, PROMPTS, training_settings(config))
    assert [len(group) for group in groups] == [3, 3]
    assert seconds > 0
    assert sorted(server.asked) == sorted(map(tuple, PROMPTS))
    assert (server.version, server.received) == ("default", 0)
    assert set(server.paths) == {"/weight_info", "/inference/v1/generate"}
    assert all(map(torch.equal, weights, server.policy.parameters()))


def test_the_rate_is_that_of_the_servers(policy: Policy, server: FakeVllm) -> None:
    config = configured(engine="vllm_server", servers=[server.url])
    server.before = lambda number: time.sleep(1.0)
    [check, memory] = doctor._cost(policy, PROMPTS, config)
    rate = int(check.text.partition("sampling with vllm_server at ")[2].partition(" tokens/s")[0].replace(",", ""))
    assert 1 <= rate <= 2 * 3 * 6  # at least a second for two groups of three, which have up to 6 tokens each
    assert memory.text.startswith("memory: ")


def test_a_lost_server_is_not_waited_for(policy: Policy, server: FakeVllm) -> None:
    server.die()
    [check, memory] = doctor._cost(policy, PROMPTS, configured(engine="vllm_server", servers=[server.url]))
    assert check.level == "warn"
    assert check.text.startswith("time: not measured, because a server does not answer (")
    assert memory.text.startswith("memory: ")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let vLLM in this process be a stand-in, and return the calls of its methods."""
    calls: list[str] = []

    def init(sampler: VllmSampler, policy: Policy, config: Any) -> None:
        calls.append("start")

    def sample(sampler: VllmSampler, prompts: Any, settings: Any, seeds: Any) -> Iterator[tuple[int, list[Completion]]]:
        calls.append("sample")
        for i in reversed(range(len(prompts))):
            completions = [Completion([10 + i, 2], [-0.5, -0.5], "", "stop") for _ in range(settings.group_size)]
            yield i, completions

    monkeypatch.setattr(VllmSampler, "__init__", init)
    monkeypatch.setattr(VllmSampler, "sample", sample)
    monkeypatch.setattr(VllmSampler, "rest", lambda sampler: calls.append("rest"))
    return calls


def test_vllm_in_this_process_is_timed_and_then_rests(
    policy: Policy, engine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TransformersSampler", None)
    groups, _ = sample_once(configured(engine="vllm"), policy, PROMPTS, training_settings(configured()))
    assert [group[0].token_ids for group in groups] == [[10, 2], [11, 2]]  # in the order of the prompts
    assert engine == ["start", "sample", "rest"]
    [check, _] = doctor._cost(policy, PROMPTS, configured(engine="vllm"))
    assert check.level == "ok"
    assert "s sampling with vllm at " in check.text


def test_an_engine_that_is_not_installed_fails(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: Callable[..., Any] = __import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "vllm":
            raise ImportError("No module named 'vllm'")
        return imported(name, *rest)

    monkeypatch.setattr(vllm_sampler, "__import__", refuse, raising=False)
    [check, memory] = doctor._cost(policy, PROMPTS, configured(engine="vllm"))
    assert check.level == "fail"
    assert vllm.INSTALL in check.text
    assert memory.text.startswith("memory: ")
