"""Loading models: errors are reported on one line, and the right model is loaded."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from pacedrl.assets import TINY_MODEL
from pacedrl.config import LoraConfig, ModelConfig
from pacedrl.errors import InputError
from pacedrl.policy import loading
from pacedrl.policy.loading import load_model_and_tokenizer, resolve_device
from pacedrl.policy.policy import Policy

CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny model for the test to damage."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refusal(config: ModelConfig) -> str:
    """Return the one line that says why the model cannot be loaded."""
    with pytest.raises(InputError) as caught:
        Policy.load(config, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.")
    return message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    assert missing in refusal(ModelConfig(name=missing))


def test_a_model_that_is_no_causal_language_model(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=259)
    T5ForConditionalGeneration(config).save_pretrained(copy)
    assert "T5Config" in refusal(ModelConfig(name=str(copy)))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_json_file(copy: Path, file: str) -> None:
    (copy / file).write_text('{"a"')
    assert str(copy) in refusal(ModelConfig(name=str(copy)))


def test_weights_that_are_missing(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(ModelConfig(name=str(copy)))


def test_weights_cut_short_by_a_download(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert str(copy) in refusal(ModelConfig(name=str(copy)))


def test_weights_of_another_shape_than_the_config_says(copy: Path) -> None:
    edit_config(copy, intermediate_size=100)
    assert str(copy) in refusal(ModelConfig(name=str(copy)))


def test_weights_that_lack_a_layer_are_not_made_up(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=5)
    assert str(copy) in refusal(ModelConfig(name=str(copy)))


def test_pickled_weights_are_never_read(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "safetensors" in refusal(ModelConfig(name=str(copy)))


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("peft", ModelConfig(lora=LoraConfig())),
        ("gguf", ModelConfig(gguf_file="model.gguf")),
    ],
)
def test_a_missing_extra_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, module: str, config: ModelConfig
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"peft": "lora", "gguf": "gguf"}[module]
    assert f'needs the package {module}: pip install "pacedrl[{extra}]"' in refusal(config)


def test_lora_targets_that_match_nothing() -> None:
    message = refusal(ModelConfig(lora=LoraConfig(target_modules=["nonsense"])))
    assert message.startswith("model.lora.target_modules: ")
    assert "nonsense" in message


def test_code_of_the_repository_does_not_run_unless_trusted(copy: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (copy / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"})
    refusal(ModelConfig(name=str(copy)))
    assert not ran.exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_trust_and_attention_are_passed_on(monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    calls: list[dict[str, Any]] = []

    def spy(kind: type) -> None:
        real = kind.from_pretrained  # type: ignore[attr-defined]

        def noted(name: str, **options: Any) -> Any:
            calls.append(options)
            return real(name, **options)

        monkeypatch.setattr(kind, "from_pretrained", staticmethod(noted))

    spy(transformers.AutoTokenizer)
    spy(transformers.AutoModelForCausalLM)
    config = ModelConfig(trust_remote_code=True, attn_implementation="eager") if trusted else ModelConfig()
    model, _ = load_model_and_tokenizer(config)
    assert [call["trust_remote_code"] for call in calls] == [trusted, trusted]
    assert calls[1]["use_safetensors"] is True
    assert model.config._attn_implementation == ("eager" if trusted else "sdpa")


def test_tied_and_half_precision_weights_load_as_float32_and_ready_for_use(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.update({n: w.bfloat16() for n, w in weights.items()}))
    edit_config(copy, dtype="bfloat16")
    model, _ = load_model_and_tokenizer(ModelConfig(name=str(copy)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(list(model.parameters())) == len(load_file(copy / "model.safetensors"))
    assert not any(module.training for module in model.modules())


def test_an_untied_head_trains_apart_from_the_embedding(copy: Path) -> None:
    edit_config(copy, tie_word_embeddings=False)
    edit_weights(copy, lambda w: w.update({"lm_head.weight": 2 * w["model.embed_tokens.weight"]}))
    policy = Policy.load(ModelConfig(name=str(copy)), CPU)
    assert torch.equal(policy.head.weight_VH, 2 * policy.model.model.embed_tokens.weight)
    policy.logprobs([[1, 5]], [[6, 2]])[0].sum().backward()
    head, embedding = policy.model.lm_head.weight.grad, policy.model.model.embed_tokens.weight.grad
    assert head.abs().sum(dim=1).count_nonzero() > 100
    assert embedding.abs().sum(dim=1).count_nonzero() == 3  # only the tokens that were read


def test_a_gpu_that_is_not_there_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(InputError, match=r"run\.device: 'cuda' needs a GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cpu") == CPU


def test_the_fingerprint_reads_every_parameter() -> None:
    model, _ = load_model_and_tokenizer(ModelConfig())
    seen = {loading.model_fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.01
        seen.add(loading.model_fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))
