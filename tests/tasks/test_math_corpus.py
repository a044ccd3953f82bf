"""The maths verifier against known traps, every gold answer of public data sets, and hostile completions."""

import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_pairs import PAIRS
from pool_helpers import judging_pids
from public_sets import GOLD_FILES, gold_answers

from pacedrl.errors import JudgeError
from pacedrl.tasks.math.equality import MathOptions
from pacedrl.tasks.math.rewards import math_gold, math_reward, numeric_reward
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.types import Prompt

FORMS = ("so \\boxed{%s}.", "3 + 4 is 7\n#### %s", "We see. The answer is %s.")
GOLDS = ["5", r"\frac{1}{2}", "x^2+1", r"\{1,2\}", "(1,2)", "x=5", r"\begin{pmatrix}1\\2\end{pmatrix}", r"2\pi", "1:2"]
JOB_LIMIT_S = 5.0  # half of the pool's default, for machines that are busy
MEMORY_GROWTH_MB = 40


# --- known traps


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_known_traps(pair):
    text = pair.completion if pair.whole else rf"so \boxed{{{pair.completion}}}"
    right = pair.right if pair.miss is None else not pair.right  # fails if a marked miss is corrected
    assert math_reward(pair.gold, text) == float(right), pair.note


def test_there_are_many_traps_and_few_misses():
    assert len(PAIRS) >= 190
    assert sum(pair.miss is not None for pair in PAIRS) <= 1
    assert not any(pair.miss for pair in PAIRS if not pair.right)  # a model would find a false positive


@pytest.mark.parametrize(
    ("options", "gold", "text", "reward"),
    [
        ({"percent": "value"}, r"50\%", r"\boxed{0.5}", 1.0),
        ({"percent": "value"}, r"50\%", r"\boxed{50}", 0.0),
        ({"percent": "value"}, "0.5", r"\boxed{50\%}", 1.0),
        ({"percent": "sign"}, r"50\%", r"\boxed{0.5}", 0.0),
        ({"percent": "sign"}, "50", r"\boxed{50\%}", 1.0),
        ({}, r"50\%", r"\boxed{50}", 1.0),
        ({}, "50", r"\boxed{50\%}", 0.0),
        ({"tolerance": 0.01}, "1.41", r"\boxed{1.42}", 1.0),
        ({"tolerance": 0.01}, "1000", r"\boxed{1001.0}", 0.0),  # no tolerance for whole numbers
        ({"units": "strict"}, "5 cm", r"\boxed{5}", 0.0),
        ({"units": "strict"}, "5 cm", r"\boxed{5 \text{ centimeters}}", 1.0),
        ({"units": "strict"}, "5", r"\boxed{5 cm}", 1.0),
        ({"tolerance": 0.01}, r"\frac{1}{3}", r"\boxed{0.333}", 1.0),
        ({"tolerance": 0.01}, r"\sqrt{2}", r"\boxed{1.41}", 1.0),
        ({"tolerance": 0.01}, r"\sqrt{2}", r"\boxed{\frac{141}{100}}", 0.0),  # no decimal
        ({"tolerance": 0.01}, "1.41", r"\boxed{\sqrt{2}}", 0.0),  # not worked out
        ({"tolerance": 0.01, "evaluated": False}, "1.41", r"\boxed{\sqrt{2}}", 1.0),
        ({"tolerance": 0.01}, "1000", r"\boxed{1001}", 0.0),  # no decimal
        ({"tolerance": 0.0}, r"\frac{1}{3}", r"\boxed{0.33333333333333}", 0.0),
        ({"ordered": False}, "(1,2)", r"\boxed{(2,1)}", 1.0),
        ({"ordered": False}, "[1,2]", r"\boxed{[2,1]}", 0.0),  # an interval
        ({"evaluated": False}, "18", r"\boxed{9+9}", 1.0),
        ({"evaluated": False}, "12", r"\boxed{84/7}", 1.0),
        ({"evaluated": False}, "1024", r"\boxed{2^{10}}", 1.0),
        ({"last_number": True}, "18", "I think we end with 18", 1.0),
        ({"last_number": True}, "18", "18 or 19", 0.0),
        ({"last_number": True}, "18", r"18 but \boxed{19}", 0.0),
        ({"last_number": True}, "18", "no idea", 0.0),
        ({}, "18", "I think we end with 18", 0.0),
    ],
)
def test_options(options, gold, text, reward):
    assert math_reward(gold, text, MathOptions(**options)) == reward


