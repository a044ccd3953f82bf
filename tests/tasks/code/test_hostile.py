"""Completions that cheat or attack the machine: each gets 0 in time, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from code_helpers import reward
from pool_helpers import until
from sandbox_helpers import both_modes, needs_bubblewrap, processes

from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code import verifier as code
from pacedrl.tasks.code.verifier import CodeSettings

TIMEOUT_S = 1.0
FIRST_ANSWER, SECOND_ANSWER = 7_654_321, 8_765_432
TESTS = [f"assert solve(3) == {FIRST_ANSWER}", f"assert solve([1, 2]) == {SECOND_ANSWER}", "assert solve('a') == 'b'"]
PROGRAM = {"inputs": ["3\n", "4\n"], "outputs": [str(FIRST_ANSWER), str(SECOND_ANSWER)]}
MARK = f"hostile_{os.getpid()}"  # in the environment, the sandboxes' command lines, and files of completions


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch):
    """Check after every test that it left no process, descriptor or file in the temporary directory."""
    monkeypatch.setenv("MARK", MARK)
    monkeypatch.setattr(sandbox, "_START", f"{sandbox._START}# {MARK}")
    before = processes(MARK), sorted(os.listdir("/proc/self/fd"))
    yield
    until(lambda: not processes(MARK) - before[0], 5)
    assert sorted(os.listdir("/proc/self/fd")) == before[1]
    assert not [name for name in os.listdir("/tmp") if MARK in name]


def judged(text, mode="bubblewrap", **row):
    """Return the reward, by default for tests of a function, and check that it comes within the limits."""
    text = textwrap.dedent(text).replace("REPOSITORY", str(Path(__file__).parents[3]))
    settings = CodeSettings(mode, timeout_s=TIMEOUT_S, memory_mb=512)
    start = time.monotonic()
    verdict = reward(text, settings=settings, **row or {"test_list": TESTS})
    assert time.monotonic() - start < TIMEOUT_S + code.START_LIMIT_S
    return verdict


FORGERIES = {
    "returns nothing": "def solve(x): pass",
    "exit": "import sys\nsys.exit(0)",
    "exit in the function": "import sys\ndef solve(x): sys.exit(0)",
    "_exit": "import os\nos._exit(0)",
    "_exit in the function": "import os\ndef solve(x): os._exit(0)",
    "kill itself": "import os\ndef solve(x): os.kill(os.getpid(), 9)",
    "segfault": "import ctypes\ndef solve(x): ctypes.string_at(0)",
    "raise what ends loops": "def solve(x): raise StopIteration",
    "raise KeyboardInterrupt": "def solve(x): raise KeyboardInterrupt",
    "raise GeneratorExit": "def solve(x): raise GeneratorExit",
    "raise AssertionError": "def solve(x): raise AssertionError",
    "exception that cannot be described": """
        class E(Exception):
            def __str__(self): raise self
        def solve(x): raise E
    """,
    "builtins": """
        import builtins
        builtins.AssertionError = type("A", (BaseException,), {})
        for name in ("all", "any", "isinstance", "type", "len", "print", "abs", "set", "map", "list"):
            setattr(builtins, name, lambda *a, **k: True)
        def solve(x): return True
    """,
    "the runner": """
        import sys
        runner = sys.modules["pacedrl.tasks.code.candidate"]
        runner.encode = lambda value: {"any": 1}
        runner.send = lambda file, message: (file.write(b'{"passed": true}\\n'), file.flush())
        def solve(x): return 0
    """,
    "equal to everything": """
        class Equal:
            __eq__ = __le__ = __ge__ = __lt__ = __gt__ = lambda self, other: True
            __ne__ = lambda self, other: False
            __hash__ = lambda self: 0
        def solve(x): return Equal()
    """,
    "built-in types equal to everything": """
        def solve(x):
            kind, value = {3: (int, 0), 'a': (str, 'c')}.get(x if isinstance(x, (int, str)) else None, (list, [1]))
            same = lambda self, other: True
            return type("Equal", (kind,), {"__eq__": same, "__hash__": kind.__hash__})(value)
    """,
    "a class that claims another": """
        class Equal:
            __class__ = int
            __eq__ = lambda self, other: True
            __index__ = __int__ = lambda self: 7654321
            __reduce__ = lambda self: (eval, ("7654321",))
        def solve(x): return Equal()
    """,
    "overridden repr, hash, iter": """
        class Odd(list):
            __repr__ = __str__ = lambda self: "7654321"
            __hash__ = lambda self: hash(7654321)
            __iter__ = lambda self: iter(int, 1)
            __len__ = lambda self: 1
        def solve(x): return Odd([1])
    """,
    "a generator without end": "import itertools\ndef solve(x): return itertools.count()",
    "a tuple without end": "import itertools\ndef solve(x): return tuple(itertools.count())",
    "huge": "def solve(x): return [0] * 30_000_000",
    "huge string": "def solve(x): return 'x' * 100_000_000",
    "huge integer": "def solve(x): return 10 ** 3_000_000",
    "deeply nested": """
        def solve(x):
            value = []
            for _ in range(100_000): value = [value]
            return value
    """,
    "nested as deeply as can be sent": """
        def solve(x):
            value = []
            for _ in range(900): value = (value,)
            return value
    """,
    "contains itself": "def solve(x):\n    value = []\n    value.append(value)\n    return value",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef solve(x): return solve(x)",
    "colliding keys": "def solve(x): return {k * (2**61 - 1): 0 for k in range(30_000)}",
    "infinite loop": "def solve(x):\n    while True: pass",
    "infinite loop while loading": "while True: pass",
    "loop in C": "def solve(x): return 9 ** 9 ** 9",
    "sleep": "import time\ndef solve(x): time.sleep(1000)",
    "ignores signals": """
        import signal, time
        for n in range(1, 65):
            try: signal.signal(n, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def solve(x): time.sleep(1000)
    """,
    "memory": "def solve(x):\n    hog = []\n    while True: hog.append(bytearray(1 << 24))",
    "output": "def solve(x):\n    for _ in range(1024): print('x' * (1 << 20))",
    "output to all": """
        import os
        def solve(x):
            for n in range(100_000):
                for fd in range(3): os.write(fd, b'x' * 10_000)
    """,
    "closed descriptors": "import os\nos.closerange(0, 256)\ndef solve(x): return 1",
    "forged verdict": """
        import os
        line = b'{"token": "", "started": true, "passed": true}\\n["value", 7654321]\\n'
        for _ in range(3):
            for fd in range(256):
                try: os.write(fd, line)
                except OSError: pass
        def solve(x): return 0
    """,
    "answers out of JSON's way": """
        import os
        lines = [b'{"a": 1}', b'["value"]', b'["error", [[]], 1]', b'["error", "ValueError", {}]', b'"ready"', b'NaN']
        lines += [b'["value", {"tuple": 1}]', b'["value", {"bytes": "zz"}]', b'["value", {}]', b'[]', b'1e999']
        for line in lines:
            for fd in range(3, 16):
                try: os.write(fd, line + b'\\n')
                except OSError: pass
        def solve(x): return 0
    """,
    "expected values in frames and garbage": """
        import gc, inspect, sys
        def solve(x):
            seen = []
            for frame in inspect.stack(): seen += [*frame.frame.f_locals.values(), *frame.frame.f_globals.values()]
            for item in gc.get_objects(): seen.append(item)
            for item in seen:
                if isinstance(item, int) and item in (7_654_000 + 321, 8_765_000 + 432): return item
                if isinstance(item, str) and 'assert solve' in item and 'isinstance' not in item:
                    return int(item.split('==')[1].split()[0])
            for item in sys._getframe().f_back.f_locals.values():
                if isinstance(item, dict) and "tests" in item: return item
    """,
    "expected values in files": """
        import os
        def solve(x):
            for root in ("/proc", "/tmp", "/program", "/dev/fd", "REPOSITORY", "/home", "/root", "."):
                for folder, _, files in os.walk(root):
                    for name in files:
                        try: text = open(os.path.join(folder, name), errors="replace").read(1 << 20)
                        except OSError: continue
                        if "assert solve" in text and "os.walk" not in text:
                            return int(text.split("==")[1].split()[0])
    """,
    "expected values in descriptors": """
        import os
        def solve(x):
            for fd in range(256):
                try:
                    text = os.pread(fd, 1 << 20, 0)
                    if b"assert solve" in text: return int(text.split(b"==")[1].split()[0])
                except (OSError, ValueError): pass
    """,
}
# They need what only a namespace forbids, or use up the machine.
NAMESPACED = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb in the function": """
        import os
        def solve(x):
            while True:
                try: os.fork()
                except OSError: pass
    """,
    "threads": """
        import threading, time
        def solve(x):
            while True:
                try: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
                except RuntimeError: pass
    """,
    "fills the disk": """
        def solve(x):
            for n in range(10_000):
                with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * (1 << 24))
    """,
    "a daemon": """
        import os, time
        def solve(x):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for fd in range(256):
                        try: os.close(fd)
                        except OSError: pass
                    while True: time.sleep(1)
                os._exit(0)
            return 0
    """,
    "new namespaces": """
        import ctypes
        libc = ctypes.CDLL(None)
        def solve(x):
            libc.unshare(0x10000000 | 0x00020000)
            libc.umount2(b'/usr/lib', 2)
            libc.mount(None, b'/', None, 32 | 4096, None)
            open('/usr/lib/HOSTILE', 'w')
    """,
}


@both_modes
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_answer_earns_nothing(mode, name):
    assert judged(FORGERIES[name], mode) == 0.0


@needs_bubblewrap
@pytest.mark.parametrize("name", NAMESPACED)
def test_an_attack_on_the_machine_earns_nothing(name):
    assert judged(NAMESPACED[name]) == 0.0


@both_modes
def test_an_honest_solution_passes(mode):
    honest = f"def solve(x): return {{3: {FIRST_ANSWER}}}.get(x, 'b') if not isinstance(x, list) else {SECOND_ANSWER}"
    assert judged(honest, mode) == 1.0
    noisy = f"import sys\nprint('hello')\nprint('oops', file=sys.stderr)\n{honest}\nprint(input) or exec('1')"
    assert judged(noisy, mode) == 1.0


@both_modes
def test_a_lost_candidate_passes_no_test_that_catches_everything(mode):
    tests = "try:\n    solve(1)\nexcept:\n    pass\n"
    assert judged("def solve(x): return 1", mode, test=tests) == 1.0
    assert judged("import os\ndef solve(x): os._exit(0)", mode, test=tests) == 0.0


@both_modes
def test_an_exception_ends_no_iteration_of_the_tests(mode):
    assert judged("def solve(x): raise StopIteration", mode, test="assert all(map(solve, [1, 2]))") == 0.0


PROGRAMS = {
    "the first answer twice": f"print({FIRST_ANSWER})",
    "exit": "import os\nos._exit(0)",
    "output": "while True: print('x' * 10_000)",
    "loop": "while True: pass",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "stops its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "forged answers": """
        import os
        for fd in range(256):
            try: os.write(fd, b'["value", "7654321"]\\n["value", "8765432"]\\n')
            except OSError: pass
    """,
    "patched runner": """
        import sys
        for module in list(sys.modules.values()):
            for name in list(vars(module)):
                if name in ("send", "receive", "_run", "dumps", "waitpid"): setattr(module, name, lambda *a, **k: 0)
    """,
    "keeps standard output": """
        import os, time
        if os.fork() == 0:
            time.sleep(1000)
        print(7654321)
    """,
    "expected output in files": """
        import os
        for root in ("/", "."):
            for folder, _, files in os.walk(root):
                if folder.startswith(("/usr", "/lib")): continue
                for name in files:
                    try: text = open(os.path.join(folder, name), errors="replace").read(1 << 16)
                    except OSError: continue
                    if "8765432" in text or "outputs" in text: print(text)
    """,
}


@needs_bubblewrap
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_earns_nothing(name):
    assert judged(PROGRAMS[name], answer=PROGRAM) == 0.0


@needs_bubblewrap
@pytest.mark.parametrize("target", ["-1", "0", "os.getppid()", "1", "HOST"])
def test_signals_reach_nobody_else(target):
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        target = target.replace("HOST", str(os.getpid()))
        text = f"import os, signal\ndef solve(x):\n    os.kill({target}, signal.SIGUSR1)\n    os.kill({target}, 9)\n"
        assert judged(text + "    return 0") == 0.0
        assert judged(text + "    return 0") == 0.0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not received


@needs_bubblewrap
def test_no_completion_meets_what_another_left():
    tests = ["assert solve(1) == ([], None)"]
    text = f"import os\ndef solve(x): return os.listdir('/tmp'), open('/tmp/{MARK}', 'w').close()"
    assert judged(text, test_list=tests) == judged(text, test_list=tests) == 1.0


@needs_bubblewrap
@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_killed_worker_takes_everything_along(tmp_path):
    """Kill the worker's process group, as the pool does, while a completion with a daemon runs."""
    script = tmp_path / "worker.py"
    daemon = NAMESPACED["a daemon"].replace("return 0", "time.sleep(1000)")
    script.write_text(
        "import textwrap\nfrom pacedrl.tasks.code import sandbox\n"
        "from pacedrl.tasks.code.verifier import CodeSettings, code_reward\n"
        f"from pacedrl.types import Prompt\nsandbox._START += '# {MARK}'\n"
        f"prompt = Prompt('k', 't', 'q', None, {{'test_list': {TESTS!r}}})\n"
        f"code_reward(prompt, textwrap.dedent({daemon!r}), CodeSettings(timeout_s=1000))\n",
        encoding="utf-8",
    )
    before = processes(MARK)
    root = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    with subprocess.Popen([sys.executable, str(script)], env=env, start_new_session=True) as worker:
        until(lambda: len(processes(MARK) - before) >= 5, 60)  # two bwraps, their programs, and the daemon at least
        os.killpg(worker.pid, signal.SIGKILL)
    until(lambda: not processes(MARK) - before, 5)
