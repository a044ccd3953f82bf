"""The guide and the page on the method quote what was measured or what the code computes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from docs_blocks import ROOT
from test_docs import module, settings_by_section
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from pacedrl.config import load_config
from pacedrl.lab.calibrate import load_calibration
from pacedrl.lab.results import Results
from pacedrl.policy.memory import GIB, estimate
from pacedrl.recipes import RECIPES

GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
METHOD = (ROOT / "docs/method.md").read_text(encoding="utf-8")
QWEN = Qwen2Config(
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
"""Architecture of Qwen2.5-Math-1.5B."""
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
"""Architecture of Qwen2.5-Math-7B."""
MODELS = [(QWEN, "cuda"), (QWEN, "cuda"), (QWEN, "cuda"), (QWEN_7B, "cuda"), (SMOLLM2, "cpu")]
"""Models and devices of the guide's table on memory."""


def rows_below(heading: str, text: str = GUIDE) -> list[list[str]]:
    """Return the cells of the first table below a line, without its header."""
    lines = text.partition(heading)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    stop = next((i for i, line in enumerate(lines[start:], start) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : stop]]


def test_the_guide_says_what_was_measured(tmp_path: Path) -> None:
    template = (ROOT / "docs/guide.template.md").read_text(encoding="utf-8")
    assert module("results").page(template, tmp_path) == GUIDE
    assert list(tmp_path.iterdir()) == []


def test_no_page_counts_the_recipes() -> None:
    number = r"(\w+teen|twenty(-\w+)?)"
    counted = re.compile(rf"\b({number}|\d+) recipes\b|\ball {number}\b", re.IGNORECASE)
    assert counted.search("covers all seventeen")
    assert counted.search("There are 22 recipes")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {path.name: found[0] for path in pages if (found := counted.search(path.read_text(encoding="utf-8")))} == {}


def test_the_page_on_skills_names_the_recipes_that_it_does_not_have() -> None:
    page = " ".join((ROOT / "docs/results/skills.template.md").read_text(encoding="utf-8").split())
    studied = Results.load(ROOT / "docs/results/skills_skewed.json").variants
    found = re.search(r"\.md\)\. (`.*`) came later and have no study on evaluation pools yet", page)
    assert found is not None
    assert set(re.findall(r"`(\w+)`", found[1])) == RECIPES.keys() - studied.keys()


def test_the_length_scale_is_the_compromise_that_the_page_on_estimates_describes() -> None:
    fixed = json.loads((ROOT / "docs/results/estimates.json").read_text(encoding="utf-8"))["fixed"]

    def gains(pool: str, subset: str, setting: str) -> list[float]:
        """Return by how much a setting lowers the mean error, for each number of observed prompts."""
        usual, other = fixed[pool]["closed form"], fixed[pool][setting]
        return [usual[point][subset]["mae"][0] - other[point][subset]["mae"][0] for point in usual]

    half, twice = "half the length scale", "twice the length scale"
    assert min(gains("words", "seen", half)) > 0 > max(gains("words", "unseen", half))
    assert all(max(gains(pool, part, half)[1:]) < 0 for pool in ("even", "skewed") for part in ("seen", "unseen"))
    assert max(gains("words", "seen", twice)) < 0 < max(gains("words", "unseen", twice)) < 0.0015
    assert max(gains("even", "seen", twice) + gains("even", "unseen", twice) + gains("skewed", "seen", twice)) < 0


def test_the_table_of_group_sizes_is_binomial() -> None:
    rows = rows_below("### G and P")
    assert len(rows) == 3
    for accuracy, *shown in rows:
        p, sizes = float(accuracy), (4, 8, 16)
        mixed = [f"{1 - p**n - (1 - p) ** n:.2f}" for n in sizes]
        error = [sum(comb(n, k) * p**k * (1 - p) ** (n - k) * abs(k / n - p) for k in range(n + 1)) for n in sizes]
        assert shown == [*mixed, *(f"{value:.3f}" for value in error)]


