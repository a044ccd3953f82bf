"""Tests of operators on the candidate's objects; an object that equals everything must not equal plain data."""

import pytest
from code_helpers import reward

from pacedrl.errors import JudgeError

VECTOR = """
class Vector:
    def __init__(self, *parts):
        self.parts = list(parts)

    def __eq__(self, other):
        return self.parts == other.parts

    def __hash__(self):
        return hash(tuple(self.parts))

    def __mul__(self, factor):
        return Vector(*[factor * part for part in self.parts])

    __rmul__ = __mul__

    def __iadd__(self, other):
        self.parts = [sum(pair) for pair in zip(self.parts, other.parts)]
        return self

    def __neg__(self):
        return -1 * self

    def __abs__(self):
        return sum(part ** 2 for part in self.parts) ** 0.5

    def __round__(self, digits=0):
        return Vector(*[round(part, digits) for part in self.parts])

    def __bool__(self):
        return any(self.parts)

    def __repr__(self):
        return f"Vector{tuple(self.parts)}"

    def __format__(self, spec):
        return "<" + " ".join(format(part, spec) for part in self.parts) + ">"

    def __int__(self):
        return int(abs(self))

    def __float__(self):
        return abs(self)

    def __reversed__(self):
        return reversed(self.parts)

    def __lshift__(self, places):
        return Vector(*self.parts[places:], *self.parts[:places])

    def __delattr__(self, name):
        super().__delattr__(name)
"""


@pytest.mark.parametrize(
    "test",
    [
        "v = Vector(3, 4)\nassert 2 * v == v * 2 == Vector(6, 8) and -v == Vector(-3, -4) and abs(v) == 5.0",
        "v = w = Vector(1, 2)\nv += Vector(1, 1)\nassert v is w and w == Vector(2, 3)",
        "assert len({Vector(1), Vector(1), Vector(2)}) == 2 and Vector(1) in [Vector(2), Vector(1)]",
        "assert round(Vector(1.26), 1) == Vector(1.3) and not Vector(0) and int(Vector(3, 4)) == float(Vector(3, 4))",
        "assert repr(Vector(1, 2)) == 'Vector(1, 2)' and f'{Vector(1.25):.1f}' == '<1.2>'",
        "assert list(reversed(Vector(1, 2))) == [2, 1] and Vector(1, 2) << 1 == Vector(2, 1)",
        "v = Vector(1)\ndel v.parts\nassert not hasattr(v, 'parts')",
        "import copy\nv = Vector(1)\nw = copy.deepcopy(v)\nw.parts = [5]\nassert v == Vector(1) != w == copy.copy(w)",
        "assert type(Vector(1)) is Vector and type(Vector(1)).__name__ == 'Vector' and type([Vector(1)]) is list",
        "assert vars(Vector(1)) == {'parts': [1]} and 'parts' in dir(Vector(1))",
    ],
)
def test_operators_and_what_else_objects_have(test):
    assert reward(VECTOR, test=test) == 1.0
    assert reward(VECTOR.replace("class Vector", "class Vektor"), test=test) == 0.0


@pytest.mark.parametrize("name", ["__class__", "__dict__", "__doc__", "__module__"])
def test_an_attribute_that_every_object_has_is_an_error(name):
    with pytest.raises(JudgeError, match=f"they read {name}, which objects of the code's do not have outside of it"):
        reward(VECTOR, test=f"assert Vector(1).{name}")


def test_class_tests_that_do_not_work_are_an_error():
    for test in ("kinds = [Vector]\nassert [].x", "Vector"):
        with pytest.raises(JudgeError, match=r"do not work: AttributeError|never call the function"):
            reward(VECTOR, test=test)


