"""Verifiers judge completions: built-in ones, and Python functions with the signature of TRL's reward functions.

A verifier is named by a spec: one of `BUILT_IN`, ``path/to/file.py:function`` or ``package.module:function``.
The functions here run in the calling process without a time limit; training uses ``pacedrl.tasks.pool``, which runs
them in processes that can be killed.
"""

import asyncio
import importlib
import importlib.util
import inspect
import operator
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Set, Sized
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from pydantic import TypeAdapter, ValidationError

from pacedrl.errors import InputError, JudgeError, did_you_mean
from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.verifier import START_LIMIT_S, CodeSettings, code_reward
from pacedrl.tasks.completions import after_thoughts
from pacedrl.tasks.games import countdown_gold, countdown_reward, knights_knaves_gold, knights_knaves_reward
from pacedrl.tasks.math.equality import MathOptions
from pacedrl.tasks.math.rewards import math_gold, math_reward, numeric_reward
from pacedrl.types import Prompt

BUILT_IN = ("math", "exact", "numeric", "code", "countdown", "knights_knaves", "gym")
OPTIONS: dict[str, type[MathOptions] | type[CodeSettings]] = {"math": MathOptions, "code": CodeSettings}
"""The classes that define ``verifier_options``."""

Verifier = Callable[[Prompt, str], float]
"""Maps a prompt and a completion's text to a reward; any exception becomes an error verdict."""

OUT_OF_RANGE = "the reward is outside [0, 1]: "
"""Begins the error of a verdict whose reward is a number outside [0, 1]: a fault of the verifier."""
_READ_ONLY_THE_ANSWER = ("math", "exact", "numeric", "knights_knaves")
_REWARDS: dict[str, Callable[[Any, str], float]] = {  # built-in verifiers without options that read only the answer
    "exact": lambda answer, text: float(text.strip() == str(answer).strip()),
    "numeric": numeric_reward,
    "countdown": countdown_reward,
    "knights_knaves": knights_knaves_reward,
}
_GYM_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TUPLE_GYMS = frozenset({"arc_agi", "rearc"})
_LONGEST_ERROR = 500
_NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)
"""Types that can be iterated over but do not hold rewards in the order of the completions."""
_running: set[Path] = set()  # files that are being imported


@dataclass(frozen=True)
class Verdict:
    """A reward in [0, 1], or None and the reason in one line."""

    reward: float | None
    error: str | None


def require_time(spec: str, options: Mapping[str, Any], timeout_s: float, setting: str, task: str) -> None:
    """Raise InputError that names the ``setting`` if ``timeout_s`` is less than the verifier's own time limit.

    Code that hangs is wrong, but it would be an error if the pool stopped the verifier first.
    """
    if spec != "code":
        return
    needed = float(options.get("timeout_s", CodeSettings.timeout_s)) + START_LIMIT_S
    if needed >= timeout_s:
        raise InputError(
            f"{setting}: {timeout_s:g} s is too little for the code of task {task}: a verdict may take {needed:g} s "
            f"(its own timeout_s and {START_LIMIT_S:g} s to start); raise it",
            docs="verifiers",
        )


