"""Tests of rows that test a class, or a function that a function returned: objects stay with the candidate."""

import pytest
from code_helpers import reward

from pacedrl.errors import JudgeError

CACHE = """
class LRUCache:
    def __init__(self, capacity: int):
        self.capacity = capacity
        self.items = OrderedDict()

    def get(self, key: int) -> int:
        if key not in self.items:
            return -1
        self.items.move_to_end(key)
        return self.items[key]

    def put(self, key: int, value: int) -> None:
        self.items[key] = value
        self.items.move_to_end(key)
        if len(self.items) > self.capacity:
            self.items.popitem(last=False)
"""
WRONG = CACHE.replace("last=False", "last=True")
NAMES = ["LRUCache", "put", "put", "get", "put", "get"]
ARGUMENTS = [[2], [1, 1], [2, 2], [1], [3, 3], [2]]
RESULTS = [None, None, None, 1, None, -1]
AS_TEXT = (
    '["LRUCache", "put", "put", "get", "put", "get"]\n[[2], [1, 1], [2, 2], [1], [3, 3], [2]]',
    "[null, null, null, 1, null, -1]",
)


@pytest.mark.parametrize(
    "row",
    [
        {"answer": {"fn_name": "LRUCache", "inputs": [[NAMES, ARGUMENTS]], "outputs": [RESULTS]}},
        {"answer": {"inputs": [[NAMES, ARGUMENTS]], "outputs": [RESULTS]}},
        {"answer": {"inputs": [[[NAMES, ARGUMENTS]]], "outputs": [[RESULTS]]}},
        {"answer": {"inputs": [AS_TEXT[0]], "outputs": [AS_TEXT[1]]}},
        {"tests": [{"input": AS_TEXT[0], "output": AS_TEXT[1]}]},
        {
            "tests": [{"input": AS_TEXT[0], "output": AS_TEXT[1], "testtype": "functional"}],
            "metadata": '{"func_name": "LRUCache"}',
        },
    ],
)
def test_operations(row):
    assert reward(CACHE, **row) == 1.0
    assert reward(WRONG, **row) == 0.0
    assert reward(CACHE.replace("return -1", "return None"), **row) == 0.0
    assert reward("def get(key): return -1", **row) == 0.0


def test_a_method_that_is_never_expected_to_return_anything_may():
    row = {"inputs": [[NAMES, ARGUMENTS]], "outputs": [RESULTS]}
    assert reward(CACHE + "        return value\n", row) == 1.0


def test_results_of_operations_are_those_of_functions():
    names, arguments = ["Box", "items", "ratio", "pair", "big"], [[], [], [], [], []]
    row = {"inputs": [[names, arguments]], "outputs": [[None, [0, 1], 0.3, [1, 2], 10**18 + 1]]}
    text = (
        "class Box:\n"
        "    def items(self):\n        yield from range(2)\n"
        "    def ratio(self): return 0.1 + 0.2\n"
        "    def pair(self): return 1, 2\n"
        "    def big(self): return 10 ** 18 + 1\n"
    )
    assert reward(text, row) == 1.0
    assert reward(text.replace("18 + 1", "18"), row) == 0.0
    assert reward(text.replace("yield from range(2)", "yield from itertools.count()"), row) == 0.0
    assert reward(text.replace("return 1, 2", "return self"), row) == 0.0


@pytest.mark.parametrize("results", [RESULTS[1:], [*RESULTS, 1], None, "[1]", [None]])
def test_operations_without_as_many_results_are_an_error(results):
    with pytest.raises(JudgeError, match="6 operations of LRUCache, but has no list of as many results"):
        reward(CACHE, {"fn_name": "LRUCache", "inputs": [[NAMES, ARGUMENTS]], "outputs": [results]})


def test_a_program_may_read_the_same_text():
    row = {"tests": [{"input": AS_TEXT[0], "output": "6", "testtype": "stdin"}]}
    assert reward("print(len(json.loads(input())))", **row) == 1.0
    assert reward("print(input())", {"inputs": ['["a", "b"]\n[[], []]'], "outputs": ['["a", "b"]']}) == 1.0
    function = {"fn_name": "count", "inputs": [[["a", "b"], [[1], [2]]]], "outputs": [4]}
    assert reward("def count(names, rows): return len(names) + len(rows)", function) == 1.0


STACK = """
class Empty(IndexError):
    pass

class Stack:
    kind = 'LIFO'

    def __init__(self, items=()):
        self.items = list(items)
        self.name = None

    @classmethod
    def of(cls, *items):
        return cls(items)

    @property
    def top(self):
        return self.items[-1]

    def push(self, item):
        self.items.append(item)
        return self

    def pop(self):
        if not self.items:
            raise Empty('nothing to pop')
        return self.items.pop()

    def get(self, place, default=None):
        return self.items[place] if place < len(self.items) else default

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __contains__(self, item):
        return item in self.items

    def __getitem__(self, place):
        return self.items[place]

    def __setitem__(self, place, item):
        self.items[place] = item

    def __eq__(self, other):
        return isinstance(other, Stack) and self.items == other.items

    def __lt__(self, other):
        return len(self) < len(other)

    def __add__(self, other):
        return Stack(self.items + (other.items if isinstance(other, Stack) else [other]))

    __radd__ = __add__

    def __str__(self):
        return f"Stack{self.items}"

    def __call__(self, factor):
        return [factor * item for item in self.items]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.items.clear()
"""


