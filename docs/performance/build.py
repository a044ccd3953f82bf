"""Write docs/performance.md from the figures beside this file, which ``make performance`` measures.

    python docs/performance/build.py    # fill in docs/performance/template.md again

Placeholders are ``{table:NAME}`` and, inside sentences, ``{figure:NAME}``; see ``TABLES`` and ``FIGURES``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
PLACEHOLDER = re.compile(r"\{(table|figure):([^{}]+)\}")
PHASES = ("generate", "verify", "update", "step")
PAPER_STEP_S = 308.0
MILLION = 10**6
"""The shortest step the paper reports."""


def main() -> None:
    template = (HERE / "template.md").read_text(encoding="utf-8")
    (HERE.parent / "performance.md").write_text(page(template), encoding="utf-8")


def page(template: str) -> str:
    return PLACEHOLDER.sub(lambda match: fill(match[1], match[2]), template)


def fill(kind: str, name: str) -> str:
    if kind == "table":
        return TABLES[name]()
    return FIGURES[name]()


def load(name: str) -> Any:
    """Load a file; ``tiny/as it comes`` names a part of tiny.json."""
    file, _, part = name.partition("/")
    content = json.loads((HERE / f"{file}.json").read_text(encoding="utf-8"))
    return content[part] if part else content


def ratio(found: Any, phase: str) -> float:
    return float(median(found["trl"]["seconds"][phase]) / median(found["ours"]["seconds"][phase]))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def beside_trl(name: str, digits: int, phases: tuple[str, ...] = PHASES) -> str:
    found = load(name)
    rows = [
        [
            phase,
            spread(found["ours"]["seconds"][phase], digits),
            spread(found["trl"]["seconds"][phase], digits),
            f"{ratio(found, phase):.2f}",
            f"{found['reached'][phase]:.0%}" if phase in found.get("reached", {}) else "",
        ]
        for phase in phases
    ]
    own = found["ours"]["peak"] / 2**30
    for side, name in (("trl", "peak memory, GiB"), ("trl_at_once", "the same, TRL with 32 sequences per micro-batch")):
        if side in found:
            peak = found[side]["peak"] / 2**30
            rows.append([name, f"{own:.1f}", f"{peak:.1f}", f"{peak / own:.2f}", ""])
    head = ["seconds", "ours", "TRL", "TRL to ours", "of the limit, ours"]
    return table(head if "reached" in found else head[:4], rows if "reached" in found else [row[:4] for row in rows])


def sampling() -> str:
    found = load("generate")
    own, tokens = median(found["ours"]), 8 * 8 * 64
    return table(
        ["", "seconds", "tokens/s", "to ours"],
        [
            [
                f"`{name}`" if name != "ours" else name,
                spread(values, 1),
                f"{tokens / median(values):.0f}",
                f"{median(values) / own:.2f}",
            ]
            for name, values in found.items()
        ],
    )


def breakdown() -> str:
    found = load("breakdown")
    kinds = list(next(iter(found.values())))
    return table(["", *kinds], [[name, *(f"{row[kind]:.0%}" for kind in kinds)] for name, row in found.items()])


def scheduler() -> str:
    phases = ("prepare", "select", "replay", "observe")
    rows = [
        [
            name,
            f"{int(size):,}",
            *(f"{found[phase]:.3f}" for phase in phases),
            f"{sum(found[phase] for phase in phases[1:]) / PAPER_STEP_S:.3%}",
            f"{found['peak'] / 2**30:.2f}",
        ]
        for name, sizes in load("scheduler").items()
        for size, found in sizes.items()
    ]
    return table(["estimates of", "prompts", *(f"{p}, s" for p in phases), "of a step", "peak, GiB"], rows)


def selecting(way: str) -> str:
    """Return the seconds of selecting from a million prompts."""
    seconds = load("scheduler")[way][str(MILLION)]["select"]
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2f}"


def observing() -> str:
    """Return the seconds of observing a step of a million prompts."""
    return f"{load('scheduler')['closed form'][str(MILLION)]['observe']:.2f}"


def lower_precision() -> str:
    found = load("choices")["bfloat16"]
    return f"{found['after'] / found['before']:.0f}"


def output_layer() -> str:
    found = load("memory")
    rows = [[name, f"{row['bytes'] / 2**30:.2f}", f"{row['seconds']:.1f}"] for name, row in found.items()]
    return table(["", "peak, GiB", "seconds"], rows)


def gain(name: str, file: str = "choices") -> str:
    """Return the factor by which a choice is faster than its alternative."""
    found = load(file)[name]
    factor = found["before"] / found["after"]
    return f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"


AIMS = {"generate": 2.5, "update": 2.0, "step": 2.2}
"""Aims for the ratio of TRL's seconds to ours."""
MEMORY_AIM = 0.35
STATE_BYTES = 16
"""Bytes of a parameter's weight, gradient and AdamW's two moments, in float32."""