def resolve(spec: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """Return the verifier that ``spec`` names. Raises InputError if there is none, or if it does not take ``options``.

    A built-in verifier reads what follows a completion's thoughts, a user's function reads the whole completion.
    """
    function = None if spec in BUILT_IN else _load_function(spec)
    settings = _settings(spec, options or {})
    if function is not None:
        return _from_function(function, spec)
    verifier = _built_in(spec, settings)
    return lambda prompt, text: verifier(prompt, after_thoughts(text))


def _built_in(spec: str, settings: MathOptions | CodeSettings | None) -> Verifier:
    if isinstance(settings, MathOptions):
        return lambda prompt, text: math_reward(prompt.answer, text, settings)
    if isinstance(settings, CodeSettings):
        sandbox.check(settings.sandbox)
        return lambda prompt, text: code_reward(prompt, text, settings)
    if spec == "gym":
        import_gym()
        return _gym_reward
    reward = _REWARDS[spec]
    return lambda prompt, text: reward(prompt.answer, text)


def columns_read(spec: str) -> set[str] | None:
    """Return the columns that the verifier reads beside the answer; None means that it may read any column."""
    if spec in BUILT_IN:
        return set() if spec in _READ_ONLY_THE_ANSWER else None
    named, takes_all = _parameters(_load_function(spec))
    return None if takes_all else set(named)


def _settings(spec: str, options: Mapping[str, Any]) -> MathOptions | CodeSettings | None:
    """Return the settings that a built-in verifier makes of its options, None if it takes no options."""
    if spec not in OPTIONS:
        if options:
            raise InputError(f"verifier '{spec}': takes no options, got {', '.join(options)}", docs="verifiers")
        return None
    known = list(OPTIONS[spec].__dataclass_fields__)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known, ": ") or f": there are {', '.join(known)}"
            raise InputError(f"verifier_options: the verifier '{spec}' has no option '{name}'{hint}", docs="verifiers")
    try:
        settings: MathOptions | CodeSettings = TypeAdapter(OPTIONS[spec]).validate_python(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or spec
        message = f"verifier_options: {where}: {problem['msg'].removeprefix('Value error, ')}"
        raise InputError(message, docs="verifiers") from None
    return settings


def judge(verifier: Verifier, prompt: Prompt, text: str) -> Verdict:
    """Run a verifier; its exceptions, and rewards that are not numbers in [0, 1], become error verdicts.

    Exceptions include SystemExit and KeyboardInterrupt, so call this only in processes that do nothing else.
    Raises MemoryError, whose cause may be the process and not the verifier.
    """
    try:
        reward = float(verifier(prompt, text))
        if not 0.0 <= reward <= 1.0:
            raise JudgeError(f"{OUT_OF_RANGE}{reward}")
    except JudgeError as error:
        return Verdict(None, one_line(str(error)))
    except MemoryError:
        raise
    except BaseException as error:  # a verifier may run any code; its exceptions never become a reward of zero
        return Verdict(None, describe(error))
    return Verdict(reward, None)


def describe(error: BaseException) -> str:
    """Return the exception's type and message on one line of at most 500 characters."""
    kind = type(error).__name__
    try:
        return one_line(f"{kind}: {error}").removesuffix(":")
    except BaseException as failure:  # __str__ may run any code
        return one_line(f"{kind} (whose message cannot be shown: {type(failure).__name__})")


def one_line(message: str) -> str:
    """Collapse the white space of ``message`` and cut it to 500 characters."""
    line = " ".join(message[: 10 * _LONGEST_ERROR].split())
    return line if len(line) <= _LONGEST_ERROR else line[: _LONGEST_ERROR - 3] + "..."


def gold_completion(verifier: str, prompt: Prompt) -> str | None:
    """Return a completion that states the gold answer and should earn the full reward.

    Returns None when the row has no gold answer: some reasoning-gym tasks have many right answers and state none;
    ``code`` reads the column ``canonical_solution``; countdown is solved for up to four numbers. Raises JudgeError when
    the gold answer has a type that the verifier does not take, or the puzzle has no solution.
    """
    if verifier == "code":
        solution = prompt.columns.get("canonical_solution")
        return None if solution is None else f"```python\n{solution}\n```"
    if prompt.answer is None:
        return None
    if verifier == "countdown":
        return countdown_gold(prompt.answer)
    if verifier == "math":
        return rf"\boxed{{{math_gold(prompt.answer)}}}"
    return knights_knaves_gold(prompt.answer) if verifier == "knights_knaves" else str(prompt.answer)


def import_gym() -> ModuleType:
    """Import reasoning_gym. Raises InputError that says how to install it."""
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise InputError('reasoning-gym tasks need the gym extra: pip install "pacedrl[gym]"') from None


def _gym_reward(prompt: Prompt, text: str) -> float:
    """Return reasoning-gym's own score of the text in the last answer tags, or else of the whole completion."""
    metadata = prompt.columns.get("metadata")
    if not isinstance(metadata, dict) or "source_dataset" not in metadata:
        raise JudgeError("the verifier 'gym' needs rows of a gym: source (column 'metadata' with 'source_dataset')")
    name = metadata["source_dataset"]
    if name in _TUPLE_GYMS:  # these compare boards of tuples, and a row has JSON lists instead
        metadata = _as_tuples(metadata)
    tagged = _GYM_ANSWER.findall(text)
    answer = (tagged[-1] if tagged else text).strip()
    entry = {"question": prompt.content, "answer": prompt.answer, "metadata": metadata}
    return float(_gym_scorer(name)(answer, entry))


@cache
def _gym_scorer(name: str) -> Callable[[str, dict[str, Any]], float]:
    scorer: Callable[[str, dict[str, Any]], float] = import_gym().get_score_answer_fn(name)
    return scorer


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _from_function(function: Callable[..., Any], spec: str) -> Verifier:
    """Turn a TRL reward function into a verifier that calls it with lists of length 1 and the columns it accepts."""
    named, takes_all = _parameters(function)

    def verify(prompt: Prompt, text: str) -> float:
        chat = isinstance(prompt.content, list)
        columns = {
            **prompt.columns,
            "answer": prompt.answer,
            "prompts": prompt.content,
            "completions": [{"role": "assistant", "content": text}] if chat else text,
        }
        missing = [name for name, p in named.items() if name not in columns and p.default is p.empty]
        if missing:
            hint = did_you_mean(missing[0], columns)
            raise JudgeError(
                f"{spec} needs '{missing[0]}', which is not a column; there are {', '.join(columns)}{hint}"
            )
        rewards = function(**{name: [value] for name, value in columns.items() if takes_all or name in named})
        return _only_reward(rewards, spec)

    return verify


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters that can be passed by name, and whether the function takes any other name."""
    parameters = inspect.signature(function).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _only_reward(rewards: Any, spec: str) -> float:
    """Return the only reward in the function's result. Raises JudgeError for a result of another type or length.

    As in TRL, the result is anything that yields the rewards in order: a list, tuple, array, tensor or generator.
    """
    if isinstance(rewards, Coroutine):
        rewards = asyncio.run(rewards)
    if isinstance(rewards, _NO_LISTS) or not isinstance(rewards, Iterable) or getattr(rewards, "ndim", 1) == 0:
        raise JudgeError(
            f"{spec} returned a {type(rewards).__name__} for one completion; expected a list of one reward"
        )
    found = list(islice(rewards, 2))
    if len(found) != 1:
        count = len(rewards) if isinstance(rewards, Sized) else "2 or more" if found else 0
        raise JudgeError(f"{spec} returned {count} rewards for one completion; expected a list of one reward")
    return _number(found[0], spec)


def _number(reward: Any, spec: str) -> float:
    if reward is None:
        raise JudgeError(f"{spec} returned None: it does not apply to this row")
    value = reward.item() if hasattr(reward, "item") else reward  # numpy's text has __float__, Python's has not
    if not isinstance(value, SupportsFloat):
        raise JudgeError(f"{spec} returned a {type(reward).__name__} as the reward; expected a number in [0, 1]")
    return float(value)


def _load_function(spec: str) -> Callable[..., Any]:
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        hint = did_you_mean(spec, BUILT_IN, ": ", cutoff=0.4) or ":"
        raise InputError(
            f"unknown verifier '{spec}'{hint} expected {', '.join(BUILT_IN)}, file.py:function or module:function",
            docs="verifiers",
        )
    module = _import(where, spec)
    try:
        function = operator.attrgetter(name)(module)
    except AttributeError:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(name, functions)
        raise InputError(f"verifier '{spec}': {where} has no '{name}'{hint}", docs="verifiers") from None
    if not callable(function):
        raise InputError(
            f"verifier '{spec}': '{name}' is a {type(function).__name__}, expected a function", docs="verifiers"
        )
    try:
        inspect.signature(function)
    except (ValueError, TypeError):
        raise InputError(
            f"verifier '{spec}': '{name}' does not say which arguments it takes; wrap it in a function of your own",
            docs="verifiers",
        ) from None
    return function  # type: ignore[no-any-return]


def _import(where: str, spec: str) -> ModuleType:
    path = Path(where).expanduser().resolve() if where.endswith(".py") or "/" in where else None
    if path is not None and not (path.is_file() and path.suffix == ".py"):
        raise InputError(f"verifier '{spec}': there is no Python file {path}", docs="verifiers")
    folder = str(Path.cwd() if path is None else path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for the user's modules; last, so that they shadow no other module
    try:
        return importlib.import_module(where) if path is None else _run_file(path)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code
        raise InputError(f"verifier '{spec}': importing {where} failed: {describe(error)}", docs="verifiers") from error


def _run_file(path: Path) -> ModuleType:
    if path in _running:
        raise InputError(
            f"{path} starts the training again whenever it is imported, and verifiers import it: put all code "
            'but definitions under if __name__ == "__main__":'
        )
    name = f"pacedrl_verifier_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None  # files ending in .py have a loader
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses look up their module
    _running.add(path)
    try:
        module_spec.loader.exec_module(module)
    finally:
        _running.remove(path)
    return module
