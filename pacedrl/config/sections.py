"""Settings around the method: run, model, data, sampling, optimiser, verifiers, evaluation, checkpoints, trackers.

The defaults are the paper's values (section 5 and appendix); a field's docstring says so where the paper states none.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pacedrl.config.base import Free, HomePath, HomeText, NonNegative, Positive, Probability, Section


def _reference(function: Any) -> Any:
    """The reference ``file.py:name`` by which worker processes import a function; other values stay as they are.

    Raises ValueError for a function that they could not import.
    """
    if not callable(function):
        return function
    name = getattr(function, "__qualname__", type(function).__name__)
    if not inspect.isfunction(function) or "<" in name:
        raise ValueError(f"{name} must be a function at the top level of a module: other processes import it by name")
    # Notebook cells and interactive input have a pseudo file name, but no file.
    file = Path(inspect.getfile(function))
    if not file.is_file():
        raise ValueError(
            f"{name} is defined in a notebook cell or an interactive session, where worker processes cannot import it: "
            f"put it in a file (begin its cell with %%writefile my_{name}.py) and set the verifier to "
            f"'my_{name}.py:{name}'"
        )
    return f"{file}:{name}"


VerifierName = Annotated[HomeText, BeforeValidator(_reference)]
"""Name of a verifier, or the function itself."""


class RunConfig(Section):
    """The run's folder, length, seed and device."""

    dir: Free[HomePath] = Path("runs/default")
    """Folder of the run's logs and checkpoints. If it holds a checkpoint, the run is resumed from it."""
    steps: Free[Positive] = 150
    """Total number of training steps, including those before a resume."""
    max_rollouts: Free[Positive | None] = None
    """Stop after the step in which the total number of generated completions, including discarded ones, reaches this.
    null: only ``steps`` limits the run."""
    seed: NonNegative = 0
    """Seed of all random numbers. Each random stream is derived from it and from the stream's purpose."""
    device: Free[Literal["auto", "cpu", "cuda"]] = "auto"
    """``auto``: the first GPU if there is one, else the CPU."""
    deterministic: Free[bool] = False
    """Make updates on a GPU give the same bits each time, which is slower. On a CPU they always do."""
    samples_per_step: Free[NonNegative] = 4
    """Number of completions written to samples.jsonl in each step."""


class LoraConfig(Section):
    """Train a low-rank adapter (LoRA) instead of all weights. Needs the ``lora`` extra."""

    r: Positive = 16
    """Rank of the adapter."""
    alpha: Positive = 32
    """The adapter's output is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter. ``all-linear``: all linear layers except the output layer."""


class ModelConfig(Section):
    """Any causal language model that transformers can load."""

    name: Free[HomeText] = "tiny"
    """Name of a model on the hub, a local folder, or ``tiny``, the small pretrained model in this package. A resumed
    run needs the same weights, but they may have moved."""
    gguf_file: Free[str | None] = None
    """Name of a GGUF file inside ``name`` from which the weights are loaded. Needs the ``gguf`` extra."""
    trust_remote_code: Free[bool] = False
    """Run Python code from the model's repository. Enable it only for a repository that you trust."""
    attn_implementation: Free[Literal["sdpa", "eager"] | None] = None
    """Attention implementation of transformers. null: transformers chooses, nearly always ``sdpa``. With ``eager``,
    updates and sampling with transformers use it instead of this package's own attention, in which completions share
    their prompt: slower, and it holds all attention weights. flash-attn has no float32, in which models are checked;
    ``sdpa`` uses torch's flash kernels where it can."""
    lora: LoraConfig | None = None
    """Train a LoRA adapter. null: train all weights."""


class RewardPartConfig(Section):
    """A weighted reward that is added to the task verifier's reward in training. Accuracy ignores it."""

    name: str
    """Name of this part in the logs: ``reward/part/NAME``."""
    verifier: VerifierName
    """The verifier that computes it, given as for ``data.train.verifier``."""
    weight: float
    """Factor for the verifier's reward, which is in [0, 1]. May be negative."""
    options: dict[str, Any] = {}
    """Options of the built-in verifiers ``math`` and ``code``."""