def aims() -> str:
    found = load("step")
    reached = [f"{phase} {aim}×" for phase, aim in AIMS.items() if ratio(found, phase) >= aim]
    missed = [f"{phase} {aim}× ({ratio(found, phase):.2f})" for phase, aim in AIMS.items() if ratio(found, phase) < aim]
    texts = [f"{word}: {', '.join(names)}." for word, names in (("Aims reached", reached), ("Missed", missed)) if names]
    return " ".join([*texts, memory_aim(found)])


def memory_aim(found: Any) -> str:
    """Compare the peak with the aim, which was set against TRL with 32 sequences in one micro-batch."""
    ours, trl, at_once = (found[side]["peak"] for side in ("ours", "trl", "trl_at_once"))
    state = STATE_BYTES * (found["ours"]["head"] + found["ours"]["body"])
    word = "reached" if ours <= MEMORY_AIM * at_once else "missed"
    return (
        f"The aim for memory, at most {MEMORY_AIM} of TRL's with 32 sequences per micro-batch, is {word} "
        f"({ours / at_once:.2f}). With TRL's default of 8 the ratio is {ours / trl:.2f}. No trainer could reach "
        f"{MEMORY_AIM} there, because weights, gradient and AdamW's two moments alone are {state / trl:.2f}."
    )


TABLES: dict[str, Callable[[], str]] = {
    "step": lambda: beside_trl("step", 1),
    "step before": lambda: beside_trl("step_before", 1),
    "step after": lambda: beside_trl("step_after", 1),
    "tiny as it comes": lambda: beside_trl("tiny/as it comes", 3),
    "tiny tuned": lambda: beside_trl("tiny/tuned", 3),
    "sampling": sampling,
    "breakdown": breakdown,
    "scheduler": scheduler,
    "memory": output_layer,
}
FIGURES: dict[str, Callable[[], str]] = {
    "aims": aims,
    "report steps": lambda: f"{load('report')['steps']:,}",
    "report completions": lambda: f"{load('report')['completions']:,}",
    "report seconds": lambda: f"{load('report')['seconds']:.1f}",
    "report size": lambda: f"{load('report')['bytes'] / 1e6:.1f}",
    "capability": lambda: load("step")["capability"],
    "rate": lambda: f"{load('step')['rate'] / 1e9:.0f}",
    "tiny": lambda: f"{ratio(load('tiny/as it comes'), 'step'):.1f}",
    "tiny tuned": lambda: f"{ratio(load('tiny/tuned'), 'step'):.1f}",
    "earlier tiny": lambda: f"{ratio(load('tiny_before/as it comes'), 'step'):.1f}",
    "MLP selecting": partial(selecting, "MLP"),
    "closed form selecting": partial(selecting, "closed form"),
    "closed form drawing": partial(selecting, "closed form, joint draw"),
    "closed form of candidates": partial(selecting, "closed form, candidates"),
    "closed form observing": observing,
    "bfloat16 without": lower_precision,
    **{name: partial(gain, name) for name in ("packed body", "packed head", "joined", "grouped heads")},
    **{
        name: partial(gain, name)
        for name in ("shared prompts", "shared long prompts", "fused attention", "AdamW", "memory")
    },
    "bfloat16": lambda: gain("bfloat16", "choices_avx512"),
    "output memory": lambda: f"{load('memory')['ours']['bytes'] / load('memory')['plain']['bytes']:.3f}",
    "generate_batch": lambda: f"{median(load('generate')['generate_batch']) / median(load('generate')['ours']):.2f}",
}

if __name__ == "__main__":
    main()
