"""The text of the configuration: YAML in which a comment explains each setting."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from pacedrl.init.data import TaskSettings
from pacedrl.init.draft import Draft, Sizes, task_settings
from pacedrl.init.verifier import shown
from pacedrl.policy import vllm
from pacedrl.policy.chat_template import has_thinking_switch
from pacedrl.tasks.games import GOLD_FIELDS

WIDTH = 110
COMMENT_COLUMN = 34
_SIZED_FOR = {
    "tiny": "sized for the tiny model: a few minutes on a CPU",
    "cpu": "sized for a trial on a CPU, because no GPU was found; run init again where the GPU is",
    "gpu": "the paper's sizes, for a model of about 1.5B on one large GPU",
}


class Setting(NamedTuple):
    """A setting, and a comment on its value."""

    value: Any
    comment: str = ""


class Suggestion(Setting):
    """A setting that is written as a comment, for the user to uncomment."""


Tree = Mapping[str, "Setting | Tree"]


def configuration(draft: Draft, size: Sizes) -> str:
    """Return the text of the whole file."""
    head = (
        f"{draft.model} on {shown(draft.data.train['source'])}, {_SIZED_FOR[size.machine]}. Written by pacedrl init.",
        f"All other settings are the recipe's: see pacedrl recipes {draft.recipe.recipe}.",
        "Tune first: optimizer.learning_rate (three times as much if reward/mean does not move, a third if it falls), "
        "then run.steps, then sampling.max_new_tokens if completions are cut off.",
    )
    return "\n".join(line for words in head for line in _comment(words)) + "\n" + yaml_text(_tree(draft, size))


def yaml_text(tree: Tree) -> str:
    """The tree as YAML, with each comment beside its setting if there is room, else above it."""
    return "\n".join(line for name, node in tree.items() for line in _lines(name, node, "")) + "\n"


def _comment(words: str, indent: str = "") -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _lines(name: str, node: Setting | Tree, indent: str) -> list[str]:
    if not isinstance(node, Setting):
        inside = [line for key, child in node.items() for line in _lines(key, child, indent + "  ")]
        return [*([] if indent else [""]), f"{indent}{name}:", *inside]
    setting = f"{indent}{'# ' * isinstance(node, Suggestion)}{name}: {_value(node.value)}"
    beside = f"{setting:<{COMMENT_COLUMN}}  # {node.comment}"
    if not node.comment or len(beside) <= WIDTH:
        return [beside if node.comment else setting]
    return [*_comment(node.comment, indent), setting]


def _value(value: Any) -> str:
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)  # YAML's own quoting would need several lines.
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _tree(draft: Draft, size: Sizes) -> Tree:
    data: dict[str, Any] = {"train": _task(draft, draft.data.train, draft.choice.why)}
    if draft.data.held_out is not None:
        held_out = dict(draft.data.held_out)
        if held_out.get("limit", 0) > size.held_out:  # so that an evaluation takes no longer than a few steps
            held_out["limit"] = size.held_out
        data["eval"] = _task(draft, held_out, "as in training")
    if size.overlong:
        too_long = f"{size.overlong} prompts are longer than sampling.max_prompt_tokens, so they are left out"
        data["overlong"] = Setting("drop", too_long)
    tree: dict[str, Any] = {
        "recipe": Setting(draft.recipe.recipe, "the method; pacedrl recipes lists the others"),
        "run": {
            "dir": Setting(f"runs/{draft.out.stem}", "logs and checkpoints; the same command resumes"),
            "steps": Setting(size.steps, "may be raised later to continue"),
        },
        "model": _model(draft),
        "data": data,
        "sampling": _sampling(draft, size),
        "optimizer": {"learning_rate": Setting(size.learning_rate, "the setting to tune first")},
    }
    if size.machine == "cpu":
        tree["optimizer"]["tokens_per_micro_batch"] = Setting(2048, "per pass; fewer take less memory")
    if draft.recipe.replay.enabled:
        capacity = max(2, size.prompts_per_step)
        tree["replay"] = {
            "capacity": Setting(capacity, "correct completions kept for replay: one for each prompt of a step"),
            "admit": Setting(capacity // 2, "of a step, at most"),
        }
    if draft.data.held_out is not None:
        tree["eval"] = {
            "every": Setting(size.eval_every, "steps between evaluations"),
            "samples": Setting(size.eval_samples, "completions for each held-out prompt"),
            "k": Setting([1, size.eval_samples], "pass@k, up to samples"),
        }
    if draft.choice.verifier == "code":
        tree["verifier"] = {"timeout_s": Setting(15, "4 s for the code, 5 s to start its sandboxes, and some spare")}
    return tree


def _model(draft: Draft) -> Tree:
    where = "not on this machine; training will download it" if draft.local is None else "found on this machine"
    lines: dict[str, Any] = {"name": Setting(draft.model, "the built-in model" if draft.model == "tiny" else where)}
    if draft.local is not None and draft.local.gguf_file is not None:
        lines["gguf_file"] = Setting(draft.local.gguf_file, "needs the gguf extra")
    if draft.model != "tiny":
        lines["lora"] = Suggestion({"r": 16}, "train an adapter: less memory; needs the lora extra")
    return lines


def _task(draft: Draft, task: TaskSettings, why: str) -> dict[str, Any]:
    settings, columns, trains = task_settings(draft, task), draft.data.survey.columns, task is draft.data.train
    comments = {
        "source": _columns_comment(draft) if trains else draft.data.split,
        "columns": "columns of the prompt and the answer",
        "skip": "rows that are held out, below",
        "limit": "rows to evaluate on",
        "options": "arguments for the source",
        "system_prompt": "so that the verifier finds the answer; say what your task needs",
        "prompt_template": "builds the prompt from the row; say what your task needs",
        "chat": "prompts go through the model's chat template, as user messages",
        "verifier": why,
    }
    lines: dict[str, Any] = {name: Setting(value, comments.get(name, "")) for name, value in settings.items()}
    if not trains:
        return lines
    if draft.local is None and not draft.data.survey.chat:
        hint = "uncomment, here and below, if the model (not on this machine) has a chat template"
        lines["chat"] = Suggestion(True, hint)
    if draft.local is not None and draft.local.thinks and has_thinking_switch(draft.local.tokenizer):
        hint = "uncomment, here and below, for answers without thoughts"
        lines["chat_template_kwargs"] = Suggestion({"enable_thinking": False}, hint)
    if columns.others and "prompt_template" not in settings:
        template = "\n".join(f"{{{name}}}" for name in [columns.prompt, *columns.others[:3]])
        hint = "instead of columns.prompt, if one column is not the whole prompt"
        lines["prompt_template"] = Suggestion(template, hint)
    return lines


def _columns_comment(draft: Draft) -> str:
    columns = draft.data.survey.columns
    if draft.data.train["source"] == "skills":
        return "built-in string puzzles"
    answer = "no column holds answers" if columns.answer is None else f"the answer in {shown(columns.answer)}"
    if columns.game is not None:
        answer = f"the answer in {' and '.join(GOLD_FIELDS[columns.game])}"
    if columns.prompt is None:
        return f"the prompt is built from the row, {answer}"
    return f"prompts are in the column {shown(columns.prompt)}, {answer}"


def _sampling(draft: Draft, size: Sizes) -> Tree:
    new_tokens = "longer completions are cut off"
    if draft.local is not None and draft.local.thinks:
        new_tokens = "includes the model's thoughts; longer completions are cut off"
    elif draft.local is not None and (draft.choice.verifier == "exact" or size.machine == "tiny"):
        new_tokens = "the longest answer, and some spare"
    prompt_tokens = "pacedrl doctor says if this is too few" if draft.local is None else ""
    engine: dict[str, Setting] = {}
    if size.machine == "gpu" and vllm.installed():
        engine["engine"] = Setting("vllm", "in the same process; receives the weights before each step")
    elif size.machine == "gpu":
        engine["engine"] = Suggestion("vllm", f"samples faster on a GPU: {vllm.INSTALL}, then uncomment")
    return engine | {
        "prompts_per_step": Setting(size.prompts_per_step, "times group_size: the completions of a step"),
        "group_size": Setting(8, "completions for each prompt"),
        "max_prompt_tokens": Setting(size.max_prompt_tokens, prompt_tokens),
        "max_new_tokens": Setting(size.max_new_tokens, new_tokens),
    }
