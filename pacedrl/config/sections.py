"""Settings around the method: run, model, data, sampling, optimiser, verifiers, evaluation, checkpoints, trackers.

The paper's values where it states them (section 5 and appendix); else the docstring of the field says so.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pacedrl.config.base import Free, HomePath, HomeText, NonNegative, Positive, Probability, Section


class RunConfig(Section):
    """Where the run lives and how long it is."""

    dir: Free[HomePath] = Path("runs/default")
    """The run's folder. One that holds a checkpoint is resumed."""
    steps: Free[Positive] = 150
    """How many in all, those before a resumption included."""
    max_rollouts: Free[Positive | None] = None
    """End with the step at which as many completions were generated, thrown away ones included, if that comes first."""
    seed: NonNegative = 0
    """Every random number is derived from it and from what the number is for."""
    device: Free[Literal["auto", "cpu", "cuda"]] = "auto"
    """``auto``: the first GPU if there is one, else the CPU."""
    samples_per_step: Free[NonNegative] = 4
    """Completions written to samples.jsonl each step."""


class LoraConfig(Section):
    """Train a low-rank adapter in place of the whole model (needs the ``lora`` extra)."""

    r: Positive = 16
    """Rank of the adapter."""
    alpha: Positive = 32
    """The adapter's output is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that are adapted; ``all-linear``: all but the output layer."""


class ModelConfig(Section):
    """Any causal language model that transformers can load."""

    name: Free[HomeText] = "tiny"
    """A hub name, a local folder, or ``tiny``: the small pretrained model that ships with the package. A resumed run
    needs the same weights, wherever they are."""
    gguf_file: Free[str | None] = None
    """A GGUF file inside ``name`` to load the weights from (needs the ``gguf`` extra)."""
    trust_remote_code: Free[bool] = False
    """Run Python code that the model's repository ships. Off unless you trust it."""
    attn_implementation: Free[str | None] = None
    """``eager``, ``sdpa`` or another of transformers'; transformers chooses unless given."""
    lora: LoraConfig | None = None
    """Train an adapter; the whole model unless given."""


class RewardPartConfig(Section):
    """Something added to the verdict when the policy is trained; accuracy is the verdict's alone."""

    name: str
    """Logged as ``reward/part/NAME``."""
    verifier: HomeText
    """As in ``data.train.verifier``."""
    weight: float
    """Times the verifier's reward, in [0, 1]; may be negative."""
    options: dict[str, Any] = {}
    """Of the built-in verifiers ``math`` and ``code``."""

    @field_validator("verifier", mode="before")
    @classmethod
    def _function_by_reference(cls, value: Any) -> Any:
        return _function_reference(value) if callable(value) else value


class TaskConfig(Section):
    """One set of prompts and the verifier that judges their completions."""

    source: HomeText | list[HomeText] = "skills"
    """``skills``, ``gym:NAME`` (reasoning-gym), a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow; text also
    as .gz, .bz2, .xz, .zst), a pattern (``data/train-*.parquet``), a folder of such files, a folder that
    ``save_to_disk`` wrote, or a hub dataset; or a list of these. A local file or folder is used rather than a hub
    dataset of the same name."""
    name: str | None = None
    """Shown in tables; the source's own name unless given."""
    split: str = "train"
    """Split of a hub dataset or a folder; ``train`` or ``test`` of the built-in skills. Ignored for files."""
    columns: dict[Literal["prompt", "answer"], str] = {}
    """Which columns hold the prompt and the answer, or dotted paths into them (``final_answer.0``). verl-style and
    TRL-style rows need no mapping, nor do games whose answer is in several columns (``nums`` and ``target``)."""
    prompt_template: str | None = None
    """Builds the prompt from columns, e.g. ``"{Body}. {Question}"``; the result is the user's message or the text."""
    system_prompt: str | None = None
    """A system message before the user's, through the chat template."""
    chat: bool = False
    """Send a plain-text prompt as one user message through the chat template."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template, such as ``{enable_thinking: false}``. A row's column of this name goes before
    them, key by key. A row's column ``tools``, a list of JSON schemas, reaches the template as well."""
    verifier: HomeText | None = None
    """``math``, ``exact``, ``numeric``, ``code``, ``countdown``, ``knights_knaves``, ``gym``,
    ``path/to/file.py:function`` or ``package.module:function``. From Python also a function itself, of TRL's signature
    and at the top level of a module."""
    verifier_options: dict[str, Any] = {}
    """Of the built-in verifiers ``math`` and ``code``."""
    extra_rewards: list[RewardPartConfig] = []
    """Added to the verdict when the policy is trained, each with its weight."""
    options: dict[str, Any] = {}
    """Passed on to the source: reasoning-gym's dataset parameters, the skills' names and sizes, ``load_dataset``'s."""
    skip: NonNegative = 0
    """Rows left out at the start of the file."""
    limit: Positive | None = None
    """Rows ``skip : skip + limit`` in file order."""

    @field_validator("source", mode="before")
    @classmethod
    def _names_a_source(cls, value: Any) -> Any:
        sources = value if isinstance(value, list) else [value]
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise ValueError("must be the name of a source, or a list of such names")
        return value

    @field_validator("verifier", mode="before")
    @classmethod
    def _function_by_reference(cls, value: Any) -> Any:
        return _function_reference(value) if callable(value) else value


