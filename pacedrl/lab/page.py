"""The page of a comparison: a finding in words, tables and figures. Markdown, and the same as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pacedrl.errors import InputError
from pacedrl.lab import plots
from pacedrl.lab.measures import MEASURES
from pacedrl.lab.results import Results, VariantResult
from pacedrl.lab.tables import failures, interval_text, measure_text, missing, unjudged

Times = Mapping[str, Mapping[int, Sequence[float]]]

TABLE = ("rollouts_to_target", "tokens_to_target", "area", "final", "distinct_correct", "mixed_groups", "estimate_mae")

_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }}
table {{ border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }}
img {{ max-width: 100%; background: #fff; }} code {{ background: #f3f3f3; padding: 0 .2em; }}
</style></head><body>
{body}
</body></html>
"""


def require_page() -> None:
    """Raise InputError naming the extra where what figures and pages need is missing."""
    plots.pyplot()
    _markdown()


def _markdown() -> Any:
    try:
        import markdown
    except ImportError:
        raise InputError("the page needs markdown: pip install 'pacedrl[lab]'") from None
    return markdown


def write_page(folder: Path, results: Results, times: Times, title: str = "Comparison") -> Path:
    """Write page.md, its figures and page.html into the folder; the path of the last. InputError without matplotlib."""
    text = f"# {title}\n\n{section(results, times, folder)}"
    (folder / "page.md").write_text(text, encoding="utf-8")
    path = folder / "page.html"
    path.write_text(to_html(text, folder, title), encoding="utf-8")
    return path


def section(results: Results, times: Times, folder: Path, prefix: str = "") -> str:
    """The comparison in Markdown, two levels of headings down; figures are written beside it as ``PREFIX*.svg``."""
    curves = {name: variant.runs for name, variant in results.variants.items()}
    rollouts = {name: {seed: run.curve.rollouts for seed, run in runs.items()} for name, runs in curves.items()}
    tokens = {name: {seed: run.curve.tokens for seed, run in runs.items()} for name, runs in curves.items()}

    def drawn(name: str, title: str, caption: str, draw: Callable[..., None], *arguments: object) -> str:
        file = f"{prefix}{name}.svg"
        draw(results, *arguments, folder / file)
        return f"### {title}\n\n![{title}]({file})\n\n{caption}\n"

    generated = "completions generated"
    parts = [
        findings(results),
        _table(results),
        _note(results),
        drawn(
            "target",
            "Rollouts to the target",
            _target_caption(results),
            plots.intervals,
            "rollouts_to_target",
            f"rollouts to pass@1 of {results.target:.3f}",
        ),
        drawn(
            "rollouts",
            "Learning curves",
            f"Held-out pass@1 against completions generated, thrown away ones included. Blue: the variant (thin: its "
            f"seeds); black: {results.baseline}; grey: the others; dotted: the target.",
            plots.learning_curves,
            1,
            rollouts,
            generated,
        ),
        drawn(
            "area",
            "pass@1 over training",
            "Mean of each curve above over the whole budget.",
            plots.intervals,
            "area",
            "pass@1, mean over all rollouts",
        ),
        drawn("pass_at_k", "pass@k at the end", _diversity_caption(results), plots.pass_at_k),
    ]
    for k in _ks_on_the_way(results):
        title, caption = f"pass@{k} over training", f"The same curves for pass@{k}."
        parts.append(drawn(f"pass_at_{k}", title, caption, plots.learning_curves, k, rollouts, generated))
    caption = "The learning curves against tokens generated."
    parts.append(drawn("tokens", "Against tokens", caption, plots.learning_curves, 1, tokens, "tokens generated"))
    caption = (
        "The learning curves against wall-clock seconds of training, evaluations left out. Several runs shared the "
        "machine, so read these as rough."
    )
    parts.append(drawn("seconds", "Against time", caption, plots.learning_curves, 1, times, "seconds of training"))
    parts.append(f"Runs that failed:\n\n{_listed(failures(results))}" if failures(results) else "No run failed.\n")
    if unjudged(results):
        parts.append(f"Verdicts that failed:\n\n{_listed(unjudged(results))}")
    return "\n".join(parts)


def _listed(lines: Sequence[str]) -> str:
    return "".join(f"- {html.escape(line)}\n" for line in lines)


def _ks_on_the_way(results: Results) -> list[int]:
    """The ks of the evaluations during training, but for 1."""
    runs = [run for variant in results.variants.values() for run in variant.runs.values()]
    return sorted(runs[0].curve.pass_at_k) if runs else []