@pytest.mark.parametrize(
    "options", [{"percent": "maybe"}, {"units": "no"}, {"tolerance": -1.0}, {"tolerance": 1.0}, {"tolerance": "nan"}]
)
def test_impossible_options(options):
    options = {key: float(value) if value == "nan" else value for key, value in options.items()}
    with pytest.raises(ValueError, match="expected"):
        MathOptions(**options)


# --- gold answers of public data sets


def read_golds(name):
    try:
        return gold_answers(name)
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is absent")
    except ImportError:
        pytest.skip("pyarrow is absent")


def check_golds(name, step):
    answers = read_golds(name)
    count, unusable = GOLD_FILES[name]
    assert len(answers) == count
    refused = set()
    for answer in answers[::step]:
        for form in FORMS:
            text = form % math_gold(answer)
            try:
                assert math_reward(answer, text) == 1.0, (answer, text)
            except JudgeError:
                refused.add(answer)
            if "one_shot" not in name:
                assert numeric_reward(answer, text) == 1.0, (answer, text)
    assert len(refused) == unusable if step == 1 else len(refused) <= unusable


@pytest.mark.parametrize("name", GOLD_FILES)
def test_gold_answers_are_accepted(name):
    check_golds(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLD_FILES)
def test_all_gold_answers_are_accepted(name):
    check_golds(name, 1)


def check_no_gold_passes_for_another(count):
    answers = [g for name in GOLD_FILES if "one_shot" in name for g in read_golds(name)]
    answers = sorted({g for g in answers if g and not g.endswith("(k+n-1)!") and not g.lstrip("-").isdigit()})
    rng = random.Random(0)
    pairs = [rng.sample(answers, 2) for _ in range(count)]
    accepted = {(gold, other) for gold, other in pairs if math_reward(gold, rf"\boxed{{{other}}}") == 1.0}
    # Accepted pairs have the same value, so each accepts the other; but 12% accepts 12, and 12 refuses 12%.
    backwards = [(other, gold) for gold, other in accepted if "%" not in gold]
    assert all(math_reward(other, rf"\boxed{{{gold}}}") == 1.0 for other, gold in backwards)
    assert len(accepted) <= count // 500


def test_gold_answers_differ_from_each_other():
    check_no_gold_passes_for_another(1000)


@pytest.mark.slow
def test_many_gold_answers_differ_from_each_other():
    check_no_gold_passes_for_another(20_000)


# --- hostile completions


def nested(opening, closing, depth, core="1"):
    return opening * depth + core + closing * depth


