"""Sampler, trainer and a plain forward pass agree on every architecture, or one line refuses it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from architectures import NotBuildable, tiny_model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pacedrl.cli import main
from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.policy.decoding import WAYS
from pacedrl.policy.memory import estimate
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

CPU = torch.device("cpu")
LIMIT_S = 60
TOLERANCE = 1e-3
"""Nats per token."""
DECODING = {
    "llama": "columns",
    "gpt2": "columns",
    "gemma2": "columns",
    "gemma3_text": "columns",
    "qwen3_moe": "columns",
    "deepseek_v3": "columns",
    "llama4_text": "columns",
    "mamba": "padded",
    "mamba2": "padded",
    "recurrent_gemma": "padded",
    "lfm2": "padded",
    "qwen3_next": "padded",
    "jamba": "padded",
    "falcon_h1": "padded",
    "bart": "equal",
    "deepseek_v4": "equal",
}
"""How completions of each are decoded (`pacedrl.policy.decoding.Decoding`)."""
REFUSED = {
    "bert": "BertLMHeadModel computes its logits in a way pacedrl does not know",
    "xlnet": "XLNetLMHeadModel is not a causal model",
    "rwkv": "RwkvForCausalLM cannot be sampled from",
    "reformer": "ReformerModelWithLMHead cannot be trained here",
}


def outcome(model_type: str, tokenizer: Any) -> str:
    """Return how it is decoded, ``not buildable``, or why it is refused. Raises AssertionError if anything differs."""
    try:
        model = tiny_model(model_type)
    except NotBuildable:
        return "not buildable"
    try:
        policy = Policy(model, tokenizer, CPU)
        prompts = [policy.encode("copy:" + "1" * length) for length in (1, 5, 14, 20)]
        groups = dict(sample(policy, prompts, SamplingSettings(3, 24), range(4)))
    except InputError as error:
        return str(error)
    drawn = [(prompts[i], completion) for i, group in groups.items() for completion in group]
    logprobs_BT, _, _ = policy.logprobs([prompt for prompt, _ in drawn], [c.token_ids for _, c in drawn])
    for (prompt, completion), row_T in zip(drawn, logprobs_BT.tolist(), strict=True):
        plain = plain_logprobs(policy, prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(plain, abs=TOLERANCE), model_type
        assert row_T[: len(plain)] == pytest.approx(plain, abs=TOLERANCE), model_type
    logprobs_BT.sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in policy.parameters())
    assert estimate(policy, Config()).peak > 0
    return policy.decoding


@torch.no_grad()
def plain_logprobs(policy: Policy, prompt: list[int], completion: list[int]) -> list[float]:
    logits_LV = policy.causal_lm(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].float()
    logprobs_LV = torch.log_softmax(logits_LV[len(prompt) - 1 : -1], dim=-1)
    return [float(value) for value in logprobs_LV[range(len(completion)), completion]]


@pytest.mark.parametrize("model_type", [*DECODING, *REFUSED, "gemma4_assistant"])
def test_sampler_and_trainer_agree_with_a_plain_forward_pass(tiny: Policy, model_type: str) -> None:
    found = outcome(model_type, tiny.tokenizer)
    if model_type in REFUSED:
        assert found.startswith(f"model.name: {REFUSED[model_type]}")
    else:
        assert found == DECODING.get(model_type, "not buildable")


@pytest.mark.parametrize(("model_type", "said"), REFUSED.items())
def test_every_command_refuses_the_same_models_in_one_line(
    tiny: Policy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_type: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model(model_type).save_pretrained("model")
    tiny.tokenizer.save_pretrained("model")
    Path("rows.csv").write_text("prompt,answer\n" + "".join(f"copy:{i}=,{i}\n" for i in range(10, 40)))
    Path("c.yaml").write_text("model: {name: model}\ndata: {train: {source: rows.csv, verifier: exact}}\n")
    commands = [
        ["doctor", "c.yaml"],
        ["train", "c.yaml"],
        ["eval", "model", "--config", "c.yaml", "--tasks", "rows.csv"],
        ["init", "new.yaml", "--model", "./model", "--data", "rows.csv"],
    ]
    for command in commands:
        assert main(command) == 2
        output = capsys.readouterr()
        lines = [line for line in (output.out + output.err).splitlines() if "model.name" in line]
        assert len(lines) == 1, output
        assert said in lines[0]
    assert not Path("new.yaml").exists()
    assert not list(Path().glob("runs/*/checkpoints"))


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{seconds} s")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_architecture_of_transformers_agrees_or_is_refused(tiny: Policy, model_type: str) -> None:
    with limit(LIMIT_S):
        found = outcome(model_type, tiny.tokenizer)
    if found == "not buildable":
        pytest.skip("transformers makes no small one")
    assert found in WAYS or re.fullmatch("model.name: .*", found)
