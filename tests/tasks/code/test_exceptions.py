"""Tests of exceptions that the code raises or returns, and of results that the tests pass back to it."""

import pytest
from code_helpers import reward


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("KeyError('k')", "str(e) == \"'k'\" and e.args == ('k',)"),
        ("ValueError('no', 3)", "e.args == ('no', 3) and str(e) == \"('no', 3)\""),
        ("ValueError()", "e.args == () and str(e) == ''"),
        ("FileNotFoundError(2, 'gone', 'a')", "e.errno == 2 and e.filename is None and 'gone' in str(e)"),
        ("Own(5)", "str(e) == 'code 5' and e.code == 5 and e.args == (5,) and isinstance(e, ValueError)"),
        ("ValueError(object)", "str(e) == \"<class 'object'>\""),
        ("ValueError(print)", "e.args == ('<built-in function print>',)"),
    ],
)
def test_exceptions_arrive_with_their_arguments(raised, expected):
    text = (
        "class Own(ValueError):\n"
        "    def __init__(self, code):\n        super().__init__(code)\n        self.code = code\n"
        "    def __str__(self): return f'code {self.code}'\n"
        f"def f(): raise {raised}\ndef g(e=None): return e or {raised}\n"
    )
    test = f"try:\n    f()\nexcept Exception as e:\n    assert {expected}\nelse:\n    assert False"
    assert reward(text, test=test) == 1.0
    assert reward(text.replace(raised, "ValueError('other')"), test=test) == 0.0
    assert reward(text, test=f"e = g()\nassert {expected}\ne = g(e)\nassert {expected}") == 1.0


@pytest.mark.parametrize(
    "result",
    [
        "ValueError('no')",
        "KeyboardInterrupt()",
        "type('Own', (Exception,), {'__init__': lambda self, a, b: None})(1, 2)",
        "ExceptionGroup('all', [ValueError(1)])",
        "[OSError(2, 'no')]",
        "object()",
        "open('/dev/null')",
        "(object() for _ in range(2))",
        "[lambda: 1].__iter__()",
        "itertools.count()",
        "{object(): object}",
        "asyncio.sleep(0)",
        "sys.exit",
        "...",
        "memoryview(b'a')",
    ],
)
def test_what_a_result_makes_of_later_arguments_is_its_own_doing(result):
    """Such completions are wrong, not errors, which would keep them out of training."""
    text = f"import asyncio\ndef f(x): return {result}\n"
    for test in ("f(f(2)) == 4", "f([f(2)]) == 4", "f(map(str, [1])) and f(list(f(2))) == 4", "f(iter([f(2)])) == 4"):
        assert reward(text, test_list=[f"assert {test}"]) == 0.0, test
    assert reward(text, test_list=["assert f(reversed(list(zip(f(2))))) == 4"]) == 0.0
    approximate = "class About:\n    def __eq__(self, other): return other - 4 < 0.1\nassert f(2) == About()"
    assert reward(text, test=approximate) == 0.0
    assert reward("def f(x): return 4", test=approximate) == 1.0
