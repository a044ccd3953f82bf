"""The configuration that is written: every setting with why it is what it is."""

from __future__ import annotations

from typing import Any

from pacedrl.init.data import Settings
from pacedrl.init.plan import Plan, task_settings
from pacedrl.init.sizes import Sizes
from pacedrl.init.verifier import shown
from pacedrl.init.yaml_text import Idea, Line, Tree, comment, text
from pacedrl.tasks.games import GOLD_FIELDS

_WHY_KIND = {
    "tiny": "sized for the tiny model: a few minutes on a CPU",
    "cpu": "sized for a CPU, as no GPU is seen here: a trial; run init again where the GPU is",
    "gpu": "the paper's sizes, for a model of about 1.5B on one large GPU",
}


def configuration(plan: Plan, size: Sizes) -> str:
    """The whole file."""
    head = [
        *comment(
            f"{plan.model} on {shown(plan.data.train['source'])}, {_WHY_KIND[size.kind]}. Written by pacedrl init."
        ),
        *comment("What is not said here is the recipe's: see pacedrl recipes " + plan.config.recipe + "."),
        *comment(
            "Change first: optimizer.learning_rate (three times as much if reward/mean does not move, a third if it "
            "falls), then run.steps, then sampling.max_new_tokens if completions are cut off."
        ),
    ]
    return "\n".join(head) + "\n" + text(tree(plan, size))


def tree(plan: Plan, size: Sizes) -> Tree:
    """The settings and their comments."""
    tasks = {"train": _task(plan, plan.data.train, plan.choice.why)}
    if plan.data.held_out is not None:
        tasks["eval"] = _task(plan, {**plan.data.held_out, **_fewer(plan, size)}, "as in training")
    overlong = f"{size.overlong} prompts are longer than sampling.max_prompt_tokens, so they are left out"
    made: dict[str, Any] = {
        "recipe": Line(plan.config.recipe, "the method; pacedrl recipes lists the others"),
        "run": {
            "dir": Line(f"runs/{plan.out.stem}", "logs and checkpoints; the same command goes on from there"),
            "steps": Line(size.steps, "may be raised later to go on"),
        },
        "model": _model(plan),
        "data": {**tasks, **({"overlong": Line("drop", overlong)} if size.overlong else {})},
        "sampling": _sampling(plan, size),
        "optimizer": {
            "learning_rate": Line(size.learning_rate, "the setting to tune first"),
            **({"tokens_per_micro_batch": Line(2048, "at once; less takes less memory")} if size.kind == "cpu" else {}),
        },
    }
    if plan.config.replay.enabled:
        capacity = max(2, size.prompts_per_step)
        made["replay"] = {
            "capacity": Line(capacity, "correct completions kept to train on again: one for each prompt of a step"),
            "admit": Line(capacity // 2, "of a step, at most"),
        }
    if plan.data.held_out is not None:
        made["eval"] = {
            "every": Line(size.eval_every, "steps between evaluations"),
            "samples": Line(size.eval_samples, "completions for each held-out prompt"),
            "k": Line([1, size.eval_samples], "pass@k, up to samples"),
        }
    if plan.choice.verifier == "code":
        made["verifier"] = {"timeout_s": Line(15, "room for the code's own 4 s, and 5 s to start its sandboxes")}
    return made


def _model(plan: Plan) -> Tree:
    known = "found on this machine" if plan.known is not None else "not on this machine; training will download it"
    made: dict[str, Any] = {"name": Line(plan.model, "the built-in model" if plan.model == "tiny" else known)}
    if plan.known is not None and plan.known.gguf_file is not None:
        made["gguf_file"] = Line(plan.known.gguf_file, "needs the gguf extra")
    if plan.model != "tiny":
        made["lora"] = Idea({"r": 16}, "train an adapter: less memory; needs the lora extra")
    return made


def _task(plan: Plan, task: Settings, why: str) -> Tree:
    survey, made = plan.data.survey, task_settings(plan, task)
    notes = {
        "source": _columns_note(plan) if task is plan.data.train else plan.data.split,
        "columns": "which columns are the prompt and the answer",
        "skip": "rows that are held out, below",
        "limit": "rows evaluated on",
        "options": "passed on to the source",
        "system_prompt": "so that the verifier finds the answer; say what your task needs",
        "prompt_template": "builds the prompt from the row; say what your task needs",
        "chat": "prompts go through the model's chat template, as a user's message",
        "verifier": why,
    }
    lines: dict[str, Any] = {name: Line(value, notes.get(name, "")) for name, value in made.items()}
    if task is plan.data.train and plan.known is None and not survey.chat:
        hint = "uncomment, here and below, if the model has a chat template: it is not here to be asked"
        lines["chat"] = Idea(True, hint)
    if task is plan.data.train and plan.can_stop_thinking:
        lines["chat_template_kwargs"] = Idea(
            {"enable_thinking": False}, "uncomment, here and below, for answers without thoughts before them"
        )
    if task is plan.data.train and survey.columns.others and "prompt_template" not in made:
        names = [survey.columns.prompt, *survey.columns.others[:3]]
        template = "\n".join(f"{{{name}}}" for name in names)
        lines["prompt_template"] = Idea(
            template, "in place of columns.prompt, where one column is not all of the prompt"
        )
    return lines


def _columns_note(plan: Plan) -> str:
    columns = plan.data.survey.columns
    if plan.data.train["source"] == "skills":
        return "built-in string puzzles"
    answer = "no column holds answers" if columns.answer is None else f"the answer in {shown(columns.answer)}"
    if columns.game is not None:
        answer = f"the answer in {' and '.join(GOLD_FIELDS[columns.game])}"
    if columns.prompt is None:
        return f"the prompt is built from the row, {answer}"
    return f"prompts are in the column {shown(columns.prompt)}, {answer}"


def _fewer(plan: Plan, size: Sizes) -> Settings:
    """An evaluation that takes no longer than a few steps."""
    held_out = plan.data.held_out or {}
    return {"limit": size.held_out} if held_out.get("limit", 0) > size.held_out else {}


def _sampling(plan: Plan, size: Sizes) -> Tree:
    measured = plan.known is not None
    if plan.thinks:
        answers = (
            "room for thoughts before the answer, which this model's template allows; longer completions are cut off"
        )
    elif measured and (plan.choice.verifier == "exact" or size.kind == "tiny"):
        answers = "the longest answer and some room"
    else:
        answers = "longer completions are cut off"
    return {
        "prompts_per_step": Line(size.prompts_per_step, "times group_size: the completions of a step"),
        "group_size": Line(8, "completions for each prompt"),
        "max_prompt_tokens": Line(
            size.max_prompt_tokens, "" if measured else "pacedrl doctor says if it is too little"
        ),
        "max_new_tokens": Line(size.max_new_tokens, answers),
    }
