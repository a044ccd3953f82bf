"""Packed weights give the same numbers and are removed afterwards; freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pacedrl.config import ModelConfig
from pacedrl.policy import cpu
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

FAULTS = """
import resource, sys, torch
from pacedrl.policy.cpu import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**24).fill_(1.0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
keep_freed_memory()
# Repeated, because other memory freed in the meantime may give a tensor a new place once.
print(plain, min(faults() for _ in range(6)))
"""


def test_a_packed_layer_multiplies_as_before_and_is_itself_again_afterwards() -> None:
    assert cpu.can_pack()
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 300, bias=False))
    small = torch.nn.Linear(8, 8)
    model.append(torch.nn.Linear(300, 8)).append(small)
    for rows in (1, 7, 64, 130):
        hidden = torch.randn(2, rows, 256, generator=generator)
        with torch.inference_mode():
            expected = model(hidden)
            with cpu.packed_weights(model, 64):
                assert "forward" in vars(model[0])
                assert "forward" in vars(model[2])
                assert "forward" not in vars(small)
                torch.testing.assert_close(model(hidden), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="out"), cpu.packed_weights(model, 64):
        raise ValueError("out")
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_are_packed_anew_each_time() -> None:
    layer = torch.nn.Linear(256, 512)
    hidden = torch.ones(3, 256)
    for value in (1.0, 2.0):
        with torch.no_grad():
            layer.weight.fill_(value)
            layer.bias.zero_()
            with cpu.packed_weights(layer, 3):
                assert layer(hidden).unique().tolist() == [256.0 * value]


def test_sampling_with_packed_weights_draws_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.load(ModelConfig(), torch.device("cpu"))
    prompts = [policy.encode(text) for text in ("copy 314 =", "reverse 27 =", "add 12 30 =")]
    settings = SamplingSettings(4, 10, batch_size=8)
    plain = dict(sample(policy, prompts, settings, [1, 2, 3]))
    monkeypatch.setattr(cpu, "PACKED_ELEMENTS", 0)
    packed = []
    linear = cpu._linear
    monkeypatch.setattr(cpu, "_linear", lambda *inputs: packed.append(1) or linear(*inputs))
    again = dict(sample(policy, prompts, settings, [1, 2, 3]))
    assert packed
    for i, group in plain.items():
        assert [one.token_ids for one in again[i]] == [one.token_ids for one in group]
        for mine, theirs in zip(group, again[i], strict=True):
            assert theirs.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
    assert not any("forward" in vars(module) for module in policy.model.modules())


def test_loading_packs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying how to decode takes a few tokens, for which a second copy of a large model's weights is not made."""
    monkeypatch.setattr(cpu, "PACKED_ELEMENTS", 0)
    packed: list[int] = []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: packed.append(rows) or pack(weight, rows)
    )
    policy = Policy.load(ModelConfig(), torch.device("cpu"))
    assert policy.decoding == "columns"
    assert not packed
    list(sample(policy, [policy.encode("copy 314 =")], SamplingSettings(4, 2, batch_size=8), [1]))
    assert set(packed) == {8}
    assert len(packed) > policy.config.num_hidden_layers


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_was_freed_is_used_again() -> None:
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    plain, kept = map(int, out.split())
    assert plain > 10 * 2**26 / 2**21  # even if the kernel provides 2 MiB at once
    assert kept < plain / 20


RETURNED = """
import os, torch
from pacedrl.policy.cpu import keep_freed_memory, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keep_freed_memory()
found = []
for mebibytes in (400, 800):
    before = resident()
    torch.empty(mebibytes * 2**18).fill_(1.0)
    kept = resident()
    return_freed_memory()
    found += [kept - before, resident() - before]
print(*(n / 2**20 for n in found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_much_freed_memory_goes_back_to_the_kernel_between_phases_and_little_stays() -> None:
    out = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True).stdout
    little_kept, little_left, much_kept, much_left = map(float, out.split())
    assert little_kept > 350
    assert little_left > 350
    assert much_kept > 350  # in addition to the 400 that it already had
    assert much_left < 0