def test_the_table_of_memory_is_what_doctor_estimates() -> None:
    rows = rows_below("Worked examples, in GiB;")
    path = Path()
    for (name, said, *shown), (architecture, device) in zip(rows, MODELS, strict=True):
        path_in_row = re.search(r"examples/[\w/.]+yaml", said)
        path = Path(path_in_row.group()) if path_in_row else path  # "...": the row's above
        config = load_config(ROOT / path, re.findall(r"[a-z_]+\.[a-z_.]+=\w+", said))
        policy = meta_policy(architecture, device, config.model.lora)
        sampling = config.sampling
        parameters = list(policy.model.parameters())
        states = sum((16 if p.requires_grad else p.element_size()) * p.numel() for p in parameters)
        element, length = 2 if device == "cuda" else 4, sampling.max_prompt_tokens + sampling.max_new_tokens
        sequences = min(sampling.batch_size, sampling.prompts_per_step * sampling.group_size)
        width = architecture.hidden_size // architecture.num_attention_heads
        values = architecture.num_hidden_layers * architecture.num_key_value_heads * width
        linear = [module.weight for module in policy.model.modules() if isinstance(module, torch.nn.Linear)]
        copies = (device == "cuda") * sum(2 * w.numel() for w in linear if w.dtype == torch.float32)
        cache = 2 * values * element * sequences * length + copies
        cache = 0.4 * 80e9 if sampling.engine == "vllm" else cache
        found = estimate(policy, config, 80e9)
        assert (found.states, found.sampling) == pytest.approx((states, cache)), name
        assert found.peak == states + max(cache, found.update)
        sizes = (states, cache, found.update, found.peak)
        count = sum(parameter.numel() for parameter in parameters)
        assert shown == [f"{count / 1e6:,.1f}", *(f"{size / GIB:.1f}" for size in sizes)]


def meta_policy(architecture: Any, device: str, lora: Any) -> Any:
    """Return an object with all that `estimate` reads from a policy, without allocating memory."""
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(architecture)
        model = causal
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(causal, LoraConfig(r=lora.r, target_modules=lora.target_modules))
    embedding = causal.get_input_embeddings().weight
    for part in model.modules():
        if lora is not None and isinstance(part, torch.nn.Linear) and part.weight is not embedding:
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()

    def parameters() -> Iterator[torch.nn.Parameter]:
        return (parameter for parameter in model.parameters() if parameter.requires_grad)

    return SimpleNamespace(
        causal_lm=causal,
        model=model,
        parameters=parameters,
        device=torch.device(device),
        mixed_precision=device == "cuda",
        takes_patterns=True,
        pads_attention=True,
    )


def test_every_symptom_has_a_row_and_a_paragraph() -> None:
    headings = re.findall(
        r"\{#(symptom-[\w-]+)\}", (ROOT / "pacedrl/diagnosis/symptoms.md").read_text(encoding="utf-8")
    )
    named = [re.findall(r"#(symptom-[\w-]+)", row[0])[0] for row in rows_below("## Symptoms and remedies")]
    assert named == headings
    assert set(re.findall(r"#(symptom-[\w-]+)", GUIDE)) == set(headings)


def test_every_setting_named_in_the_new_pages_exists() -> None:
    text = GUIDE + METHOD + "".join((ROOT / f"docs/{name}.md").read_text() for name in ("index", "contributing"))
    sections = settings_by_section()
    named = set(re.findall(r"\b(" + "|".join(sections) + r")\.([a-z_]+)\b(?!\.py|/|\()", text))
    checked = {(section, field) for section, field in named if field not in ("py", "yaml", "json", "jsonl", "md")}
    assert len(checked) > 30
    assert [f"{section}.{field}" for section, field in checked if field not in sections[section]] == []


CLOSED_FORM = json.loads((ROOT / "docs/method/closed_form.json").read_text(encoding="utf-8"))
FIGURE = json.loads((ROOT / "docs/method/figure.json").read_text(encoding="utf-8"))