@pytest.mark.parametrize(
    "test",
    [
        "s = Stack([1])\ns.push(2)\nassert s.pop() == 2 and s.items == [1]",
        "s = Stack()\nassert len(s) == 0 and not s\nassert s.push(1).push(2) == Stack([1, 2])",
        "assert list(Stack([1, 2])) == [1, 2] and [x + 1 for x in Stack([1])] == [2] and sum(Stack([1, 2])) == 3",
        "assert 2 in Stack([1, 2]) and 3 not in Stack([1, 2])",
        "s = Stack([1])\ns[0] = 5\nassert s[0] == 5 and s[-1] == s.top == 5",
        "s = Stack()\ns.name = 'mine'\nassert s.name == 'mine' and Stack.kind == 'LIFO' and hasattr(s, 'no') is False",
        "assert Stack.of(1, 2) == Stack([1, 2]) != Stack([2])",
        "assert Stack([1]) < Stack([1, 2]) and not Stack([1]) < Stack()",
        "assert (Stack([1]) + Stack([2])).items == (Stack([1]) + 2).items == [1, 2] == (2 + Stack([1])).items",
        "assert str(Stack([1])) == f'{Stack([1])}' == 'Stack[1]'",
        "assert isinstance(Stack([1]), Stack) and not isinstance([], Stack) and issubclass(Stack, Stack)",
        "assert Stack([1])(3) == [3] and Stack([1]).get(0) == 1 and Stack().get(0, default=7) == 7",
        "with Stack([1]) as s:\n    assert s.top == 1\nassert s.items == []",
        "try:\n    Stack().pop()\nexcept IndexError as error:\n    assert 'nothing' in str(error)\nelse:\n    1 / 0",
        "try:\n    Stack().pop()\nexcept Empty as error:\n    assert 'nothing' in str(error)\nelse:\n    assert False",
        "one, two = Stack([1]), Stack([2])\none.push(two)\nassert one.pop() == two and one.items == [1]",
        "def verify(kind):\n    assert kind([1]).pop() == 1\nverify(Stack)",
    ],
)
def test_assertions_on_a_class(test):
    assert reward(STACK, test=test, content="Write a class Stack.") == 1.0
    assert reward("class Stack: pass", test=test, content="Write a class Stack.") == 0.0


def test_several_classes_and_inheritance():
    text = (
        "class Shape:\n    def area(self): raise NotImplementedError\n"
        "class Square(Shape):\n    def __init__(self, side): self.side = side\n"
        "    def area(self): return self.side ** 2\n"
        "def total(shapes): return sum(shape.area() for shape in shapes)\n"
    )
    tests = [
        "assert Square(3).area() == 9",
        "assert isinstance(Square(1), Shape) and issubclass(Square, Shape)",
        "assert total([Square(1), Square(2)]) == 5",
        "try:\n    Shape().area()\n    assert False\nexcept NotImplementedError:\n    pass",
    ]
    assert reward(text, test_list=tests) == 1.0
    assert reward(text.replace("** 2", "* 4"), test_list=tests) == 0.0


@pytest.mark.parametrize("entry_point", ["Solution().twice", "Solution"])
def test_leetcode_s_class_in_assertions(entry_point):
    argument = "candidate" if "." in entry_point else "candidate().twice"
    row = {
        "content": "class Solution:\n    def twice(self, nums: List[int]) -> List[int]:\n",
        "test": f"def check(candidate):\n    assert {argument}(nums=[1, 2]) == [2, 4]\n",
        "entry_point": entry_point,
    }
    text = "class Solution:\n    def twice(self, nums: List[int]) -> List[int]:\n        return [2 * n for n in nums]\n"
    assert reward(text, **row) == 1.0
    assert reward(text.replace("2 * n", "n"), **row) == 0.0


