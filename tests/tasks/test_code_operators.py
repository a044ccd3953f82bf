"""Operators on objects of the candidate's, and that objects which equal everything equal nothing plain."""

import pytest
from code_helpers import reward

from pacedrl.tasks.answers import JudgeError

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
        "assert len(solve(3)) == 1",
        "assert all(item > 0 for item in solve(3)) and solve(3)",
        "assert solve(3)[0] == 5",
        "r = solve(3)\nassert r.count(1) == 1",
        "assert max(solve(3), 4) == 4",
    ],
)
def test_an_object_that_equals_everything_equals_nothing_plain(test):
    assert reward(EQUAL, test=test) == 0.0
