"""Measure math verdicts per second of the verifier processes, and the time of the most expensive completions.

    python benchmarks/math_verifier.py                   # about a minute
    python benchmarks/math_verifier.py --jobs 20000

Easy answers are numbers, fractions, percentages, units and lists, half of them right. Of mixed answers, one in five has
roots, pi or symbols, which math-verify has to parse. The pathological answers are those of
tests/tasks/test_math_corpus.py, one at a time. Times are wall-clock. For comparison, the same run measures
math-verify's own ``verify(parse(gold), parse(answer))``, as most trainers call it, in this process, where only
math-verify's own alarm can end it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.types import Prompt

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="verdicts for each throughput")
    arguments = parser.parse_args()
    for workers in (1, 2):
        with VerifierPool(workers=workers, timeout_s=10.0) as pool:
            pool.score([job("5", r"\boxed{\frac{\sqrt{4}}{2}}")] * (4 * workers))  # imports
            for name, share in (("easy", 0.0), ("mixed", 0.2)):
                rate = throughput(pool, arguments.jobs, share)
                print(f"{name:5} answers, {workers} worker{'s' * (workers > 1)}: {rate:8,.0f} verdicts/s")
    for name, share in (("easy", 0.0), ("mixed", 0.2)):
        rate = math_verify_throughput(arguments.jobs // 4, share)
        print(f"{name:5} answers, math-verify itself: {rate:8,.0f} verdicts/s")
    with VerifierPool(workers=1, timeout_s=10.0) as pool:
        pool.score([job("5", r"\boxed{\frac{\sqrt{4}}{2}}")])
        seconds, errors = pathological(pool)
    print(
        f"{len(seconds)} pathological answers: median {statistics.median(seconds) * 1e3:.1f} ms, "
        f"max {max(seconds) * 1e3:.0f} ms, {errors} errors"
    )


def throughput(pool: VerifierPool, count: int, share: float) -> float:
    jobs = jobs_of(count, share)
    start = time.perf_counter()
    verdicts = pool.score(jobs)
    took = time.perf_counter() - start
    assert all(verdict.error is None for verdict in verdicts)
    return count / took


def jobs_of(count: int, share: float) -> list[Job]:
    rng = random.Random(0)
    return [job(*(hard(rng) if rng.random() < share else easy(rng))) for _ in range(count)]


def math_verify_throughput(count: int, share: float) -> float:
    from math_verify import parse, verify

    jobs = jobs_of(count, share)
    verify(parse("$1$"), parse("1"))  # imports
    start = time.perf_counter()
    for each in jobs:
        verify(parse(f"${each.prompt.answer}$"), parse(each.text))
    return count / (time.perf_counter() - start)


def easy(rng: random.Random) -> tuple[str, str]:
    """Draw a gold answer and a completion's answer, which is right half of the time."""
    n, d = rng.randint(-(10**6), 10**6), rng.randint(2, 99)
    wrong = rng.randint(0, 1)
    return rng.choice(
        [
            (str(n), f"{n + wrong:,}"),
            (rf"\frac{{{n}}}{{{d}}}", rf"\dfrac{{{2 * n + wrong}}}{{{2 * d}}}"),
            (rf"{d}\%", f"0.{d + wrong:02d}"),
            (str(n), rf"{n + wrong} \text{{ cm}}"),
            (f"({n}, {d})", f"({n},{d + wrong})"),
        ]
    )


def hard(rng: random.Random) -> tuple[str, str]:
    """Draw an answer that math-verify has to parse. Answers rarely repeat, because parsed expressions are cached."""
    n, d = rng.randint(2, 999), rng.randint(2, 99)
    return rng.choice(
        [
            (rf"{n}\sqrt{{{d}}}", rf"\sqrt{{{n * n * d}}}"),
            (rf"\frac{{{n}\pi}}{{{d}}}", rf"\frac{{{2 * n}\pi}}{{{2 * d}}}"),
            (f"x^2+{2 * n}x+{n * n}", f"(x+{n})^2"),
            (f"{n}-{d}i", f"-{d}i+{n}"),
        ]
    )


def pathological(pool: VerifierPool) -> tuple[list[float], int]:
    sys.path.insert(0, str(ROOT / "tests" / "tasks"))
    from test_math_corpus import GOLDS, HOSTILE

    seconds, errors = [], 0
    for text in HOSTILE:
        for gold in GOLDS:
            start = time.perf_counter()
            (verdict,) = pool.score([job(gold, text, boxed=False)])
            seconds.append(time.perf_counter() - start)
            errors += verdict.error is not None
    return seconds, errors


def job(gold: str, answer: str, boxed: bool = True) -> Job:
    text = rf"We add it all up, and so it is \boxed{{{answer}}}." if boxed else answer
    return Job("math", Prompt("key", "task", "question", gold), text)


if __name__ == "__main__":
    main()