class TaskConfig(Section):
    """One set of prompts and the verifier that judges their completions."""

    source: HomeText | list[HomeText] = "skills"
    """``skills`` (built-in string puzzles), ``gym:NAME`` (reasoning-gym), a file (.jsonl, .ndjson, .json, .csv, .tsv,
    .parquet, .arrow; text files also compressed as .gz, .bz2, .xz, .zst), a pattern (``data/train-*.parquet``), a
    folder of such files, a folder written by ``save_to_disk``, or a hub dataset; or a list of these. A local file or
    folder takes precedence over a hub dataset of the same name."""
    name: str | None = None
    """Name of the task in tables and logs. null: the name of the source."""
    split: str = "train"
    """Split of a hub dataset or a folder; ``train`` or ``test`` of the built-in skills. Ignored for files."""
    columns: dict[Literal["prompt", "answer"], str] = {}
    """Columns that hold the prompt and the answer, or dotted paths into them (``final_answer.0``). Not needed for
    verl-style and TRL-style rows, or for games whose answer is in several columns (``nums`` and ``target``)."""
    prompt_template: str | None = None
    """Template that builds the prompt from columns, e.g. ``"{Body}. {Question}"``. The result is the user message of a
    chat, or the plain-text prompt."""
    system_prompt: str | None = None
    """System message that precedes the user message. The prompt then goes through the chat template."""
    chat: bool = False
    """Send a plain-text prompt through the chat template, as one user message."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template, such as ``{enable_thinking: false}``. A row's column of the same name overrides
    them key by key. A row's column ``tools``, a list of JSON schemas, is also passed to the template."""
    verifier: VerifierName | None = None
    """``math``, ``exact``, ``numeric``, ``code``, ``countdown``, ``knights_knaves``, ``gym``,
    ``path/to/file.py:function`` or ``package.module:function``. In Python, also the function itself, which needs TRL's
    signature and must be defined at the top level of a module. null: ``exact`` for ``skills``, ``gym`` for
    ``gym:NAME``, and ``math`` for other sources."""
    verifier_options: dict[str, Any] = {}
    """Options of the built-in verifiers ``math`` and ``code``."""
    extra_rewards: list[RewardPartConfig] = []
    """Weighted rewards that are added to the verifier's reward in training."""
    options: dict[str, Any] = {}
    """Arguments for the source: dataset parameters of reasoning-gym, names and sizes of the skills, or arguments of
    ``load_dataset``."""
    skip: NonNegative = 0
    """Number of rows to skip at the start of the source."""
    limit: Positive | None = None
    """Number of rows to read after ``skip``, in file order. null: all rows."""

    @field_validator("source", mode="before")
    @classmethod
    def _names_a_source(cls, value: Any) -> Any:
        sources = value if isinstance(value, list) else [value]
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise ValueError("must be the name of a source, or a list of such names")
        return value


class RewardConfig(Section):
    """Length penalty that is added to the reward of every task in training."""

    overlong_buffer: NonNegative = 0
    """Length in tokens over which DAPO's soft overlong penalty grows linearly from 0, ending at
    ``sampling.max_new_tokens``. 0: no penalty."""
    overlong_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    """Penalty that is subtracted from the reward of a completion of ``sampling.max_new_tokens`` tokens."""


