"""Loading a causal language model and its tokenizer from any source that transformers supports."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import find_adapter_config_file

from pacedrl.assets import TINY_MODEL
from pacedrl.config import LoraConfig, ModelConfig
from pacedrl.errors import InputError
from pacedrl.policy.logprobs import Head
from pacedrl.text import first_line

FINGERPRINT_VALUES = 256
"""Evenly spaced values of each parameter that enter the fingerprint; any training changes nearly all of them."""

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the configuration entry that caps logits."""


def resolve_device(name: str) -> torch.device:
    """Return the device; ``auto`` chooses the GPU if there is one. Raises InputError if ``cuda`` is not available.

    The GPU is this thread's current one, with its index: ``cuda`` alone would mean another GPU in another thread.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("run.device: 'cuda' needs a GPU, but torch sees none; use 'cpu' or 'auto'")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def use_device(device: torch.device) -> None:
    """Make a GPU the current one of this thread. Every thread starts with the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def load_model_and_tokenizer(config: ModelConfig, folder: Path | None = None) -> tuple[Any, Any]:
    """Load the model in float32 and its tokenizer, from ``folder`` if given, a checkpoint of the same model.

    If ``config.name`` is an adapter (LoRA, saved by this package or another), it is merged into its base model. A LoRA
    config then wraps the model in a new adapter, or in the checkpoint's.

    Raises InputError naming ``model.name`` and the reason if transformers cannot load the model.
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
    model, tokenizer = _load(name, options)
    # An absolute path, because saved adapters name their base model by it.
    model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    if config.lora is not None:
        model = _with_adapter(model, config.lora, folder)
    return model.eval(), tokenizer


def adapter_base(name: str) -> str | None:
    """Return the base model of the adapter ``name``, a folder or a hub name; None if it is not an adapter.

    Raises InputError for an adapter that does not name its base model.
    """
    try:
        path = None if name == "tiny" else find_adapter_config_file(name)
    except (OSError, ValueError):  # not the name of a model, which loading it will report
        path = None
    if path is None:
        return None
    if (problem := damage(Path(path))) is not None:
        raise InputError(f"model.name: {path} {problem}; restore that file")
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(f"model.name: {path} does not name a base model; set base_model_name_or_path in it")
    return base


def adapter_note(name: str) -> str | None:
    """Return a note for users that the model is an adapter; None if it is not."""
    if (base := adapter_base(name)) is None:
        return None
    return f"model.name: '{name}' is an adapter, merged into its base model '{base}'; training starts from the result"


def _load(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    if (base := adapter_base(name)) is not None:
        return _load_merged(name, base, options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # broken files make a dozen libraries raise errors of no common type
        raise InputError(
            f"model.name: cannot load '{name}' as a causal language model: {_reason(name, error)}"
        ) from error
    if info["missing_keys"]:
        absent = sorted(info["missing_keys"])
        raise InputError(f"model.name: the weights in '{name}' lack {len(absent)} tensors, e.g. {absent[0]}")
    if "gguf_file" in options:  # the tensors were dequantised; the marks that remain would only prevent saving them
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
    return model, tokenizer


def _load_merged(name: str, base: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load the base model and add the adapter's weights; the tokenizer is the adapter's if it has one."""
    peft = _require("peft", extra="lora", why=f"model.name: the adapter '{name}'")
    try:
        model, tokenizer = _load(base, options)
    except InputError as error:
        raise InputError(
            f"model.name: '{name}' is an adapter of '{base}': {str(error).removeprefix('model.name: ')}; if that "
            "model lies elsewhere, set base_model_name_or_path in adapter_config.json"
        ) from None
    try:
        model = peft.PeftModel.from_pretrained(model, name).merge_and_unload()
        if (Path(name) / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=options["trust_remote_code"])
    except Exception as error:  # as in _load
        raise InputError(
            f"model.name: cannot merge the adapter '{name}' into '{base}': {_reason(name, error)}"
        ) from error
    return model.requires_grad_(True), tokenizer  # which peft has frozen


def _reason(name: str, error: Exception) -> str:
    """Say on one line why a model could not be loaded, naming a damaged file if there is one."""
    folder = Path(name)
    if not folder.is_dir() and (name.startswith((".", "/")) or name.count("/") > 1):  # not a hub name
        return "there is no such folder"
    if folder.is_dir():
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        if checkpoints:
            return f"it is the folder of a run; name one of its checkpoints, e.g. {checkpoints[-1]}"
        for path in sorted(folder.iterdir()):
            if (problem := damage(path)) is not None:
                return f"{path.name} {problem}; restore that file"
    return first_line(error)


def find_decoder(causal_lm: Any) -> Any:
    """Return the part of the model that turns tokens into last hidden states."""
    decoder = causal_lm.get_decoder()
    # transformers looks for an attribute, and in some models returns the whole model or a single layer.
    if decoder is causal_lm or not isinstance(decoder, transformers.PreTrainedModel):
        decoder = getattr(causal_lm, "model", causal_lm.base_model)
    return decoder


def find_head(causal_lm: Any) -> Head:
    """Find how the model turns last hidden states into logits, and check it against its own logits on a few tokens.

    Raises InputError for a model whose logits do not have the form of `Head`, because its log-probabilities would be
    silently wrong.
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
        except Exception as error:  # the model's own code may raise anything
            name = type(causal_lm).__name__
            raise InputError(f"model.name: {name} cannot be run on tokens alone: {one_line(error)}") from None
        fits = hidden_KH.shape[-1] == linear.weight.shape[1]
        actual = head.logits(hidden_KH) if fits else torch.full_like(expected, torch.nan)
    if not torch.allclose(expected, actual, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise InputError(f"model.name: {type(causal_lm).__name__} computes its logits in a way pacedrl does not know")
    return head


def one_line(error: Exception) -> str:
    """Return an error's message on one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"


def model_fingerprint(model: Any) -> str:
    """Return 16 hex digits that identify architecture and weights, from evenly spaced values of every parameter."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue  # a new adapter changes nothing, so its base identifies the initial policy
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(FINGERPRINT_VALUES, flat.numel()), dtype=torch.float64)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(flat[places.long().to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def damage(path: Path) -> str | None:
    """Say what is wrong with a JSON or safetensors file; None if it can be read, or is neither.

    Of a safetensors file the header and the length are checked, not the values.
    """
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except SafetensorError as error:
        return f"is cut off or damaged ({error})"
    except ValueError as error:
        return f"is cut off or damaged (not JSON: {error})"
    return None


def _with_adapter(model: Any, config: LoraConfig, folder: Path | None) -> Any:
    peft = _require("peft", extra="lora", why="model.lora")
    if folder is not None:
        adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)
        adapted.active_peft_config.base_model_name_or_path = model.name_or_path  # the base may have moved
        return adapted
    settings = peft.LoraConfig(
        r=config.r, lora_alpha=config.alpha, target_modules=config.target_modules, task_type="CAUSAL_LM"
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise InputError(f"model.lora.target_modules: {str(error).splitlines()[0]}") from None


def _require(module: str, extra: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f'{why} needs the package {module}: pip install "pacedrl[{extra}]"') from None
