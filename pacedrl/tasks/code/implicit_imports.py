"""Names that programs may use without importing them, as in LiveCodeBench's harness.

Models write ``List[int]`` and ``deque()`` without the imports, because many data sets' prompts imply them. The names
are those that LiveCodeBench imports, except names that are more likely a mistake than meant. They come after the
built-in names: whatever a program defines or imports itself wins, and no built-in name, such as ``pow``, is replaced.
If a module and something in it have the same name, such as ``bisect``, the name means the module.
"""

import builtins
import importlib
from collections.abc import Collection
from types import CodeType
from typing import Any

MEMBERS = {
    "bisect": "bisect_left bisect_right insort insort_left insort_right",
    "collections": "ChainMap Counter OrderedDict UserDict defaultdict deque namedtuple",
    "copy": "deepcopy",
    "datetime": "date timedelta timezone",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce singledispatch total_ordering wraps",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "io": "BytesIO StringIO",
    "itertools": (
        "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile filterfalse "
        "groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest"
    ),
    "json": "dumps loads",
    "math": (
        "acos acosh asin asinh atan atan2 atanh ceil comb copysign cos cosh degrees dist e erf erfc exp expm1 "
        "fabs factorial floor fmod frexp fsum gamma gcd hypot inf isclose isfinite isinf isnan isqrt lcm ldexp "
        "lgamma log log10 log1p log2 modf nan perm pi prod radians sin sinh sqrt tan tanh tau trunc"
    ),
    "operator": (
        "add and_ attrgetter concat contains eq floordiv ge getitem gt inv invert itemgetter le lshift lt "
        "methodcaller mod mul ne neg not_ or_ rshift setitem sub truediv truth xor"
    ),
    "random": "choice choices randint randrange sample seed shuffle uniform",
    "re": "findall finditer fullmatch match search split",
    "statistics": "fmean geometric_mean harmonic_mean mean median mode multimode pstdev pvariance stdev variance",
    "string": (
        "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits octdigits printable punctuation whitespace"
    ),
    "sys": "maxsize setrecursionlimit stderr stdin stdout",
    "typing": (
        "Any Callable ClassVar Collection Container DefaultDict Deque Dict Final FrozenSet Generator Generic "
        "Hashable Iterable Iterator List Literal Mapping MutableMapping MutableSequence MutableSet NamedTuple "
        "NoReturn Optional Protocol Sequence Set Sized Tuple Type TypeVar TypedDict Union cast overload"
    ),
}
SOURCES = {name: module for module, names in MEMBERS.items() for name in names.split()} | dict.fromkeys(MEMBERS, "")
"""Maps each name to the module that it is imported from, or to "" if it is a module itself."""

SYNTAX_TREE = 0x400  # ast.PyCF_ONLY_AST: importing ast takes longer than this whole file


def compiled(source: str, where: str) -> CodeType:
    """Compile a program and provide the names that it reads. Exceptions of the compiler pass through."""
    tree = compile(source, where, "exec", SYNTAX_TREE, dont_inherit=True)
    provide(_names_read(tree))
    code: CodeType = compile(tree, where, "exec", dont_inherit=True)
    return code


def provide(names: Collection[str]) -> None:
    """Make those of ``names`` that are in ``SOURCES`` built-in names of this process, unless they are already."""
    for name in SOURCES.keys() & set(names):
        if not hasattr(builtins, name):
            module = SOURCES[name]
            value = getattr(importlib.import_module(module), name) if module else importlib.import_module(name)
            setattr(builtins, name, value)


def _names_read(tree: Any) -> set[str]:
    """Return all names in a syntax tree, wherever they stand, except names of attributes."""
    names = set()
    rest = [tree]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rest += node
        elif type(node).__name__ == "Name":
            names.add(node.id)
        else:
            rest += [getattr(node, field, None) for field in getattr(node, "_fields", ())]
    return names