EQUAL = """
class Equal:
    def __init__(self, *arguments): pass
    def __getattr__(self, name): return Equal()
    def __call__(self, *arguments): return Equal()
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __abs__ = __round__ = __getitem__ = lambda self, *other: Equal()
    __hash__ = lambda self: 1
    __bool__ = lambda self: True
    __iter__ = lambda self: iter([Equal()])
    __len__ = lambda self: 1
Account = Stack = solve = Equal
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert Account().balance() == 5",
        "assert 5 == Account().balance()",
        "assert not Account().balance() != 5",
        "assert abs(Account().balance() - 100.5) < 1e-9",
        "assert 99 < Account().balance()",
        "assert Account().balance() >= 5",
        "assert round(Account().balance(), 2) == 5.5",
        "assert Account().items in ([1], [2])",
        "assert Account().name in {'a', 1}",
        "assert {Account().name: 1}.get('a') == 1",
        "assert [Account().x, 1] == [5, 1]",
        "assert list(Account()) == [1]",
        "assert str(Account()) == 'Account'",
        "assert Account()[0] == 5",
        "assert (Account() + 5) == 5",
        "assert sorted([Account(), 3]) == [3, 5]",
        "assert Account().rate() is True",
        "assert solve(3) == 7",
        "assert solve(3) in [7]",
        "assert len(solve(3)) == 2",
        "assert all(item > 0 for item in solve(3)) and solve(3)",
        "assert solve(3)[0] == 5",
        "r = solve(3)\nassert r.count(1) == 1",
        "assert max(solve(3), 4) == 4",
    ],
)
def test_an_object_that_equals_everything_equals_nothing_plain(test):
    assert reward(EQUAL, test=test) == 0.0


# Every operator and method gives what a test of plain data may hope for.
OBLIGING = """
class Obliging:
    def __init__(self, *arguments): pass
    def __sub__(self, other): return 0.0
    def __add__(self, other): return 9
    def __mod__(self, other): return 0
    def __pow__(self, other): return 4.0
    def __divmod__(self, other): return 3, 0
    def __and__(self, other): return 1
    def __neg__(self): return -5
    def __abs__(self): return 0.0
    def __round__(self, *digits): return 7.25
    def __index__(self): return 0
    def __contains__(self, item): return True
    def __getitem__(self, place): return Obliging()
    def __len__(self): return 2
    def __lt__(self, other): return True
    def __call__(self, *arguments, **keywords): return self
    def startswith(self, text): return True
    def count(self, item): return 1
    def index(self, item): return 0
    def get(self, *arguments): return 7
    __rsub__, __radd__, __rmod__, __le__, __gt__, __ge__ = __sub__, __add__, __mod__, __lt__, __lt__, __lt__
    value = work = __call__
    attribute = property(__call__)
Solution = Account = Obliging
def work(*arguments): return Obliging()
def pair(*arguments): return [Obliging(), Obliging()]
"""
WANTED = [
    "abs(r - 1024.0) < 1e-5",
    "1024.0 - r == 0",
    "r % 7 == 0",
    "'a' in r",
    "r.startswith('hello')",
    "r.count(3) == 1",
    "r[0] + r[1] == 9",
    "sum([r]) == 9",
    "r + 5 == r",
    "r - r == 0",
    "round(r, 2) == 7.25",
    "-r == -5",
    "r & 1",
    "[5][r] == 5",
    "3 < r",
]


@pytest.mark.parametrize("value", ["Solution().work(2)", "Account().attribute", "Account()(3)", "work(2)", "pair()[0]"])
def test_operators_on_a_result_that_is_no_value_make_the_verdict_0(value):
    for wanted in WANTED:
        assert reward(OBLIGING, test=f"r = {value}\nassert {wanted}") == 0.0, wanted


def test_an_operator_on_a_result_makes_the_verdict_0_for_good():
    test = "try:\n    Solution().work(2) + 1\nexcept BaseException:\n    pass\nassert Solution().get('a') == 7"
    assert reward(OBLIGING, test=test) == 0.0
    assert reward(OBLIGING, test=test.replace(".work(2) + 1", ".work(2)")) == 1.0


def test_a_function_with_a_capital_letter_is_no_class():
    """Operators on its results do not prove that the tests test a class; attributes and the task's text do."""
    test = "assert abs(Account(2) - 1024.0) < 1e-5"
    assert reward(OBLIGING, test=test) == 0.0
    assert reward("def Account(n): return 1024.0", test=test) == 1.0
    assert reward(OBLIGING, test=test, content="Write a class Account whose objects can be subtracted.") == 1.0
    assert reward(OBLIGING, test=f"{test}\nassert Account(2).work(1) is not None") == 1.0
    assert reward(OBLIGING, test="assert Account(2).startswith('hello')") == 0.0
    assert reward("def Account(n): return 'hello!'", test="assert Account(2).startswith('hello')") == 1.0