class DataConfig(Section):
    """Tasks for training and for evaluation."""

    train: Free[list[TaskConfig]] = [TaskConfig()]
    """Training task, or a list of them. A resumed run needs the same prompts and verifiers, but the files may have
    moved."""
    eval: Free[list[TaskConfig]] = []
    """Held-out task, or a list of them; each is evaluated separately."""
    overlong: Free[Literal["error", "drop"]] = "error"
    """How prompts longer than ``sampling.max_prompt_tokens`` are handled: an error, or left out."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_task_is_a_list_of_one(cls, value: Any, field: ValidationInfo) -> Any:
        if value is None and field.field_name == "eval":
            return []
        return [value] if isinstance(value, dict) else value


class SamplingConfig(Section):
    """Sampling of a step's rollouts: ``prompts_per_step`` × ``group_size`` completions."""

    prompts_per_step: Positive = 128
    """P, the number of prompts per step. The paper does not state it; 128 is our choice."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """G, the number of completions per prompt. 1 is refused, because a single completion allows no comparison within
    its group."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling temperature. Training also divides the logits by it."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling: tokens are drawn from the smallest set of most likely tokens with at least this probability.
    Below 1, samples are slightly off-policy."""
    max_prompt_tokens: Free[Positive] = 1024
    """Maximum prompt length in tokens; ``data.overlong`` says how longer prompts are handled."""
    max_new_tokens: Positive = 3072
    """Maximum completion length in tokens; longer completions are cut off."""
    stop: list[str] = []
    """Tokens or strings, such as ``</answer>``, that end a completion, in addition to the model's end tokens and its
    chat template's end of turn. The judged text ends before the string; the completion's tokens end with it. Evaluation
    also uses them."""
    batch_size: Free[Positive] = 256
    """Maximum number of sequences decoded at the same time."""
    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """Sampling engine: ``transformers``, ``vllm`` in the same process (needs the ``vllm`` extra), or ``vllm_server``,
    the processes in ``servers``."""
    servers: Free[list[str]] = []
    """URLs of ``vllm serve`` processes, started as docs/serving.md describes. No other run may use them."""
    server_timeout_s: Free[Annotated[float, Field(gt=0.0)]] = 1800.0
    """Seconds that a server may take for the completions of one prompt. After that, the prompt is sent to another
    server."""
    server_patience_s: Free[Annotated[float, Field(ge=0.0)]] = 600.0
    """Seconds that the run waits for a server to come back after all are lost. After that, the run stops."""
    gpu_memory: Free[Annotated[float, Field(gt=0.0, le=1.0)]] = 0.4
    """Fraction of the GPU's memory for vLLM's weights and KV cache; training uses the rest."""
    ahead: bool = False
    """Sample the next step's completions while the current step trains. They come from a policy that is one step older,
    and their prompts are selected before the current step's results are known. Trajectory balance corrects for the
    older policy. Needs memory for a second copy of the weights."""

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
    """Learning rate of the policy after the warm-up. 1e-6 is the paper's, for models of 1.5B parameters and more;
    smaller models need more."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight decay of AdamW."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """β₁ and β₂ of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up. ``linear`` and ``cosine`` decay to 0 at ``run.steps``."""
    warmup_steps: NonNegative = 0
    """Number of steps in which the learning rate rises linearly from 0."""
    mini_batches: Positive = 1
    """Number of random mini-batches into which a step's completions are split; each takes one optimiser step."""
    epochs: Positive = 1
    """Number of passes over a step's completions."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    tokens_per_micro_batch: Free[Positive] = 16384
    """Maximum number of tokens in one forward and backward pass, counting completions and their distinct prompts. Where
    attention pads completions to the longest, padding counts in proportion to its memory. If the model's attention
    cannot share a prompt among completions, rows are padded to the longest and padding counts fully. When a GPU runs
    out of memory in an update, the number becomes half of what did not fit, for the rest of the run."""
    gradient_checkpointing: Free[bool | None] = None
    """Recompute each layer's activations in the backward pass. Takes about a third more time and much less memory.
    null: on a GPU, if the model supports it."""


class ScaleConfig(Section):
    """How work is divided among the processes that ``torchrun`` or ``accelerate launch`` started."""

    shard: bool = False
    """Shard weights, gradients and optimiser state among the processes (FSDP2). false: only the completions are divided
    among them. With ``sampling.engine: transformers``, each process also keeps a full copy of the weights for
    sampling."""


class VerifierConfig(Section):
    """The worker processes that judge completions."""

    workers: Positive = 2
    """Number of worker processes, each of which judges one completion at a time."""
    timeout_s: Annotated[float, Field(gt=0.0)] = 10.0
    """Wall-clock seconds that judging one completion may take. After that, the worker is killed and the verdict is an
    error. Time for importing modules does not count."""
    memory_mib: Positive = 2048
    """MiB of memory that a verifier may allocate in addition to its imported modules. Beyond that, the verdict is an
    error."""
    check_gold: bool = True
    """Refuse to start if a verifier rejects all gold answers that it is tried on."""


class EvalConfig(Section):
    """Evaluation on ``data.eval`` during training."""

    every: NonNegative = 0
    """Number of steps between evaluations. 0: only at the start and the end."""
    every_rollouts: NonNegative = 0
    """Also evaluate each time this many more completions have been generated, so that recipes that generate different
    numbers per step are evaluated at the same points. 0: never."""
    samples: Positive = 8
    """Number of completions per prompt."""
    k: Annotated[list[Positive], Field(min_length=1)] = [1, 8]
    """Values of k for pass@k, each at most ``samples``."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Sampling temperature. 0: greedy decoding."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling, as for ``sampling.top_p``."""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvalConfig:
        if max(self.k) > self.samples:
            raise ValueError(f"k = {max(self.k)} needs at least as many samples per prompt, not {self.samples}")
        return self


class CheckpointConfig(Section):
    """Checkpoints, which are written atomically. The last step always gets one."""

    every: Positive = 25
    """Number of steps between checkpoints."""
    keep: Positive = 2
    """Number of checkpoints to keep; older ones are deleted."""


class TrackingConfig(Section):
    """Experiment trackers that receive the metrics in addition to metrics.jsonl. Needs the ``trackers`` extra."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """The trackers to use."""
    project: str = "pacedrl"
    """Name of the project under which trackers store the run."""


def _names_a_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (raises ValueError for a port out of range)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.path.strip("/") + parts.query
