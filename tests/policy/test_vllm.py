"""Sampling with the real vLLM on a CPU: `make test-vllm` sets up its own environment and runs this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_model import (
    CPU,
    INSTALLED,
    PROMPTS,
    assert_logprobs_are_the_policys,
    change,
    needs_vllm,
    run_settings,
    save_random_model,
)

from pacedrl.cli import main
from pacedrl.config import ModelConfig, SamplingConfig
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample
from pacedrl.policy.vllm.sampler import VllmSampler
from pacedrl.types import Completion

CONFIG = SamplingConfig(max_prompt_tokens=32, max_new_tokens=16, batch_size=64)


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_vllm_the_engine_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("sampling: {max_new_tokens: 16, engine: vllm}\nrun: {steps: 1}\n")
    assert main(["train", str(config), f"run.dir={tmp_path / 'run'}", "sampling.prompts_per_step=2"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pacedrl: sampling.engine=vllm needs the package vllm")
    assert error.endswith('pip install "pacedrl[vllm]", or set sampling.engine=transformers')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[tuple[Policy, VllmSampler]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        policy = Policy.load(ModelConfig(name=str(folder)), CPU)
        yield policy, VllmSampler(policy, CONFIG)


def drawn(sampler: VllmSampler, settings: SamplingSettings) -> list[list[Completion]]:
    found = dict(sampler.sample(PROMPTS, settings, [7, 11, 2**60 + 13]))
    assert sorted(found) == [0, 1, 2]
    return [found[i] for i in range(3)]


@pytest.mark.slow
@needs_vllm
def test_greedy_is_what_our_own_sampler_draws(both: tuple[Policy, VllmSampler]) -> None:
    policy, sampler = both
    settings = SamplingSettings(2, 12, temperature=0.0)
    own = dict(sample(policy, PROMPTS, settings, [0, 0, 0]))
    for i, group in enumerate(drawn(sampler, settings)):
        assert [c.token_ids for c in group] == [c.token_ids for c in own[i]]
        assert [c.finish_reason for c in group] == [c.finish_reason for c in own[i]]


@pytest.mark.slow
@needs_vllm
def test_a_stop_string_ends_completions_where_our_own_sampler_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    policy = Policy.load(ModelConfig(name=str(folder)), CPU)
    sampler = VllmSampler(policy, CONFIG.model_copy(update={"stop": ["SSv"]}))
    prompts, settings = [[1, 213]], SamplingSettings(2, 12, temperature=0.0, stop=("SSv",))
    assert next(sample(policy, prompts, SamplingSettings(1, 12, temperature=0.0), [0]))[1][0].text == "vvSSSvvvvvVV"
    (_, own), (_, ours) = next(sample(policy, prompts, settings, [0])), next(sampler.sample(prompts, settings, [0]))
    assert [(c.text, c.finish_reason, len(c.token_ids)) for c in ours] == [("vvS", "stop", 6)] * 2
    assert [c.token_ids for c in ours] == [c.token_ids for c in own]
    assert [c.logprobs for c in ours] == [pytest.approx(c.logprobs, abs=1e-4) for c in own]


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logprobs_are_those_of_the_policy_at_every_sync(
    both: tuple[Policy, VllmSampler], temperature: float
) -> None:
    policy, sampler = both
    settings = SamplingSettings(4, 12, temperature=temperature)
    before = drawn(sampler, settings)
    assert_logprobs_are_the_policys(policy, before, temperature)
    assert len({tuple(c.token_ids) for c in before[0]}) > 1
    change(policy)
    sampler.sync(policy)
    after = drawn(sampler, settings)  # the same prompts, whose cached prefixes are from the old weights
    assert_logprobs_are_the_policys(policy, after, temperature)
    assert [c.token_ids for c in after[0]] != [c.token_ids for c in before[0]]


@pytest.mark.slow
@needs_vllm
def test_first_tokens_follow_the_softmax(both: tuple[Policy, VllmSampler]) -> None:
    policy, sampler = both
    found = dict(sampler.sample([PROMPTS[0]], SamplingSettings(3000, 1), [5]))
    counts = Counter(c.token_ids[0] for c in found[0])
    with torch.no_grad():
        probability = torch.softmax(policy.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1], dim=-1)
    common = [i for i in range(259) if 3000 * float(probability[i]) >= 5]
    statistic = sum((counts[i] - 3000 * float(probability[i])) ** 2 / (3000 * float(probability[i])) for i in common)
    assert len(common) > 20
    assert statistic < len(common) + 4 * (2 * len(common)) ** 0.5


@pytest.mark.slow
@needs_vllm
def test_what_tick_raises_ends_sampling_and_the_next_call_is_clean(both: tuple[Policy, VllmSampler]) -> None:
    _, sampler = both
    calls: list[int] = []

    def tick() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(sampler.sample(PROMPTS, SamplingSettings(2, 12), [1, 2, 3], tick))
    assert len(drawn(sampler, SamplingSettings(2, 4))) == 3


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
def test_a_run_trains_on_what_vllm_samples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any, ahead: bool
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    tree = run_settings(tmp_path / "run", folder, engine="vllm", ahead=ahead)
    if lora:
        tree["model"]["lora"] = lora
    (tmp_path / "c.yaml").write_text(json.dumps(tree))
    assert main(["train", str(tmp_path / "c.yaml")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollouts/age"] for row in rows] == ([0, 1, 1, 1] if ahead else [0] * 4)
    gaps = [row["mismatch/logprob_mean"] for row in rows]
    if ahead:  # the policy has changed since
        assert min(gaps[1:]) > 10 * gaps[0]
    assert all(gap < 1e-4 for gap in (gaps[:1] if ahead else gaps))


@pytest.mark.slow
@needs_vllm
def test_what_vllm_does_not_know_is_refused(tmp_path: Path) -> None:
    policy = Policy.load(ModelConfig(), CPU)
    policy.causal_lm.config.architectures = ["NoSuchModel"]
    with pytest.raises(InputError, match=r"sampling\.engine: vLLM cannot run this model"):
        VllmSampler(policy, CONFIG)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "split"])
def test_two_processes_have_an_engine_each(folder: Path, tmp_path: Path, shard: bool) -> None:
    tree = run_settings(tmp_path / "run", folder, engine="vllm") | {"scale": {"shard": shard}}
    (tmp_path / "c.yaml").write_text(json.dumps(tree))
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PACEDRL_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "pacedrl.cli", "train", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollouts/generated"] for row in rows] == [16, 32, 48, 64]
    assert all(row["mismatch/logprob_mean"] < 1e-4 for row in rows)  # each sampled from the weights of its step