def findings(results: Results) -> str:
    """The result in words: who needs the fewest rollouts, against the baseline, and what is not told apart."""
    base = results.variants[results.baseline]
    seeds = "1 seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds"
    lines = [
        f"{seeds}, {results.rollouts:,} completions generated in each run. The target, pass@1 of {results.target:.3f}, "
        f"took `{results.baseline}` {_cost(base)}.\n"
    ]
    others = [(name, variant) for name, variant in results.variants.items() if name != results.baseline]
    fewer: list[str] = []
    more: list[str] = []
    same: list[str] = []
    for name, variant in sorted(others, key=lambda pair: _mean_cost(pair[1])):
        difference = variant.versus_baseline["rollouts_to_target"]
        if difference is None:
            continue
        ratio = f"`{name}`{_ratio_text(results, name)}"
        (same if not difference.excludes_zero else fewer if difference.mean < 0 else more).append(ratio)
    for label, names in (
        ("Fewer rollouts than the baseline", fewer),
        ("More", more),
        ("Not told from it with these seeds", same),
    ):
        if names:
            lines.append(f"- **{label}**: {', '.join(names)}.")
    return "\n".join(lines) + "\n"


def to_html(text: str, folder: Path, title: str) -> str:
    """One file that opens from disk. Figures, which ``text`` names, are read from the folder into it."""

    def embedded(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode("ascii")
        return f'src="data:image/svg+xml;base64,{data}"'

    body = re.sub(r'src="([\w.-]+\.svg)"', embedded, _markdown().markdown(text, extensions=["tables"]))
    return _HTML.format(title=html.escape(title), body=body)


def _mean_cost(variant: VariantResult) -> float:
    cost = variant.summary["rollouts_to_target"]
    return cost.mean if cost is not None else float("inf")


def _cost(variant: VariantResult) -> str:
    text = f"{interval_text(variant.summary['rollouts_to_target'], 'rollouts_to_target')} rollouts"
    missing = len(variant.runs) - variant.reached
    return text if not missing else f"at least {text}: {missing} of {len(variant.runs)} seeds did not reach it"


def _table(results: Results) -> str:
    ks = sorted(next(variant.pass_at_k for variant in results.variants.values() if variant.pass_at_k))
    shown = sorted({k for k in (8, ks[-1]) if k in ks} - {1})
    header = [
        "variant",
        "seeds",
        *(MEASURES[name] for name in TABLE),
        *(f"final pass@{k}" for k in shown),
    ]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    ranked = sorted(results.variants.items(), key=lambda pair: _mean_cost(pair[1]))
    for name, variant in ranked:
        cells = [_cell(results, name, measure) for measure in TABLE]
        cells += [interval_text(variant.pass_at_k.get(k)) for k in shown]
        lines.append(f"| {name}{missing(variant)} | {len(variant.runs)}/{len(results.seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(results: Results, name: str, measure: str) -> str:
    text, differs = measure_text(results, name, measure)
    return f"**{text}**" if differs else text


def _note(results: Results) -> str:
    overshoot = max(run.curve.rollouts[-1] for variant in results.variants.values() for run in variant.runs.values())
    above = overshoot / results.rollouts - 1.0
    return (
        "Mean over the seeds that finished (95% interval: expanded percentile bootstrap, Student's for fewer than five "
        f"seeds). Bold: differs from `{results.baseline}`, the interval of the differences seed by seed excluding "
        "zero; of so many comparisons one in twenty or more does so by chance. ≥ (n/m): only n of m seeds reached the "
        "target, the others count with the whole budget. A run ends with the step in which its budget does: figures at "
        f"the end are of up to {above:.0%} more completions than that. With one right answer a prompt, distinct "
        "correct answers are pass@k. The error of the estimate is that on the prompts each recipe selected, and "
        "includes the noise of the group it is compared with.\n"
    )


def _ratio_text(results: Results, name: str) -> str:
    ratio = results.cost_ratio(name)
    return "" if ratio is None else f" ({ratio:.2f}×)"


def _target_caption(results: Results) -> str:
    name, best = min(results.variants.items(), key=lambda pair: _mean_cost(pair[1]))
    legend = "Dots are seeds, bars 95% intervals; a seed that did not get there stands at the whole budget."
    if not any(variant.reached for variant in results.variants.values()):
        return f"Nobody reached it. {legend}"
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
