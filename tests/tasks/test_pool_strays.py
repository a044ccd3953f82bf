"""Tests of what a verifier does apart from its verdict: processes, messages, exceptions and imports of its own."""

import os
import sys
import textwrap
import time

import pytest
from pool_helpers import OK, alive, pids, prompt, until

from pacedrl.tasks import pool as pool_module
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import Verdict

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone hands orphans to a guardian")

STRAYS = """
    import ctypes, json, os, pathlib, subprocess, sys, time

    WRONG = 0.25
    libc = ctypes.CDLL(None)

    def connection():
        for number in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                    return int(number)
            except OSError:
                pass

    def note_own_pid(path):
        part = pathlib.Path(path + ".part")
        part.write_text(str(os.getpid()))
        part.rename(path)

    def fork(completions):  # the child returns as well, with another reward
        if os.fork() == 0:
            return [WRONG]
        time.sleep(0.1)
        return [1.0]

    def c_fork(completions):  # Python's fork hooks do not run
        if libc.fork() == 0:
            return [WRONG]
        time.sleep(0.1)
        return [1.0]

    def fork_and_raise(completions):
        if os.fork() == 0:
            raise ValueError("in the child")
        time.sleep(0.1)
        return [1.0]

    def exit_code_of_fork(completions):
        pid = os.fork()
        if pid == 0:
            import colorsys
            sys.exit(int(completions[0]))
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) / 10]

    def write(completions):
        os.write(connection(), completions[0].encode("latin-1"))
        return [1.0]

    def verdict_of_another_job(completions):
        stray = {"job": 10_000, "event": "verdict", "reward": WRONG, "error": None, "retiring": False}
        os.write(connection(), json.dumps(stray).encode() + b"\\n")
        return [1.0]

    def daemon(completions):  # forked twice, in a session of its own
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                note_own_pid(completions[0])
                time.sleep(600)
            os._exit(0)
        while not os.path.exists(completions[0]):
            time.sleep(0.01)
        return [1.0]

    def daemon_then_hang(completions):
        daemon(completions)
        time.sleep(600)

    def daemon_then_exit(completions):
        daemon(completions)
        os._exit(7)

    def holder_then_exit(completions):  # the child keeps the socket
        if libc.fork() == 0:
            libc.setsid()
            note_own_pid(completions[0])
            time.sleep(600)
        while not os.path.exists(completions[0]):
            time.sleep(0.01)
        os._exit(7)

    def service(completions):  # started by the first job, used by the next
        global process
        if "process" not in globals():
            process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"asked\\n")
        process.stdin.flush()
        return [float(process.stdout.readline() == b"asked\\n")]

    class Silent(Exception):
        def __str__(self):
            raise SystemExit("even here")

    def raises(completions):
        exceptions = {"exit": SystemExit(4), "interrupt": KeyboardInterrupt(), "silent": Silent(),
                      "huge": ValueError("x" * 10_000_000)}
        raise exceptions[completions[0]]

    def imports_late(completions):
        import slow_module
        if completions[0] == "hang":
            time.sleep(600)
        return [1.0]

    def imports_what_is_large(completions):
        import large_module
        if completions[0] == "allocate":
            held = bytearray(96 * 2**20)
        return [1.0]

    def imports_endlessly(completions):
        import endless_module

    def imports_what_fails(completions):
        import failing_module
"""


@pytest.fixture(scope="module")
def strays(tmp_path_factory):
    """Return a function that makes a job for the function of a name."""
    folder = tmp_path_factory.mktemp("strays")
    (folder / "strays.py").write_text(textwrap.dedent(STRAYS), encoding="utf-8")
    (folder / "slow_module.py").write_text("import time, slow_part\ntime.sleep(0.7)\n", encoding="utf-8")
    (folder / "slow_part.py").write_text("import time\ntime.sleep(0.7)\n", encoding="utf-8")
    (folder / "large_module.py").write_text("held = bytearray(96 * 2**20)\n", encoding="utf-8")
    (folder / "endless_module.py").write_text("while True: pass\n", encoding="utf-8")
    (folder / "failing_module.py").write_text("raise SystemExit('no licence')\n", encoding="utf-8")
    return lambda name, text="": Job(f"{folder / 'strays.py'}:{name}", prompt(), str(text))


@pytest.fixture
def pool():
    with VerifierPool(workers=1, timeout_s=20) as made:
        yield made


def exact(*texts):
    return [Job("exact", prompt(), text) for text in texts]


@pytest.mark.parametrize("name", ["fork", "c_fork", "fork_and_raise"])
def test_a_forked_child_that_returns_answers_nothing(pool, strays, name):
    jobs = [strays(name), *exact("18", "no"), strays(name), *exact("no", "18")]
    assert [v.reward for v in pool.score(jobs)] == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("code", [0, 3])
def test_a_forked_child_that_exits_does_so_with_its_own_code(pool, strays, code):
    assert pool.score([strays("exit_code_of_fork", code)]) == [Verdict(code / 10, None)]


