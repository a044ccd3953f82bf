"""Specs, built-in verifiers, TRL reward functions and what becomes an error verdict."""

import importlib
import itertools
import sys
import textwrap
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from pacedrl.errors import InputError
from pacedrl.tasks.verifiers import Verdict, gold_completion, judge, resolve
from pacedrl.types import Prompt

REWARDS = """
    import helper_beside_it

    seen = []
    not_a_function = 3

    def length(prompts, completions, **columns):
        seen.append((prompts, completions, columns))
        return [helper_beside_it.HALF]

    def answer_only(completions, answer):
        return [float(completion == answer[0]) for completion in completions]

    def trl_solution(completions, solution, **kwargs):
        return [1.0 if c[0]["content"] == s else 0.0 for c, s in zip(completions, solution)]

    def needs_more(completions, hidden_column):
        return [1.0]

    def with_default(completions, hidden_column=None):
        return [1.0 if hidden_column is None else 0.0]

    class Rewards:
        @staticmethod
        def half(completions, **_):
            return (0.5,)
"""


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(textwrap.dedent(REWARDS), encoding="utf-8")
    (tmp_path / "helper_beside_it.py").write_text("HALF = 0.5\n", encoding="utf-8")
    before = list(sys.path)
    yield path
    sys.path[:] = before
    sys.modules.pop("helper_beside_it", None)


def prompt(answer="18", content="How many?", **columns):
    return Prompt("key", "task", content, answer, columns)


def verdict(spec, text, **row):
    return judge(resolve(spec), prompt(**row), text)


def reward(function, **row):
    """Return the verdict of a TRL function."""
    module = importlib.import_module("types").ModuleType("rewards_in_memory")
    module.function = function
    sys.modules["rewards_in_memory"] = module
    try:
        return verdict("rewards_in_memory:function", "text", **row)
    finally:
        del sys.modules["rewards_in_memory"]