class RewardConfig(Section):
    """What is added to every task's reward when the policy is trained."""

    overlong_buffer: NonNegative = 0
    """DAPO's soft penalty: none up to ``sampling.max_new_tokens`` less this, then growing linearly; 0 turns it off."""
    overlong_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    """Taken off the reward of a completion of the full length."""


class DataConfig(Section):
    """What to train on and what to hold out."""

    train: Free[list[TaskConfig]] = [TaskConfig()]
    """One set of prompts, or a list of several. A resumed run needs the prompts that it was trained on, and what judges
    them, wherever they come from."""
    eval: Free[list[TaskConfig]] = []
    """Held-out sets, evaluated one by one."""
    overlong: Free[Literal["error", "drop"]] = "error"
    """What to do with prompts of more than ``sampling.max_prompt_tokens`` tokens."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_task_is_a_list_of_one(cls, value: Any, field: ValidationInfo) -> Any:
        if value is None and field.field_name == "eval":
            return []
        return [value] if isinstance(value, dict) else value


class SamplingConfig(Section):
    """Rollouts of a step: ``prompts_per_step`` × ``group_size`` completions."""

    prompts_per_step: Positive = 128
    """P. The paper does not state it; 128 is ours."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """G. At G = 1 no group can be mixed and accuracy is observed as 0 or 1 only: refused."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Divides the logits, both when sampling and when training."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Tokens are drawn from the likeliest with this much probability. Below 1 samples are slightly off-policy."""
    max_prompt_tokens: Free[Positive] = 1024
    """Longest prompt; ``data.overlong`` says what becomes of longer ones."""
    max_new_tokens: Positive = 3072
    """Longest completion; it is cut there."""
    stop: list[str] = []
    """Tokens or strings, such as ``</answer>``, at which a completion ends, besides the model's end tokens and the end
    of a turn in its chat template. The text that is judged ends before the string, its tokens with it. Evaluation
    uses the same."""
    batch_size: Free[Positive] = 256
    """Sequences decoded at once."""
    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """What draws the completions: the model itself, vLLM in the same process (needs the ``vllm`` extra), or servers."""
    servers: Free[list[str]] = []
    """URLs of ``vllm serve`` processes, started as docs/serving.md says, which this run has to itself."""
    server_timeout_s: Free[Annotated[float, Field(gt=0.0)]] = 1800.0
    """How long a server may take over a prompt's completions; past it the prompt is asked of another."""
    server_patience_s: Free[Annotated[float, Field(ge=0.0)]] = 600.0
    """How long the run waits for a server when all are lost, before it ends."""
    gpu_memory: Free[Annotated[float, Field(gt=0.0, le=1.0)]] = 0.4
    """Share of the GPU's memory for vLLM's weights and cache; the rest is for training."""
    ahead: bool = False
    """Sample the next step's completions while this step trains: they come from the policy one step older, and their
    prompts are chosen before this step's results are known. Trajectory balance allows for it. Costs a second copy of
    the weights."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_string_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _are_not_empty(cls, stop: list[str]) -> list[str]:
        if "" in stop:
            raise ValueError("an empty string is in every text; leave it out")
        return stop

    @field_validator("servers")
    @classmethod
    def _are_urls(cls, servers: list[str]) -> list[str]:
        for url in servers:
            if not _names_a_server(url):
                raise ValueError(f"'{url}' is not of the form http://HOST:PORT")
        if len({url.rstrip("/") for url in servers}) < len(servers):
            raise ValueError("a server is named twice")
        return servers


class OptimizerConfig(Section):
    """AdamW on the policy."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-6
    """Of the policy, after the warm-up. The paper's, for models of 1.5B and more."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """AdamW's."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """AdamW's."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: ``constant``, or falling to 0 at ``run.steps``."""
    warmup_steps: NonNegative = 0
    """Steps over which the learning rate rises from 0."""
    mini_batches: Positive = 1
    """Parts that a step's completions are split into at random, each with an optimiser step of its own."""
    epochs: Positive = 1
    """Passes over a step's completions."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """A longer gradient is shortened to this."""
    tokens_per_micro_batch: Free[Positive] = 16384
    """Tokens in one forward and backward pass: completions and their distinct prompts; on a model whose attention does
    not let completions share a prompt, rows padded to the longest."""
    gradient_checkpointing: Free[bool] = False
    """Compute each layer's activations again in the backward pass: a third more time for a fraction of the memory."""
    activation_offload: Free[bool] = False
    """Keep activations in the host's memory until the backward pass: for a GPU that is short of its own."""