FRACTION = """
class Ratio:
    def __init__(self, over, under):
        self.over, self.under = over, under
    def __mul__(self, other):
        other = other if isinstance(other, Ratio) else Ratio(other, 1)
        return Ratio(self.over * other.over, self.under * other.under)
    __rmul__ = __mul__
    def __eq__(self, other): return self.over * other.under == self.under * other.over
    def inverse(self): return Ratio(self.under, self.over)
    def append(self, digit):
        self.over = 10 * self.over + digit
        return self
    def __iter__(self): return iter((self.over, self.under))
    def itself(self): return self
    @property
    def title(self): return f"{self.over}/{self.under}"
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert 3 * (Ratio(1, 2) * 2) * Ratio(1, 3) == Ratio(1, 1)",
        "assert Ratio(1, 2).inverse() * Ratio(1, 2) == Ratio(1, 1)",
        "assert Ratio(1, 2).inverse() * Ratio(2, 1).inverse() == Ratio(1, 1)",
        "assert Ratio(1, 2).append(3).append(4).over == 134",
        "assert Ratio(1, 2).inverse().title == '2/1'",
        "import copy\nassert copy.copy(Ratio(1, 2)) * 2 == 4 * copy.deepcopy(Ratio(1, 4))",
        "r = Ratio(1, 2)\nassert r.itself() is r and r.inverse() is not r and type(r.itself()) is Ratio",
        "over, under = Ratio(1, 2).inverse()\nassert (over, under) == (2, 1) and len(Ratio(1, 2).inverse()) == 2",
        "assert Ratio(1, 2).inverse()[0] == 2 and 1 in Ratio(1, 2).inverse() and Ratio(0, 0).inverse()",
        "r = Ratio(1, 2).itself()\nassert list(r) == [1, 2]\nr.over = 5\nassert list(r) == [5, 2] == list(r)[:]",
    ],
)
def test_what_objects_that_a_method_returned_may_do(test):
    assert reward(FRACTION, test=test) == 1.0
    assert reward(FRACTION.replace("class Ratio", "class Quotient"), test=test) == 0.0


def test_a_result_has_the_same_items_however_it_is_looked_at():
    text = (
        "class Sorted:\n    def __init__(self, items): self.items = items\n"
        "    def __iter__(self): return iter(sorted(self.items) if self.items.append(0) else [])\n"
        "    def __getitem__(self, place): return place\n"
        "    def __len__(self): return 3\n    def __bool__(self): return True\n"
        "class Solution:\n    def arrange(self, items): return Sorted(items)\n"
    )
    test = "r = Solution().arrange([3, 1, 2])\nassert {} and all(item > 0 for item in r)"
    for looked_at in ("r", "len(r) == 3", "[r[n] for n in range(3)] == [0, 1, 2]"):
        assert reward(text, test=test.format(looked_at)) == 0.0


@pytest.mark.parametrize(
    "member",
    [
        "__array_interface__ = {'shape': (2,), 'typestr': '<i8', 'data': (4096, False), 'version': 3}",
        "__array_struct__ = __array_priority__ = 1",
        "def __array__(self, *args, **kwargs): return 'no array'",
        "def __array_ufunc__(self, *args, **kwargs): return True",
        "def __array_function__(self, *args, **kwargs): return True",
        "def __float__(self): return 4.0",
        "all = sum = mean = lambda self, *args, **kwargs: 8",
        "__length_hint__ = __index__ = lambda self: 4",
    ],
)
def test_libraries_take_no_object_for_one_of_their_own(member):
    pytest.importorskip("numpy")
    text = (
        f"class Array:\n    {member}\nclass Solution:\n    def f(self, x): return Array()\ndef f(x): return Array()\n"
    )
    for call in ("f(2)", "Solution().f(2)", "Array()"):
        for test in (
            f"np.array_equal({call}, np.array([4, 4]))",
            f"np.allclose(np.asarray({call}), [4, 4])",
            f"np.all({call} == np.array([4, 4]))",
            f"np.asarray({call}).dtype == np.int64",
            f"np.sum({call}) == 8",
        ):
            assert reward(text, test=f"import numpy as np\nassert {test}") == 0.0, test


def test_one_object_is_itself_however_the_tests_got_it():
    text = (
        "class Only:\n    one = None\n"
        "    def __new__(cls):\n        cls.one = cls.one or object.__new__(cls)\n        return cls.one\n"
        "    @classmethod\n    def get(cls): return cls()\n"
    )
    test = "assert Only() is Only() and Only.get() is Only() and Only.get() is Only.get() and Only.get() is not Only"
    assert reward(text, test=test) == 1.0
    assert reward(text.replace("cls.one or", ""), test=test) == 0.0


def test_what_tests_may_read_of_names_with_underscores():
    text = (
        "import functools\ndef wrap(f=len):\n    @functools.wraps(f)\n    def inner(x): return f(x)\n    return inner\n"
    )
    text += "class Box:\n    __slots__ = ('value',)\n"
    assert reward(text, test="assert wrap().__name__ == 'len' and wrap().__wrapped__([1]) == 1") == 1.0
    assert reward(text, test="assert Box.__name__ == 'Box' and Box.__slots__ == ('value',)") == 1.0
    assert reward(text, test="assert hasattr(wrap(), '__code__')") == 0.0