@pytest.mark.parametrize(
    ("spec", "answer", "text", "expected"),
    [
        ("math", r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        ("math", "18", r"\boxed{0.5}", 0.0),
        ("numeric", "1,000", "1000 in all", 1.0),
        ("exact", "ab", " ab\n", 1.0),
        ("exact", "ab", "the answer is ab", 0.0),
        ("exact", 18, "18", 1.0),
    ],
)
def test_built_in_rewards(spec, answer, text, expected):
    assert verdict(spec, text, answer=answer) == Verdict(expected, None)


def test_a_gold_answer_that_cannot_be_parsed_is_an_error_and_no_zero():
    assert verdict("math", r"\boxed{1}", answer={"target": 3}) == Verdict(
        None, "the gold answer {'target': 3} is neither text nor a number; map columns.answer to one"
    )


def test_gym_scores_with_the_tagged_answer_or_the_whole_text():
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("chain_sum", size=1, seed=3)[0]
    row = {"answer": entry["answer"], "content": entry["question"], "metadata": entry["metadata"]}
    assert verdict("gym", f" {entry['answer']}\n", **row).reward == 1.0
    assert verdict("gym", f"<answer>0</answer> no: <answer> {entry['answer']} </answer> done", **row).reward == 1.0
    assert verdict("gym", "<answer>-1</answer>", **row).reward < 0.1
    assert verdict("gym", "18").error == (
        "the verifier 'gym' needs rows of a gym: source (column 'metadata' with 'source_dataset')"
    )


@pytest.mark.parametrize("content", ["How many?", [{"role": "user", "content": "How many?"}]])
def test_trl_functions_get_lists_of_one_in_trl_format(rewards, content):
    assert verdict(f"{rewards}:length", "text", content=content, level=[3, 4], answer="9") == Verdict(0.5, None)
    completion = "text" if isinstance(content, str) else [{"role": "assistant", "content": "text"}]
    seen = sys.modules["pacedrl_verifier_rewards"].seen
    assert seen == [([content], [completion], {"level": [[3, 4]], "answer": ["9"]})]


def test_trl_functions_get_only_the_columns_they_accept(rewards):
    assert verdict(f"{rewards}:answer_only", "18", level=3) == Verdict(1.0, None)
    chat = [{"role": "user", "content": "q"}]
    assert verdict(f"{rewards}:trl_solution", "x", content=chat, solution="x", level=3) == Verdict(1.0, None)
    assert verdict(f"{rewards}:with_default", "x", level=3) == Verdict(1.0, None)
    assert verdict(f"{rewards}:needs_more", "x", level=3).error == (
        f"{rewards}:needs_more needs 'hidden_column', which is not a column; "
        "there are level, answer, prompts, completions"
    )


def test_nested_names_and_modules_of_the_working_directory(rewards, monkeypatch):
    assert verdict(f"{rewards}:Rewards.half", "x") == Verdict(0.5, None)
    monkeypatch.chdir(rewards.parent)
    assert verdict("rewards:Rewards.half", "x") == Verdict(0.5, None)
    sys.modules.pop("rewards")


@pytest.mark.parametrize(
    "value",
    [
        [1],
        [True],
        (1.0,),
        iter([1]),
        {"reward": 1.0}.values(),
        [Fraction(1)],
        [Decimal("1.0")],
        np.array([1.0]),
        np.array([True]),
        [np.float32(1)],
        [np.int64(1)],
        torch.ones(1),
        torch.ones(1, dtype=torch.bfloat16),
        [torch.tensor(1)],
        [torch.ones(1)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_rewards_of_any_numeric_kind(value):
    assert reward(lambda completions: value) == Verdict(1.0, None)


def test_functions_may_be_generators_or_asynchronous_as_in_trl():
    def one_by_one(completions):
        for text in completions:
            yield float(text == "text")

    async def later(completions):
        return [1.0]

    assert reward(one_by_one) == Verdict(1.0, None)
    assert reward(later) == Verdict(1.0, None)


def test_what_a_generator_raises_is_the_error():
    def fails(completions):
        raise ValueError("no such unit")
        yield 1.0

    assert reward(fails) == Verdict(None, "ValueError: no such unit")


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no message")

    __repr__ = __str__


class CustomExit(BaseException):
    pass


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (SystemExit(4), "SystemExit: 4"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("early"), "GeneratorExit: early"),
        (CustomExit("own"), "CustomExit: own"),
        (SilentError(), "SilentError (whose message cannot be shown: RuntimeError)"),
        (AssertionError(), "AssertionError"),
        (ValueError("a\u2028b\rc\x0bd"), "ValueError: a b c d"),
        (ExceptionGroup("both", [ValueError(1), ValueError(2)]), "ExceptionGroup: both (2 sub-exceptions)"),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "raised",
)
def test_whatever_a_function_raises_is_named(raised, error):
    def fails(completions):
        raise raised

    assert reward(fails) == Verdict(None, error)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "returned a NoneType for one completion; expected a list of one reward"),
        (0.5, "returned a float for one completion; expected a list of one reward"),
        ([], "returned 0 rewards for one completion"),
        ([0.1, 0.2], "returned 2 rewards for one completion"),
        ([None], "returned None: it does not apply to this row"),
        ([float("nan")], "the reward is outside [0, 1]: nan"),
        (["1"], "returned a str as the reward; expected a number in [0, 1]"),
        (["1.0"], "returned a str as the reward"),
        ([b"1"], "returned a bytes as the reward"),
        ([[1.0]], "returned a list as the reward"),
        ([1j], "returned a complex as the reward"),
        (np.array(["1.0"]), "returned a str_ as the reward"),
        ([np.complex128(1)], "returned a complex128 as the reward"),
        ([np.timedelta64(1, "s")], "returned a timedelta64 as the reward"),
        ("1", "returned a str for one completion; expected a list of one reward"),
        (b"\x01", "returned a bytes for one completion; expected a list of one reward"),
        (bytearray(b"\x01"), "returned a bytearray for one completion"),
        ({1.0: "reward"}, "returned a dict for one completion; expected a list of one reward"),
        ({1.0}, "returned a set for one completion"),
        (np.array(1.0), "returned a ndarray for one completion"),
        (torch.tensor(1.0), "returned a Tensor for one completion"),
        (itertools.repeat(1.0), "returned 2 or more rewards for one completion"),
        (np.ones(3), "returned 3 rewards for one completion"),
        (iter([]), "returned 0 rewards for one completion"),
        ([float("-inf")], "the reward is outside [0, 1]: -inf"),
        ([10**400], "OverflowError: int too large to convert to float"),
        ([1.5], "the reward is outside [0, 1]: 1.5"),
        ([-0.1], "the reward is outside [0, 1]: -0.1"),
        ([float("inf")], "the reward is outside [0, 1]: inf"),
    ],
)
def test_anything_else_a_function_returns_is_an_error(value, reason):
    got = reward(lambda completions: value)
    assert got.reward is None
    assert reason in got.error


def test_an_exception_is_an_error_of_one_short_line():
    def fails(completions):
        raise ZeroDivisionError("over\n  two lines " + "x" * 10_000)

    got = reward(fails)
    assert got.reward is None
    assert got.error.startswith("ZeroDivisionError: over two lines xxx")
    assert len(got.error) == 500


@pytest.mark.parametrize("spec", ["math", "exact", "numeric"])
@pytest.mark.parametrize("answer", ["18", "#### 18", 18, 2.5])
def test_the_gold_completion_earns_the_full_reward(spec, answer):
    row = prompt(answer)
    assert judge(resolve(spec), row, gold_completion(spec, row)) == Verdict(1.0, None)