@linux
@pytest.mark.parametrize(
    "text", ["garbage\n", "no line end", "[" * 100_000 + "\n", '{"reward": 1.0}\n', "null\n", "\x00\xff\n", "3\n" * 9]
)
def test_a_verifier_that_writes_to_the_connection_gets_an_error(pool, strays, text):
    error = Verdict(None, "the verifier wrote to the connection of its process, which is the pool's alone")
    verdicts = pool.score([strays("write", text), *exact("18", "no"), strays("write", text), *exact("no")])
    assert verdicts == [error, OK, Verdict(0.0, None), error, Verdict(0.0, None)]


@linux
def test_a_verdict_of_another_job_is_dropped(pool, strays):
    verdicts = pool.score([strays("verdict_of_another_job"), *exact("no"), strays("verdict_of_another_job")])
    assert [v.reward for v in verdicts] == [1.0, 0.0, 1.0]


@linux
def test_daemons_end_with_the_pool(pool, strays, tmp_path):
    assert pool.score([strays("daemon", tmp_path / "pid"), *exact("18")]) == [OK, OK]
    daemon = int((tmp_path / "pid").read_text())
    assert alive(daemon)
    pool.close()
    assert not alive(daemon)


@linux
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("daemon_then_hang", "timed out after 1 s"),
        ("daemon_then_exit", "the verifier's process exited with code 7"),
        ("holder_then_exit", "the verifier's process exited with code 7"),
    ],
)
def test_daemons_end_with_the_process_of_their_verifier(strays, tmp_path, name, error):
    with VerifierPool(workers=1, timeout_s=1.0) as pool:
        pool.start()
        start = time.monotonic()
        assert pool.score([strays(name, tmp_path / "pid"), *exact("18")]) == [Verdict(None, error), OK]
        assert time.monotonic() - start < 6.0
        assert not alive(int((tmp_path / "pid").read_text()))


@linux
def test_daemons_end_when_the_process_of_the_pool_is_killed(strays, tmp_path):
    job = strays("daemon_then_hang", tmp_path / "pid")
    child = os.fork()
    if child == 0:
        VerifierPool(workers=1, timeout_s=600).score([job])
        os._exit(0)
    until(lambda: (tmp_path / "pid").exists(), 30)
    daemon = int((tmp_path / "pid").read_text())
    assert alive(daemon)
    os.kill(child, 9)
    os.waitpid(child, 0)
    until(lambda: not alive(daemon))


@linux
def test_what_a_verifier_started_may_serve_its_next_job(pool, strays):
    assert pool.score([strays("service"), *exact("18"), strays("service")]) == [OK] * 3


def test_exceptions_that_would_end_a_process_are_named_and_end_none(pool, strays):
    pool.start()
    before = pids(pool)
    exit_, interrupt, silent, huge, fine = pool.score(
        [strays("raises", what) for what in ("exit", "interrupt", "silent", "huge")] + exact("18")
    )
    assert exit_ == Verdict(None, "SystemExit: 4")
    assert interrupt == Verdict(None, "KeyboardInterrupt")
    assert silent == Verdict(None, "Silent (whose message cannot be shown: SystemExit)")
    assert huge.error.startswith("ValueError: xxx")
    assert len(huge.error) == 500
    assert fine == OK
    assert pids(pool) == before


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Own(BaseException): pass\nraise Own('x')", "Own: x"),
        ("f = max", "'f' does not say which arguments it takes; wrap it in a function of your own"),
    ],
)
def test_a_verifier_that_cannot_be_loaded_is_an_error_that_says_why(pool, tmp_path, code, error):
    file = tmp_path / "odd.py"
    file.write_text(code, encoding="utf-8")
    verdict, fine = pool.score([Job(f"{file}:f", prompt(), ""), *exact("18")])
    assert error in verdict.error
    assert fine == OK


def test_imports_inside_a_function_do_not_count_as_judging(strays):
    with VerifierPool(workers=1, timeout_s=0.6) as pool:
        verdicts = pool.score([strays("imports_late", text) for text in ("", "", "hang", "", "")])
    assert verdicts == [OK, OK, Verdict(None, "timed out after 0.6 s"), OK, OK]


@linux
def test_imports_inside_a_function_do_not_count_as_memory_of_a_job(strays):
    with VerifierPool(workers=1, timeout_s=20, memory_mib=64) as pool:
        verdicts = pool.score([strays("imports_what_is_large", text) for text in ("", "", "allocate", "")])
    assert verdicts == [OK, OK, Verdict(None, "ran out of memory; the limit is 64 MiB (verifier.memory_mib)"), OK]


def test_imports_inside_a_function_have_the_limit_of_imports(strays, monkeypatch):
    with VerifierPool(workers=1, timeout_s=0.3) as pool:
        pool.start()
        monkeypatch.setattr(pool_module, "START_LIMIT_S", 1.5)
        start = time.monotonic()
        endless, fails = pool.score([strays("imports_endlessly"), strays("imports_what_fails")])
        assert time.monotonic() - start > 1.5
    assert endless == Verdict(None, "importing what the verifier needs took more than 1.5 s")
    assert fails == Verdict(None, "SystemExit: no licence")
