"""README and docs are right: snippets run, settings exist, and figures come from the file beside them."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import yaml

from pacedrl.config import Config, config_tree, load_config, parse_config
from pacedrl.lab.calibrate import load_calibration
from pacedrl.lab.results import Results
from pacedrl.recipes import RECIPES
from pacedrl.tasks.code.verifier import CodeSettings
from pacedrl.tasks.math.equality import MathOptions
from pacedrl.tasks.verifiers import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
VERIFIERS_PAGE = (ROOT / "docs/verifiers.md").read_text(encoding="utf-8")
SCALE_PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
SERVING_PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
RECIPES_PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(snippet for snippet in snippets("python") if "Trainer" in snippet)
    assert len(code.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    Path("example.py").write_text(code)
    runpy.run_path("example.py", run_name="__main__")
    assert "Summary(" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert mean(row["reward/mean"] for row in rows[-5:]) > mean(row["reward/mean"] for row in rows[:5])


def test_the_yaml_example_is_a_valid_configuration() -> None:
    (text,) = snippets("yaml")
    config = parse_config(yaml.safe_load(text))
    assert config.data.train[0].columns == {"prompt": "question", "answer": "solution"}
    assert config.data.eval[0].verifier == "math"


def test_the_page_of_recipes_has_all_of_them_and_nothing_else() -> None:
    table = re.findall(r"^\| `([a-z_]+)` \|", RECIPES_PAGE, re.M)
    assert table == list(RECIPES)
    paragraphs = RECIPES_PAGE.partition("## The GRPO family")[2]
    explained = {
        name for bold in re.findall(r"\*\*(`[^*]+`)\*\*", paragraphs) for name in re.findall(r"`([a-z_]+)`", bold)
    }
    assert explained == set(RECIPES)
    for name, recipe in RECIPES.items():
        arxiv = re.search(r"\d{4}\.\d{5}", recipe.paper)
        assert arxiv is None or f"arxiv.org/abs/{arxiv.group()}" in RECIPES_PAGE, name


def module(folder: str, name: str = "build") -> Any:
    """Import a script below docs/, by default the one that builds a folder's pages."""
    spec = importlib.util.spec_from_file_location(f"{Path(folder).name}_{name}", ROOT / f"docs/{folder}/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    built = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = built  # dataclasses look there
    spec.loader.exec_module(built)
    return built


SCHEMAS = sorted(path for path in (ROOT / "docs/results").glob("*.json") if path.name != "development.json")


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_every_results_file_has_the_results_schema(path: Path) -> None:
    if path.name.endswith(".times.json"):
        assert (
            Results.load(path.with_name(path.name.replace(".times", ""))).variants.keys()
            == json.loads(path.read_text()).keys()
        )
    elif "_seed" in path.name:
        assert load_calibration(path).checkpoints
    elif path.name == "estimates.json":
        results = json.loads(path.read_text())
        assert results["fixed"].keys() == {"words", "even", "skewed"}
        assert results["moving"]
    else:
        assert Results.load(path).variants


RESULTS_PAGES = [
    *(pytest.param(path, True, id=path.name) for path in sorted((ROOT / "docs/results").glob("*.template.md"))),
    pytest.param(ROOT / "docs/results/skills.template.md", False, id="skills drawn", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("template", "quickly"), RESULTS_PAGES)
def test_results_pages_are_what_their_results_say(
    template: Path, quickly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = module("results")
    if quickly and template.name.startswith("skills"):  # twelve figures of seventeen panels: a minute's drawing
        monkeypatch.setattr("pacedrl.lab.plots.learning_curves", lambda *inputs: inputs[-1].write_text("<svg/>"))
    page = build.page(template.read_text(encoding="utf-8"), tmp_path)
    assert page == template.with_name(template.name.replace(".template", "")).read_text(encoding="utf-8")
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert drawn.keys() == set(re.findall(r"\]\(([\w.-]+\.svg)\)", page))
    assert all((template.parent / name).exists() for name in drawn)


def test_every_line_of_the_page_on_scale_that_trains_names_settings_that_exist() -> None:
    lines = [command for command in re.findall(r"`([^`]+)`", SCALE_PAGE) if " train " in command]
    assert len(lines) >= 6
    for line in lines:
        before, _, after = line.partition(" train ")
        assert before == "pacedrl" or re.fullmatch(r"torchrun --nproc-per-node \d -m pacedrl\.cli", before)
        path, *overrides = shlex.split(after)
        load_config(ROOT / path, overrides)


def test_the_page_on_scale_quotes_the_simulation() -> None:
    scaling = module("../benchmarks", "scaling")
    costs = scaling.ASSUMED["7B"]

    def used(prompts: int, devices: int, layout: str) -> float:
        length_N = scaling.lengths(prompts, 1000.0, 3072)
        alone = scaling.colocated(costs, length_N, 200, 1).total
        return float(alone / devices / getattr(scaling, layout)(costs, length_N, 200, devices).total)

    assert used(128, 8, "colocated") == pytest.approx(0.5, abs=0.05)
    assert used(128, 64, "colocated") == pytest.approx(0.1, abs=0.02)
    assert [round(used(2048, 64, layout), 2) for layout in ("colocated", "served")] == [0.62, 0.77]
    step = scaling.colocated(costs, scaling.lengths(2048, 1000.0, 3072), 200, 1024)
    assert round(step.driver / step.total, 2) == 0.12
    assert scaling.fitted([8, 16], [11.0, 19.0]) == pytest.approx((3.0, 1.0))
    assert scaling.fitted([8, 16], [7.0, 17.0]) == pytest.approx((0.0, (56 + 272) / 320))  # not -3 + 1.25 x
    quoted = " ".join(SCALE_PAGE.split())
    checked = json.loads((ROOT / "docs/performance/scaling.json").read_text())
    one, two = ([checked[n][of] for of in ("predicted", "real")] for n in ("1", "2"))
    assert "one process {:.1f} s, measured {:.1f}; with two {:.1f} s, measured {:.1f}".format(*one, *two) in quoted
    assert "64 devices reach 62% colocated and 77% served. Rank 0's share of the time is 12% on 1,024 devices" in quoted


def test_the_page_on_performance_says_what_was_measured() -> None:
    build = module("performance")
    template = (ROOT / "docs/performance/template.md").read_text(encoding="utf-8")
    assert build.page(template) == (ROOT / "docs/performance.md").read_text(encoding="utf-8")


def test_the_readme_quotes_the_page_on_performance() -> None:
    build = module("performance")
    step = build.load("step")
    generate, update, whole = (build.ratio(step, phase) for phase in ("generate", "update", "step"))
    memory = step["ours"]["peak"] / step["trl"]["peak"]
    seconds = build.load("scheduler")["closed form"]["1000000"]["select"]
    quoted = " ".join(README.split())
    assert f"a step is {whole:.1f} times faster than with TRL's GRPOTrainer" in quoted
    assert f"(generation {generate:.1f}, update {update:.1f}; {memory:.2f} of its memory)" in quoted
    assert f"Selecting from a million prompts takes {seconds:.2f} seconds" in quoted


def test_the_page_of_recipes_mixes_settings_that_fit() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", RECIPES_PAGE, re.DOTALL)
    config = parse_config(yaml.safe_load(text))
    assert (config.objective.name, config.estimator.name, config.optimizer.epochs) == ("grpo", "combined", 2)


def test_the_page_on_serving_shows_a_configuration_with_its_defaults() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", SERVING_PAGE, re.DOTALL)
    shown = parse_config(yaml.safe_load(text)).sampling
    assert shown == Config().sampling.model_copy(update={"engine": "vllm_server", "servers": shown.servers})
    assert len(shown.servers) == 2


def test_the_guide_to_verifiers_shows_settings_that_exist_and_names_every_verifier() -> None:
    for text in re.findall(r"```yaml\n(.*?)```", VERIFIERS_PAGE, re.DOTALL):
        config = parse_config(yaml.safe_load(text))
        assert config.data.train[0].verifier in BUILT_IN
        assert set(config.data.train[0].verifier_options) <= set(CodeSettings.__dataclass_fields__)
    assert set(re.findall(r"^\| `([a-z_]+)` \| (?!`|true|false|\d)", VERIFIERS_PAGE, re.M)) >= set(BUILT_IN)
    options = re.findall(r"^\| `([a-z_]+)` \| (`\w+`|true|false|1e-6) \|", VERIFIERS_PAGE, re.M)
    defaults = {name: str(getattr(MathOptions(), name)).lower() for name in MathOptions.__dataclass_fields__}
    assert {name: value.strip("`").replace("1e-6", "1e-06") for name, value in options} == defaults


def test_the_scheduler_example_uses_names_that_exist() -> None:
    code = next(snippet for snippet in snippets("python") if "scheduler.select" in snippet)
    code = code.replace("select(128)", "select(2)")
    keys = ["a", "b", "c"]
    names = {
        "keys": keys,
        "embeddings": torch.randn(3, 4),
        "keys_B": ["a", "a", "b"],
        "reward_B": [1, 0, 1],
        "log_ratio_B": 0.0,
    }
    exec(code, names)
    assert len(names["chosen"]) == 2
    assert names["metrics"]["accuracy/observed_mean"] == pytest.approx(0.75)


def settings_by_section() -> dict[str, set[str]]:
    """Return every setting that some variant of a section has."""
    known: dict[str, set[str]] = {}
    for name, info in Config.model_fields.items():
        variants = getattr(info.annotation, "__args__", None) or (info.annotation,)
        known[name] = {field for variant in variants for field in getattr(variant, "model_fields", {})}
    return known


def test_every_setting_named_in_readme_and_docs_exists() -> None:
    text = README + ARCHITECTURE + RECIPES_PAGE + VERIFIERS_PAGE + SERVING_PAGE + SCALE_PAGE
    sections = settings_by_section()
    named = set(re.findall(r"`?\b(" + "|".join(sections) + r")\.([a-z_]+)\b(?!\.py|/)", text))
    checked = {(section, field) for section, field in named if field not in ("py", "yaml", "jsonl", "md")}
    assert len(checked) > 8
    missing = [f"{section}.{field}" for section, field in checked if field not in sections[section]]
    assert missing == []


EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.yaml")) if path.parent.name != "verl"]
"""The examples for verl are in verl's format and tested in tests/integrations/test_verl.py."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_valid_configuration(path: Path) -> None:
    assert load_config(path).run.steps == config_tree(path)["run"]["steps"]


def test_the_demo_table_is_the_results_file() -> None:
    figures = json.loads((ROOT / "docs/demo_results.json").read_text())["figures"]
    rows = re.findall(
        r"^\| ([a-z]+)[^|]*\| ([\d.]+) \| ([\d.]+) \(([\d.]+)–([\d.]+)\) \| ([\d.]+) \| ([\d.]+) \|$", README, re.M
    )
    assert len(rows) == 7
    for skill, *shown in rows:
        one, eight = figures[f"{skill}/pass@1"], figures[f"{skill}/pass@8"]
        expected = [
            mean(one["before"]),
            mean(one["after"]),
            min(one["after"]),
            max(one["after"]),
            mean(eight["before"]),
            mean(eight["after"]),
        ]
        assert [float(value) for value in shown] == pytest.approx(expected, abs=0.0051), skill


def test_the_demo_means_are_the_results_file() -> None:
    means = json.loads((ROOT / "docs/demo_results.json").read_text())["mean_pass@1"]
    text = README.partition("ends at a mean pass@1")[2].partition("\n\n")[0]
    shown = [float(value) for value in re.findall(r"\d\.\d\d", text)]
    uniform, paced = means["after_uniform"], means["after"]
    expected = [mean(uniform), min(uniform), max(uniform), mean(paced), min(paced), max(paced), mean(means["before"])]
    assert shown == pytest.approx(expected, abs=0.0051)


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z0-9-]+)", README + (ROOT / "examples/smollm2_svamp.yaml").read_text()))
    assert {"demo", "test", "smollm2"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)


def test_the_figures_on_verifiers_are_the_results_file() -> None:
    results = json.loads((ROOT / "benchmarks/verifier_acceptance.json").read_text())
    page = (ROOT / "docs/verifiers.md").read_text()
    names = {"HumanEval": "humaneval", "HumanEval+": "humaneval_plus", "MBPP+": "mbpp_plus"}
    table = re.findall(r"^\| (HumanEval\+?|MBPP\+) \| (.*?) \| (.*?) \| ?(.*?) ?\| ?(.*?) ?\|$", page, re.M)
    assert [name for name, *_ in table] == list(names)
    for name, right, spoilt, agreed, ratio in table:
        row = results["code"][names[name]]
        assert right == f"{row['right_accepted']} of {row['right']}"
        assert spoilt == f"{row['spoilt_refused']} of {row['spoilt']}"
        programs = row["right"] + row["spoilt"]
        peer = "evalplus_disagrees" in row
        assert agreed == (f"{programs - len(row['evalplus_disagrees'])} of {programs}" if peer else "")
        assert ratio == (f"{row['seconds'] / row['evalplus_seconds']:.1f}" if peer else "")
    golds = results["gold_answers"]
    gsm8k = [sum(golds[f"gsm8k/{part}.jsonl"][of] for part in ("train", "test")) for of in ("accepted", "rows")]
    sets = {"SVAMP": "svamp/SVAMP.json", "MATH-500": "one_shot_rlvr/math500.parquet"}
    sets["DeepScaleR's subset"] = "one_shot_rlvr/dsr_sub.parquet"
    said = " ".join(page.split())
    assert f"GSM8K ({gsm8k[0]:,} of {gsm8k[1]:,})" in said
    for name, file in sets.items():
        assert f"{name} ({golds[file]['accepted']:,} of {golds[file]['rows']:,}" in said


def test_the_readmes_shares_of_rollouts_are_the_results_file() -> None:
    results = Results.load(ROOT / "docs/results/skills_skewed.json")
    costs = {name: variant.summary["rollouts_to_target"] for name, variant in results.variants.items()}
    base = costs["grpo"]
    assert base is not None
    text = README.partition("On a skewed pool")[2].partition("\n\n")[0]
    shares = re.findall(r"`(\w+)`\s(\d\.\d\d)", text)
    assert [name for name, _ in shares] == ["paced", "paced_plus", "mopps", "tb"]
    for name, share in shares:
        cost = costs[name]
        assert cost is not None
        assert share == f"{cost.mean / base.mean:.2f}"
    assert {name for name, variant in results.variants.items() if variant.reached == 0} == {"dapo", "lilo"}
    even = Results.load(ROOT / "docs/results/skills_even.json")
    paced, plus = (even.variants[name].versus_baseline["area"] for name in ("paced", "paced_plus"))
    assert even.baseline == "grpo"
    assert paced is not None and paced.excludes_zero and paced.mean < 0.0  # noqa: PT018
    assert plus is not None and not plus.excludes_zero  # noqa: PT018


def test_what_the_page_on_words_counts_is_what_was_counted() -> None:
    seen = yaml.safe_load((ROOT / "docs/results/words_seen.yaml").read_text())
    page = " ".join((ROOT / "docs/results/words.md").read_text(encoding="utf-8").split())

    def of(recipe: str, name: str) -> list[float]:
        return [seen[f"{recipe}/{seed}"][name] for seed in range(500, 504)]

    def span(values: list[float]) -> str:
        return f"{min(values):g} to {max(values):g}"

    assert f"observed is {span(of('paced', 'rank_correlation'))} (over the seeds)" in page
    assert f"that of `paced_plus` {span(of('paced_plus', 'rank_correlation'))}" in page
    assert f"`paced` drew {span(of('paced', 'different'))} different problems" in page
    assert f"`paced_plus` {span(of('paced_plus', 'different'))}" in page
    assert of("grpo", "different") == of("grpo", "draws") == [240] * 4
    share = sum(of("dapo", "trained_fresh")) / sum(of("dapo", "generated"))
    assert f"`dapo` trained on {share:.0%} of what it generated" in page