def test_returned_functions():
    text = "def adder(n):\n    def add(m):\n        return n + m\n    return add\n"
    tests = ["assert adder(2)(3) == 5", "add = adder(1)\nassert [add(n) for n in range(3)] == [1, 2, 3]"]
    assert reward(text, test_list=tests) == 1.0
    assert reward(text.replace("n + m", "n - m"), test_list=tests) == 0.0
    assert reward("def adder(n):\n    return n", test_list=tests) == 0.0
    assert reward("from functools import partial\nadder = lambda n: partial(add, n)", test_list=tests) == 1.0
    counter = "def counter():\n    n = 0\n    def count():\n        nonlocal n\n        n += 1\n        return n\n"
    counter += "    return count\n"
    test = "first, second = counter(), counter()\nassert (first(), first(), second(), first()) == (1, 2, 1, 3)"
    assert reward(counter, test=test) == 1.0
    assert reward(counter.replace("n += 1", "n += 2"), test=test) == 0.0
    compose = "def compose(f, g):\n    return lambda x: f(g(x))\ndef double(x): return 2 * x\n"
    pairs = "def pair():\n    return [lambda x: x, lambda x: 2 * x]"
    assert reward(pairs, test_list=["assert [f(3) for f in pair()] == [3, 6]"]) == 1.0
    with pytest.raises(JudgeError, match="pass the code a value of type function"):
        reward(compose, test_list=["assert compose(lambda x: x, lambda x: x)(1) == 1"])


def test_keywords_may_have_any_name():
    keywords = "self=1, name=2, operation=3, arguments=4, keywords=5, obj=6"
    text = "def total(**values):\n    return sum(values.values())\nadder = lambda: total\n"
    assert reward(text, test_list=[f"assert total({keywords}) == 21"]) == 1.0
    assert reward(text, test_list=[f"assert adder()({keywords}) == 21"]) == 1.0


def test_coroutines_and_exceptions():
    text = "import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"
    test = "async def main():\n    assert await double(2) == 4\nasyncio.run(main())\nassert asyncio.run(double(3)) == 6"
    assert reward(text, test=f"import asyncio\n{test}") == 1.0
    assert reward(text.replace("2 * x", "x"), test=f"import asyncio\n{test}") == 0.0
    tests = ["assert isinstance(f(-1), ValueError) and str(f(-1)) == 'no' and f(1) == 1"]
    assert reward("def f(x): return x if x > 0 else ValueError('no')", test_list=tests) == 1.0
    assert reward("def f(x): return x if x > 0 else KeyError('no')", test_list=tests) == 0.0


def test_objects_that_a_function_returns_have_their_attributes():
    text = (
        "class Node:\n    def __init__(self, val, next=None): self.val, self.next = val, next\n"
        "def build(items):\n    return Node(items[0], build(items[1:])) if items else None\n"
    )
    tests = ["node = build([1, 2])\nassert node.val == 1 and node.next.val == 2 and node.next.next is None"]
    assert reward(text, test_list=tests) == 1.0
    assert reward(text.replace("items[1:]", "items[2:]"), test_list=tests) == 0.0
    record = "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n    y: int\n"
    record += "def mirror(x, y): return Point(y, x)\n"
    assert reward(record, test_list=["assert mirror(1, 2) == Point(2, 1)", "assert mirror(1, 2).x == 2"]) == 1.0
    assert reward(record, test_list=["assert mirror(1, 2) == Point(1, 2)"]) == 0.0


def test_a_class_that_only_the_code_could_extend_is_an_error():
    with pytest.raises(JudgeError, match="they extend Stack, a class of the code's own"):
        reward(STACK, test="class Mine(Stack):\n    pass\nassert Mine().items == []")


def test_objects_that_a_function_returns_have_items():
    text = (
        "class Countdown:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def __iter__(self): return self\n"
        "    def __next__(self):\n"
        "        self.n -= 1\n        if self.n < 0: raise StopIteration\n        return self.n\n"
        "def countdown(n): return Countdown(n)\n"
    )
    tests = ["assert list(countdown(3)) == [2, 1, 0]", "assert sum(item for item in countdown(4)) == 6"]
    assert reward(text, test_list=tests) == 1.0
    assert reward(text.replace("self.n < 0", "self.n <= 0"), test_list=tests) == 0.0
    assert reward(text.replace("def __iter__", "def __items__"), test_list=tests) == 0.0
    changing = "class Odd:\n    n = 0\n    def __iter__(self):\n        Odd.n += 1\n        return iter([Odd.n])\n"
    changing += "def f(): return Odd()\n"
    assert reward(changing, test="r = f()\nassert list(r) == [1]\nassert list(r) == [2]") == 0.0
    assert reward(changing, test="r = f()\nassert list(r) == [1]\nassert list(r) == [1]") == 1.0


def test_a_function_s_result_is_not_looked_at_twice():
    """Otherwise an object that gives another answer each time could pass tests that no list passes."""
    text = (
        "class Sorted:\n"
        "    def __init__(self, items): self.items = items\n"
        "    def __iter__(self): return iter(self.items)\n"
        "    def __len__(self): return len(self.items)\n"
        "    def __getitem__(self, place): return place\n"
        "    def items(self): return []\n"
        "def arrange(items): return Sorted(items)\n"
    )
    test = "r = arrange([3, 1])\nassert sorted(r) == [1, 3] and all(r[n] <= r[n + 1] for n in range(len(r) - 1))"
    assert reward(text, test=test) == 0.0
    assert reward("def arrange(items): return sorted(items)", test=test) == 1.0