def test_gold_completions_by_verifier():
    assert gold_completion("math", prompt("work\n#### 1,234")) == r"\boxed{1,234}"
    assert gold_completion("math", prompt(r"so \boxed{\frac{1}{2}}")) == r"\boxed{\frac{1}{2}}"
    assert gold_completion("exact", prompt("ab")) == "ab"
    assert gold_completion("module:function", prompt(3)) == "3"
    assert gold_completion("gym", prompt(None)) is None


@pytest.mark.parametrize("spec", ["math", "exact", "numeric", "gym", "json:dumps"])
def test_resolve_accepts(spec):
    if spec == "gym":
        pytest.importorskip("reasoning_gym")
    resolve(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "mth",
            "unknown verifier 'mth': did you mean 'math'? expected math, exact, numeric, code, countdown, ",
        ),
        ("zzz", "unknown verifier 'zzz': expected math"),
        ("", "unknown verifier '': expected math"),
        ("json:", "unknown verifier 'json:'"),
        ("no/such.py:f", "there is no Python file /"),
        ("./folder/file:f", "there is no Python file /"),
        ("no_such_module:f", "importing no_such_module failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:dump_", "json has no 'dump_'; did you mean 'dump'?"),
        ("string:digits", "'digits' is a str, expected a function"),
        ("builtins:max", "'max' does not say which arguments it takes; wrap it in a function of your own"),
    ],
)
def test_resolve_refuses_in_one_line(spec, message):
    with pytest.raises(InputError) as error:
        resolve(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class E(Exception):\n    __str__ = None\nraise E", "E (whose message cannot be shown: TypeError)"),
        ("def", "SyntaxError"),
    ],
)
def test_resolve_reports_a_file_that_does_not_import(tmp_path, code, reason):
    path = tmp_path / "broken.py"
    path.write_text(code, encoding="utf-8")
    with pytest.raises(InputError) as error:
        resolve(f"{path}:f")
    assert f"importing {path} failed: {reason}" in str(error.value)


def test_a_missing_reasoning_gym_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r'pip install "pacedrl\[gym\]"'):
        resolve("gym")


def test_options_of_built_in_verifiers_reach_them():
    def judged(answer, text, **options):
        return judge(resolve("math", options), Prompt("key", "t", "q", answer), text).reward

    assert judged("0.5", r"\boxed{50\%}") == 1.0
    assert judged("50", r"\boxed{50\%}", percent="value") == 0.0
    assert judged("18", "It makes 18 in all") == 0.0
    assert judged("18", "It makes 18 in all", last_number=True) == 1.0


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("math", {"percents": "value"}, "the verifier 'math' has no option 'percents': did you mean 'percent'?"),
        ("math", {"percent": "half"}, "verifier_options: percent: "),
        ("math", {"tolerance": 2}, "verifier_options: math: expected 0 <= tolerance < 1"),
        ("code", {"zzz": 1}, "the verifier 'code' has no option 'zzz': there are sandbox, "),
        ("code", {"sandbox": "docker"}, "verifier_options: sandbox: "),
        ("code", {"memory_mb": "much"}, "verifier_options: memory_mb: "),
        ("exact", {"percent": "value"}, "verifier 'exact': takes no options, got percent"),
    ],
)
def test_bad_options_are_refused_in_one_line(spec, options, message):
    with pytest.raises(InputError) as error:
        resolve(spec, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_code_is_a_verifier_by_name():
    tests = {"test_list": ["assert twice(2) == 4", "assert twice('a') == 'aa'"]}
    row = Prompt("key", "t", "Write twice.", None, tests | {"canonical_solution": "def twice(x): return x + x"})
    verifier = resolve("code", {"sandbox": "rlimits"})
    assert judge(verifier, row, gold_completion("code", row)).reward == 1.0
    assert judge(verifier, row, "```python\ndef twice(x): return 2 + x\n```").reward == 0.0
    assert judge(verifier, row, "no code at all").reward == 0.0
    assert gold_completion("code", Prompt("key", "t", "Write twice.", None, tests)) is None


def test_games_are_verifiers_by_name():
    countdown = Prompt("key", "t", "q", {"numbers": [1, 2, 3], "target": 7})
    assert judge(resolve("countdown"), countdown, "<answer>1 + 2 * 3</answer>").reward == 1.0
    gold = gold_completion("countdown", countdown)
    assert gold is not None
    assert judge(resolve("countdown"), countdown, gold).reward == 1.0
    island = Prompt("key", "t", "q", {"names": ["Zoey", "Owen"], "solution": [True, False]})
    assert judge(resolve("knights_knaves"), island, gold_completion("knights_knaves", island)).reward == 1.0
    assert judge(resolve("knights_knaves"), island, "<answer>Zoey is a knight</answer>").reward == 0.0
