"""The page of a comparison: the result in words, tables and figures, as Markdown and as one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pacedrl.lab import plots
from pacedrl.lab.measures import MEASURES
from pacedrl.lab.results import Results, VariantResult
from pacedrl.lab.tables import failures, interval_text, measure_text, missing, unjudged
from pacedrl.report.pages import article, fill

Times = Mapping[str, Mapping[int, Sequence[float]]]

TABLE = ("rollouts_to_target", "tokens_to_target", "area", "final", "distinct_correct", "mixed_groups", "estimate_mae")


def write_page(folder: Path, results: Results, times: Times, title: str = "Comparison") -> Path:
    """Write page.md, its figures and page.html into the folder, and return the path of page.html."""
    text = f"# {title}\n\n{section(results, times, folder)}"
    (folder / "page.md").write_text(text, encoding="utf-8")
    path = folder / "page.html"
    path.write_text(article(text, folder, title), encoding="utf-8")
    return path


def section(results: Results, times: Times, folder: Path, prefix: str = "") -> str:
    """Return the comparison in Markdown, and write its figures into the folder as ``PREFIX*.svg``."""
    base = results.variants[results.baseline]
    ranked = sorted(results.variants.items(), key=lambda pair: _mean_cost(pair[1]))
    ks = sorted(next(variant.pass_at_k for variant in results.variants.values() if variant.pass_at_k))
    shown = sorted({k for k in (8, ks[-1]) if k in ks} - {1})
    runs = [run for variant in results.variants.values() for run in variant.runs.values()]
    during = sorted(runs[0].curve.pass_at_k)
    _draw(results, during, times, f"{folder}/{prefix}")
    return fill(
        "comparison.md",
        seeds="1 seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds",
        rollouts=f"{results.rollouts:,}",
        target=f"{results.target:.3f}",
        baseline=results.baseline,
        cost=_cost(base),
        groups=_groups(results, [name for name, _ in ranked if name != results.baseline]),
        header=["variant", "seeds", *(MEASURES[name] for name in TABLE), *(f"final pass@{k}" for k in shown)],
        rows=[_row(results, name, variant, shown) for name, variant in ranked],
        overshoot=f"{max(run.curve.rollouts[-1] for run in runs) / results.rollouts - 1.0:.0%}",
        prefix=prefix,
        ks=during,
        target_caption=_target_caption(results),
        diversity_caption=_diversity_caption(results),
        failures=failures(results),
        unjudged=unjudged(results),
    )


def _draw(results: Results, ks: Sequence[int], times: Times, path: str) -> None:
    """Draw the figures that the page names; their files begin with ``path``."""
    runs = {name: variant.runs for name, variant in results.variants.items()}
    rollouts = {name: {seed: run.curve.rollouts for seed, run in seeds.items()} for name, seeds in runs.items()}
    tokens = {name: {seed: run.curve.tokens for seed, run in seeds.items()} for name, seeds in runs.items()}
    to_target = f"rollouts to pass@1 of {results.target:.3f}"
    plots.intervals(results, "rollouts_to_target", to_target, Path(f"{path}target.svg"))
    plots.intervals(results, "area", "pass@1, mean over all rollouts", Path(f"{path}area.svg"))
    plots.pass_at_k(results, Path(f"{path}pass_at_k.svg"))
    for k in (1, *ks):
        name = "rollouts" if k == 1 else f"pass_at_{k}"
        plots.learning_curves(results, k, rollouts, "completions generated", Path(f"{path}{name}.svg"))
    plots.learning_curves(results, 1, tokens, "tokens generated", Path(f"{path}tokens.svg"))
    plots.learning_curves(results, 1, times, "seconds of training", Path(f"{path}seconds.svg"))


def _groups(results: Results, others: Sequence[str]) -> dict[str, list[str]]:
    """Sort the variants by whether they need fewer or more rollouts than the baseline, or neither for certain."""
    fewer, more, same = "Fewer rollouts than the baseline", "More", "Not significantly different with these seeds"
    groups: dict[str, list[str]] = {fewer: [], more: [], same: []}
    for name in others:
        difference = results.variants[name].versus_baseline["rollouts_to_target"]
        if difference is not None:
            group = same if not difference.excludes_zero else fewer if difference.mean < 0 else more
            ratio = results.cost_ratio(name)
            groups[group].append(f"`{name}`" + ("" if ratio is None else f" ({ratio:.2f}×)"))
    return groups


def _row(results: Results, name: str, variant: VariantResult, ks: Sequence[int]) -> list[str]:
    cells = (measure_text(results, name, measure) for measure in TABLE)
    return [
        f"{name}{missing(variant)}",
        f"{len(variant.runs)}/{len(results.seeds)}",
        *(f"**{text}**" if differs else text for text, differs in cells),
        *(interval_text(variant.pass_at_k.get(k)) for k in ks),
    ]


def _mean_cost(variant: VariantResult) -> float:
    cost = variant.summary["rollouts_to_target"]
    return cost.mean if cost is not None else float("inf")


def _cost(variant: VariantResult) -> str:
    text = f"{interval_text(variant.summary['rollouts_to_target'], 'rollouts_to_target')} rollouts"
    missed = len(variant.runs) - variant.reached
    return text if not missed else f"at least {text}: {missed} of {len(variant.runs)} seeds did not reach it"


def _target_caption(results: Results) -> str:
    name, best = min(results.variants.items(), key=lambda pair: _mean_cost(pair[1]))
    legend = "Dots are seeds, bars 95% intervals; a seed that did not reach the target is shown at the whole budget."
    if not any(variant.reached for variant in results.variants.values()):
        return f"No variant reached the target. {legend}"
    ratio = results.cost_ratio(name)
    of_base = "" if name == results.baseline or ratio is None else f", {ratio:.2f} of what `{results.baseline}` took"
    return f"Lowest mean: `{name}`, {_cost(best)}{of_base} (dotted: the baseline). {legend}"


def _diversity_caption(results: Results) -> str:
    curves = {name: variant.pass_at_k for name, variant in results.variants.items() if variant.runs}
    largest = max(next(iter(curves.values())))
    best = max(curves, key=lambda name: curves[name][largest].mean)
    base = curves[results.baseline][largest]
    return (
        f"At k = {largest} `{best}` is highest with {interval_text(curves[best][largest])}; `{results.baseline}` has "
        f"{interval_text(base)}. Bands are 95% intervals."
    )