_EXPRESSIONS = r"""
10^10^10 10^{10^{10}} 10^{10^{10}}! 9^{9^{9^9}} 9**9**9**9 (9^9)^{9^9} ((9^{999})^{999})^{999} e^{e^{e^{e^9}}}
e^{4999} x^{x^{x}} x^{x}^{x} i^{i^i} 9^{9!} 2^{-4999} 1000000000! 9999! 9999!+9999!+9999! ((9!)!)! 9!!!
(9*9*9*9*9*9*9*9*9)! x!^{4999} (x!)! (|(0+10)!|)! ((n+9)!)! \binom{9999}{4999} \binom{\binom{9999}{4999}}{99}
\binom{10^9}{5} \binom{e}{9999} \binom{n}{k}^{4999} \det(x) \sin(10^{4000}) (1+\frac{1}{4999})^{4999}
\tan(\frac{\pi}{2}) \frac{1}{0} \infty-\infty 0^0 1/(1-1) \frac{x}{x-x} 1e999 1e99999999
__import__('os').system('true') ().__class__ exit() E5 I N S
"""
IN_A_BOX = [
    *_EXPRESSIONS.split(), "2^" * 99 + "2", "9^{99}" * 70, r"\sum_{k=1}^{10^9} k", r"\int_0^1 x dx",
    r"\prod_{k=1}^{10^9} k", r"\lim_{x\to0} x", r"\lfloor \pi^{4000} \rfloor", r"\ln \ln \ln \ln 10^{4000}", r"\ln 0",
    *(nested(r"\frac{1}{", "}", depth) for depth in (7, 8, 9, 50, 1000)),
    *(nested(r"\frac{1}{1+", "}", depth, "x") for depth in (7, 60)),
    *(nested(r"\sqrt{", "}", depth, "2") for depth in (7, 60)), *(nested("(", ")", depth) for depth in (8, 9, 200)),
    *(nested(r"\cot(", ")", depth, "x") for depth in (7, 60)),
    *(nested("(", ")^2", depth, "x+1") for depth in (7, 60)), nested(r"\{", r"\}", 200), nested("{", "}", 200),
    nested(r"\boxed{", "}", 200), nested("|", "|", 100, "x"), "(x+y+z)^{99}" * 20, r"\sin" * 80 + "x",
    "+".join(rf"\sin({n}x)" for n in range(30)), r"\sqrt" * 80 + "2", "+".join([r"\frac{1}{x^{99}}"] * 25),
    "x^2" * 150, "|x|" * 100, "x" * 400, "a b " * 100, "f(" * 20 + "x" + ")" * 20, "-" * 400 + "1", "1/" * 200 + "1",
    "x=" * 100 + "5", "1<" * 100 + "5", r"\cup" * 100, "1:" * 200 + "5", r"\pm" * 100, r"\pm 1," * 30,
    "5 " * 200 + "m", "5 " + "ab " * 160, "ab/" * 160, " " * 490 + "5", "5" + "." * 400,
    ",".join(map(str, range(1000))), ",".join(f"x+{n}" for n in range(40)), "or " * 150, "," * 400, ";" * 400,
    r"\begin{pmatrix}" + r"1&2\\" * 60 + r"\end{pmatrix}", r"\begin{pmatrix}" * 25, r"\end{pmatrix}" * 25, "&" * 300,
    r"\sqrt{" * 2_000 + "2" + "}" * 2_000,
    "1+" * 50_000 + "1", "x^" * 200 + "2", "1" * 500, "1" * 1_000_000, "1." + "1" * 480, "9" * 40,
    "٥", "Ⅴ", "5\u200b", "५", "⑤", "\x00", "5\x00", "\ud800",
    "\ud8005", "5\udfff", "\u202e5", "5\n\n\n", "%" * 400, "5" + r"\%" * 200, "$" * 400, "lambda: 5",
    "5 if True else 6",
]  # fmt: skip
WHOLE_TEXTS = [
    r"\boxed{" * 100_000, "{" * 1_000_000, "}" * 1_000_000, "\\" * 1_000_000, r"\boxed{5" + "}" * 100_000,
    "####" * 250_000, "the answer is " * 80_000, "the answer is" + "\n" * 1_000_000, "The answer is" * 80_000,
    "\ud800" * 1000, "\x00" * 100_000, "1," * 500_000, "1" * 1_000_000, "1/" * 500_000, "-" * 1_000_000,
    "1,111" * 200_000, "1e" * 500_000, ".5" * 500_000, " " * 1_000_000, "not " * 200_000 + r"\boxed{6}",
    r"\boxed{}" * 9, r"\boxed{6}" * 100_000, r"\boxed" + " " * 1_000_000, "$" * 1_000_000, "$1" * 300_000,
    "\n" * 1_000_000,
]  # fmt: skip
HOSTILE = [rf"\boxed{{{content}}}" for content in IN_A_BOX] + WHOLE_TEXTS

_FRAGMENTS = r"""
\frac{ } { \sqrt{ \sqrt[3]{ \boxed{ \text{ \left( \right) \{ \} ( ) [ ] | ^ ^{ _ _{ ! !! , ; : & \\ = < > \leq
+ - * / \cdot \times \div \pm \pi e i x y n \infty \ln \log_2 \sin \cos \tan^{-1} \cot \binom{ \lceil \rceil
\cup \in \neq \emptyset \% % $ . 0 1 2 5 9 10 99 999 9999 0.5 1e9 or and not cm \ldots ^\circ \mathrm{e}
\begin{pmatrix} \end{pmatrix} #### \sum \int \lfloor \rfloor \theta ** ² ½ − π
"""
FRAGMENTS = [*_FRAGMENTS.split(), "\x00", "\ud800", "\n", " ", "\\", "the answer is"]


FORMS_OF_EXPRESSIONS = [
    "%s+%s", "%s-%s", r"%s \cdot %s", "%s/%s", r"\frac{%s}{%s}", "{%s}^{%s}", "(%s)^{%s}", "(%s)(%s)", "%s^%s",
    r"\sqrt{%s}", r"\sqrt[3]{%s}", r"\ln(%s)", r"\sin(%s)", r"\tan(%s)", "(%s)!", "%s!", "|%s|", "-%s",
    r"\binom{%s}{%s}", r"\lceil %s \rceil", r"\lfloor %s \rfloor", "%s,%s", "(%s,%s)", r"\{%s,%s\}", "%s=%s",
    "%s<%s", r"%s \leq %s", r"%s \pm %s", r"%s \%%", "%s cm", r"[%s,%s) \cup (%s,%s]", r"\log_{%s}{%s}",
]  # fmt: skip