def test_the_figure_of_the_method_is_drawn_from_its_numbers_byte_for_byte(tmp_path: Path) -> None:
    module("method", "figure").draw(FIGURE, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_bytes() == (ROOT / "docs/method/figure.svg").read_bytes()


def test_the_method_quotes_the_figure_of_the_closed_form(tmp_path: Path) -> None:
    module("method", "closed_form").draw(CLOSED_FORM, tmp_path / "closed_form.svg")
    assert (tmp_path / "closed_form.svg").read_bytes() == (ROOT / "docs/method/closed_form.svg").read_bytes()
    truth = np.array(CLOSED_FORM["truth"])
    mlp, closed = CLOSED_FORM["MLP"], CLOSED_FORM["closed form"]
    for found in (mlp, closed):
        assert np.abs(np.subtract(found["mean"], truth)).mean() == pytest.approx(found["error"], abs=6e-4)
    quoted = " ".join(METHOD.split())
    assert f"on the {len(truth)} others" in quoted
    assert (
        f"The MLP has an error of {mlp['error']:.3f} and a rank correlation of {mlp['rank']:.2f} with the accuracies, "
        f"the closed form {closed['error']:.3f} and {closed['rank']:.2f}" in quoted
    )
    assert f"an error of {np.abs(truth - truth.mean()).mean():.3f}" in quoted


def test_the_numbers_of_the_figure_come_out_again() -> None:
    """Only the numbers that need no long training are checked; floating point may differ slightly between machines."""
    figure = module("method", "figure")
    for selection, steps in (("uniform", 10), ("nearest", 10)):
        error, kl = figure._errors(figure.after(steps, selection, figure.BETA))
        kept_error, kept_kl = FIGURE["over_training"][selection][figure.STEPS.index(steps)]
        assert error == pytest.approx(kept_error, rel=0.1)
        assert kl == pytest.approx(kept_kl, rel=0.5)
    frozen = figure.frozen()
    for beta in figure.FROZEN:
        exact, kept = frozen["beta_log_z"][str(beta)], FIGURE["frozen"]["beta_log_z"][str(beta)]
        assert exact == pytest.approx(kept, abs=0.002)
        inside = np.array(frozen["accuracy"]).clip(1e-9, 1 - 1e-9)
        solvable = inside > 0.001  # accuracies are kept to four digits
        assert figure.closed_form(inside, beta)[solvable] == pytest.approx(np.array(exact)[solvable], abs=0.01)


def test_the_method_quotes_its_figure() -> None:
    figure = module("method", "figure")
    uniform, nearest = (dict(zip(figure.STEPS, FIGURE["over_training"][s], strict=True)) for s in figure.SELECTIONS)
    errors, kls = zip(*FIGURE["over_beta"], strict=True)
    largest_kl = max(kl for points in FIGURE["over_training"].values() for _, kl in points)
    said = " ".join(METHOD.split())
    assert f"the mean error is {uniform[160][0]:.3f}" in said
    assert f"Uniform selection reduces it from {uniform[0][0]:.3f} to {uniform[160][0]:.3f}" in said
    assert f"reduces it to {nearest[80][0]:.3f} at 80 steps, but it rises to {nearest[160][0]:.3f} at 160" in said
    assert f"is at most {largest_kl:.5f} throughout, hundreds of times less" in said
    assert all(error > 200 * kl for points in FIGURE["over_training"].values() for error, kl in points)
    assert f"the error hardly depends on $\\beta$ ({min(errors):.3f} to {max(errors):.3f})" in said
    assert max(kls) < 0.001
    assert list(kls) == sorted(kls)
    assert not all(0.0 <= value <= 1.0 for value in FIGURE["estimate"])


def test_the_method_quotes_a_calibration() -> None:
    scores = [c.scores for c in load_calibration(ROOT / "docs/results/skills_skewed_paced_seed500.json").checkpoints]
    selected, unseen = (
        float(np.mean([score[group]["log Z"].mae for score in scores if group in score]))
        for group in ("selected", "never seen")
    )
    assert f"its mean error was {selected:.3f} on selected prompts and {unseen:.3f} on prompts never seen" in " ".join(
        METHOD.split()
    )


def test_the_example_of_a_frozen_reference_is_right() -> None:
    assert "it is 0.954" in METHOD
    assert float(module("method", "figure").closed_form(np.array(0.5), 1 / 15)) == pytest.approx(0.954, abs=5e-4)


def test_equations_are_numbered_in_order_and_those_referred_to_exist() -> None:
    numbers = [int(number) for number in re.findall(r"\\tag\{(\d+)\}", METHOD)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {int(n) for n in re.findall(r"eq\. (\d+)", GUIDE)} <= set(numbers)
