"""Loading a causal language model and its tokenizer from wherever transformers can."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from pacedrl.assets import TINY_MODEL
from pacedrl.config import LoraConfig, ModelConfig
from pacedrl.errors import InputError
from pacedrl.policy.logprobs import Head

FINGERPRINT_VALUES = 256
"""Values of each parameter that enter the fingerprint, evenly spaced: any training changes nearly all of them."""

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names by which configurations cap logits."""


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises InputError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("run.device: 'cuda' asked for, but torch sees no GPU; use 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_model_and_tokenizer(config: ModelConfig, folder: Path | None = None) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer; from ``folder``, a checkpoint of the same model, if given.

    A LoRA config wraps the model in a fresh adapter, or in the checkpoint's.

    Raises InputError naming ``model.name`` and the reason when transformers cannot load it.
    """
    transformers.utils.logging.disable_progress_bar()
    from_checkpoint = folder is not None and config.lora is None
    name = str(folder) if from_checkpoint else str(TINY_MODEL) if config.name == "tiny" else config.name
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.gguf_file is not None and not from_checkpoint:
        _require("gguf", extra="gguf", why="model.gguf_file")
        options["gguf_file"] = config.gguf_file
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model.name: cannot load '{name}' as a causal language model: {reason}") from None
    if info["missing_keys"]:
        absent = sorted(info["missing_keys"])
        raise InputError(f"model.name: the weights in '{name}' lack {len(absent)} tensors, e.g. {absent[0]}")
    if "gguf_file" in options:
        _forget_quantisation(model)
    if config.lora is not None:
        model = _with_adapter(model, config.lora, folder)
    return model.eval(), tokenizer


def find_decoder(causal_lm: Any) -> Any:
    """The part of the model that turns tokens into last hidden states."""
    decoder = causal_lm.get_decoder()
    # transformers finds it by the name of an attribute, and in some models finds the whole, or another layer.
    if decoder is causal_lm or not isinstance(decoder, transformers.PreTrainedModel):
        decoder = getattr(causal_lm, "model", causal_lm.base_model)
    return decoder


def find_head(causal_lm: Any) -> Head:
    """How the model turns last hidden states into logits, checked against its own logits on a few tokens.

    Raises InputError for a model whose logits are not of the form that `Head` covers: its log-probabilities
    would be silently wrong.
    """
    linear = causal_lm.get_output_embeddings()
    if not isinstance(linear, torch.nn.Linear):
        raise InputError(
            f"model.name: the output layer is a {type(linear).__module__}.{type(linear).__name__}, expected "
            "torch.nn.Linear; leave it out of model.lora.target_modules"
        )
    text_config = causal_lm.config.get_text_config()
    scale = float(getattr(text_config, "logit_scale", None) or 1.0)
    scale /= float(getattr(text_config, "logits_scaling", None) or 1.0)
    softcap = next((getattr(text_config, name) for name in SOFTCAPS if getattr(text_config, name, None)), None)
    head = Head(linear.weight, linear.bias, scale, softcap)
    with torch.no_grad():
        probe = torch.arange(4, device=linear.weight.device).unsqueeze(0)
        try:
            expected = causal_lm(input_ids=probe, use_cache=False).logits[0].float()
            hidden_KH = find_decoder(causal_lm)(input_ids=probe, use_cache=False).last_hidden_state[0]
        except Exception as error:  # of the model's own code, which may raise anything
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(
                f"model.name: {type(causal_lm).__name__} cannot be run on tokens alone: {reason}"
            ) from None
        fits = hidden_KH.shape[-1] == linear.weight.shape[1]
        actual = head.logits(hidden_KH) if fits else torch.full_like(expected, torch.nan)
    if not torch.allclose(expected, actual, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise InputError(f"model.name: {type(causal_lm).__name__} computes its logits in a way pacedrl does not know")
    return head


def model_fingerprint(model: Any) -> str:
    """16 hex digits that identify architecture and weights, from evenly spaced values of every parameter."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue  # the adapter starts as the identity: what identifies the initial policy is what it adapts
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(FINGERPRINT_VALUES, flat.numel()), dtype=torch.float64)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(flat[places.long().to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _with_adapter(model: Any, config: LoraConfig, folder: Path | None) -> Any:
    peft = _require("peft", extra="lora", why="model.lora")
    if folder is not None:
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise InputError(f"model.lora.target_modules: {str(error).splitlines()[0]}") from None


def _forget_quantisation(model: Any) -> None:
    # The tensors were dequantised on loading; the marks left behind would only forbid saving them.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config


def _require(module: str, extra: str, why: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f'{why} needs the package {module}: pip install "pacedrl[{extra}]"') from None