def well_formed(rng, depth=0):
    """Return a random expression, which math-verify can usually read."""
    if depth == 4 or rng.random() < 0.25:
        return rng.choice(["x", "y", "n", "e", "i", r"\pi", "0", "1", "2", "7", "10", "99", "0.5", "2004", "9999"])
    form = rng.choice(FORMS_OF_EXPRESSIONS)
    return form % tuple(well_formed(rng, depth + 1) for _ in range(form.count("%s")))


def hostile_text(rng):
    kind = rng.random()
    if kind < 0.5:
        content = well_formed(rng)
    elif kind < 0.8:
        content = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 60)))
    elif kind < 0.9:
        content = rng.choice(FRAGMENTS) * rng.randint(1, 200)
    else:
        content = rng.choice(IN_A_BOX)[: rng.randint(1, 400)]
    return rng.choice([r"\boxed{%s}", "#### %s", "The answer is %s", r"$\boxed{%s}$ \boxed{", "%s"]).replace(
        "%s", content
    )


def job(gold, text, verifier="math"):
    return Job(verifier, Prompt("key", "task", "q", gold), text)


def resident_mb(pool):
    (pid,) = judging_pids(pool)
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def check_through_a_pool(texts, rng, warm_up):
    """Check that no error occurs, no process is lost, each job is fast, and memory does not grow after the warm-up."""
    with VerifierPool(workers=1, timeout_s=2 * JOB_LIMIT_S) as pool:
        pool.score([job("5", r"\boxed{\frac{10}{2}}")])
        processes = [worker._process.pid for worker in pool._workers]
        before, slowest = 0.0, (0.0, "")
        for index, text in enumerate(texts):
            if index == warm_up:
                before = resident_mb(pool)
            gold = rng.choice(GOLDS)
            start = time.monotonic()
            (verdict,) = pool.score([job(gold, text, "numeric" if gold == "5" and index % 2 else "math")])
            slowest = max(slowest, (time.monotonic() - start, text[:100]))
            assert verdict.error is None, (gold, text[:200])
            assert verdict.reward in (0.0, 1.0)
        assert slowest[0] < JOB_LIMIT_S, slowest
        assert resident_mb(pool) - before < MEMORY_GROWTH_MB
        assert [worker._process.pid for worker in pool._workers] == processes


def check_hostile(golds_a_text):
    golds = [gold for gold in GOLDS if "5" not in gold]  # some of the texts state 5
    for index, text in enumerate(HOSTILE):
        start = time.process_time()
        for gold in [golds[(index + k) % len(golds)] for k in range(golds_a_text)]:
            assert math_reward(gold, text, MathOptions(evaluated=False)) == 0.0, (gold, text[:200])
        assert time.process_time() - start < JOB_LIMIT_S, text[:200]


def test_no_hostile_completion_is_accepted_or_slow():
    check_hostile(1)


@pytest.mark.slow
def test_no_hostile_completion_is_accepted_or_slow_whatever_the_gold_answer():
    check_hostile(len(GOLDS))


def test_hostile_completions_through_a_pool():
    rng = random.Random(1)
    texts = HOSTILE + [hostile_text(rng) for _ in range(200)]
    check_through_a_pool(texts, rng, warm_up=len(HOSTILE))


@pytest.mark.slow
def test_ten_thousand_hostile_completions_through_a_pool():
    rng = random.Random(2)
    check_through_a_pool((hostile_text(rng) for _ in range(10_000)), rng, warm_up=2_000)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=40), st.sampled_from(GOLDS))
def test_any_fragments_get_a_reward(fragments, gold):
    for text in ("".join(fragments), rf"\boxed{{{''.join(fragments)}}}", "#### " + " ".join(fragments)):
        assert math_reward(gold, text) in (0.0, 1.0)
        assert numeric_reward("5", text) in (0.0, 1.0)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**4))
def test_a_fraction_equals_itself_in_every_spelling_and_no_other(top, bottom):
    for spelling in (rf"\frac{{{2 * top}}}{{{2 * bottom}}}", f"{top}/{bottom}"):
        assert math_reward(rf"\frac{{{top}}}{{{bottom}}}", rf"\boxed{{{spelling}}}") == 1.0
        assert math_reward(rf"\frac{{{top + 1}}}{{{bottom}}}", rf"\boxed{{{spelling}}}") == 0.0


def test_threads_can_judge():
    rewards = []
    thread = threading.Thread(target=lambda: rewards.append(math_reward("x+1", r"\boxed{1+x}")))
    thread.start()
    thread.join()
    assert rewards == [1.0]