class ScaleConfig(Section):
    """What the processes of a run share, where ``torchrun`` or ``accelerate launch`` started several."""

    shard: bool = False
    """Split weights, gradients and optimiser state among the processes (FSDP2), not the completions alone. With
    ``sampling.engine`` transformers each also keeps the weights in one piece, to sample from."""


class VerifierConfig(Section):
    """The processes that judge completions."""

    workers: Positive = 2
    """How many completions are judged at once."""
    timeout_s: Annotated[float, Field(gt=0.0)] = 10.0
    """Wall-clock seconds one completion may take; past it the worker is killed and the verdict is an error. The time
    that modules take to load is not counted."""
    memory_mib: Positive = 2048
    """What a verifier may allocate beyond what its modules take; past it the verdict is an error."""
    check_gold: bool = True
    """Refuse to start when a verifier rejects every gold answer it is shown."""


class EvalConfig(Section):
    """Evaluation on ``data.eval`` during training."""

    every: NonNegative = 0
    """Steps between evaluations; 0 evaluates at the start and the end only."""
    every_rollouts: NonNegative = 0
    """Evaluate also whenever as many more completions were generated: the same grid for recipes that generate more
    of them a step."""
    samples: Positive = 8
    """Completions a prompt."""
    k: Annotated[list[Positive], Field(min_length=1)] = [1, 8]
    """The k of pass@k, each at most ``samples``."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """As in ``sampling.top_p``."""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvalConfig:
        if max(self.k) > self.samples:
            raise ValueError(f"k = {max(self.k)} needs at least as many samples a prompt, not {self.samples}")
        return self


class CheckpointConfig(Section):
    """Written whole or not at all; the last step is always kept."""

    every: Positive = 25
    """Steps between checkpoints."""
    keep: Positive = 2
    """The newest ones that are kept."""


class TrackingConfig(Section):
    """Trackers beside metrics.jsonl (needs the ``trackers`` extra)."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Each is told what metrics.jsonl is told."""
    project: str = "pacedrl"
    """What trackers file the run under."""


def _names_a_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (raises for one out of range)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.path.strip("/") + parts.query


def _function_reference(function: Any) -> str:
    """Where verifier processes find a function: ``file.py:name``. Raises ValueError where they could not."""
    name = getattr(function, "__qualname__", type(function).__name__)
    if not inspect.isfunction(function) or "<" in name:
        raise ValueError(f"{name} must be a function at the top level of a module: other processes import it by name")
    # A cell of a notebook and a line at a prompt have a name like a file's, but no file.
    file = Path(inspect.getfile(function))
    if not file.is_file():
        raise ValueError(
            f"{name} is defined in a notebook cell or at a prompt, where the processes that judge cannot import it: "
            f"put it in a file (begin its cell with %%writefile my_{name}.py) and set the verifier to "
            f"'my_{name}.py:{name}'"
        )
    return f"{file}:{name}"
