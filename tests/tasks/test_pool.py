"""Tests of real verifier processes: order, time limits, crashes, and what is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from pool_helpers import OK, alive, judging_pids, pids, prompt, until

from pacedrl.tasks import pool as pool_module
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import Verdict


def test_verdicts_come_in_the_order_of_the_jobs():
    with VerifierPool(workers=2, timeout_s=10) as pool:
        jobs = [Job("numeric", prompt(answer=n % 7), str(n % 5)) for n in range(200)]
        assert [v.reward for v in pool.score(jobs)] == [float(n % 7 == n % 5) for n in range(200)]
        assert pool.score([]) == []
        assert pool.score([Job("math", prompt(), r"\boxed{18}"), Job("exact", prompt(), "18 ")]) == [OK, OK]


def test_a_stuck_job_is_killed_and_costs_the_others_nothing(behave):
    with VerifierPool(workers=2, timeout_s=1.0) as pool:
        pool.start()
        start = time.monotonic()
        verdicts = pool.score(behave("hang", *["sleep 0.02"] * 20, "sleep 30", *["ok"] * 20))
        took = time.monotonic() - start
    late = Verdict(None, "timed out after 1 s")
    assert verdicts == [late, *[OK] * 20, late, *[OK] * 20]
    assert 1.0 < took < 3.5


def test_the_limit_is_each_job_s_own_and_start_up_is_not_counted(judges, tmp_path, behave):
    slow = tmp_path / "slow_import.py"
    slow.write_text("import time\ntime.sleep(1.5)\ndef judge(completions):\n    return [1.0]\n", encoding="utf-8")
    with VerifierPool(workers=1, timeout_s=0.8) as pool:
        assert pool.score([Job(f"{slow}:judge", prompt(), "")]) == [OK]
        assert pool.score(behave(*["sleep 0.3"] * 4)) == [OK] * 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("exit 3", "the verifier's process exited with code 3"),
        ("exit 0", "the verifier's process exited with code 0"),
        ("segfault", "the verifier's process was killed by signal 11 (Segmentation fault)"),
        ("close", "the verifier closed the connection of its process"),
    ],
)
def test_a_crash_is_an_error_that_says_how_it_ended(behave, text, error):
    with VerifierPool(workers=1, timeout_s=10) as pool:
        assert pool.score(behave("ok", text, "ok")) == [OK, Verdict(None, error), OK]


def test_a_process_killed_from_outside_is_an_error_while_judging_and_nothing_while_idle(behave, tmp_path):
    with VerifierPool(workers=1, timeout_s=20) as pool:
        assert pool.score(behave("ok")) == [OK]
        (idle,) = pids(pool)
        os.kill(idle, signal.SIGKILL)
        until(lambda: not alive(idle))
        assert pool.score(behave("ok")) == [OK]

        file = tmp_path / "pid"
        killer = threading.Thread(
            target=lambda: (until(lambda: file.exists() and file.read_text()), os.kill(int(file.read_text()), 9))
        )
        killer.start()
        (verdict,) = pool.score(behave(f"pid {file}"))
        killer.join()
        assert verdict == Verdict(None, "the verifier's process was killed by signal 9 (Killed, out of memory perhaps)")


def test_what_a_verifier_prints_or_reads_does_not_touch_the_protocol(behave):
    with VerifierPool(workers=1, timeout_s=10) as pool:
        assert pool.score(behave("print", "read", "ok", "python")) == [OK] * 4


@pytest.mark.parametrize(
    "text", ["", "\ud800 lone", "\x00null\x00", "two\nlines\r\u2028", "😀" * 10, "x" * 1_000_000, "\udfff" * 200_000]
)
def test_any_text_survives_the_way_there(judges, text):
    with VerifierPool(workers=1, timeout_s=10) as pool:
        job = Job(f"{judges}:echo", prompt(answer=text, content=text, columns_of_text=text), text)
        assert pool.score([job, job]) == [OK, OK]


def test_specs_that_do_not_resolve_are_errors(judges):
    with VerifierPool(workers=1, timeout_s=10) as pool:
        mistyped, missing = pool.score([Job("mth", prompt(), ""), Job(f"{judges}:nope", prompt(), "")])
    assert "did you mean 'math'?" in mistyped.error
    assert "has no 'nope'" in missing.error


def test_modules_on_the_parents_path_import_in_the_workers(judges, monkeypatch):
    monkeypatch.syspath_prepend(str(judges.parent))
    with VerifierPool(workers=1, timeout_s=10) as pool:
        assert pool.score([Job("judges:behave", prompt(), "ok")]) == [OK]


def test_a_killed_job_takes_its_own_children_with_it(behave, tmp_path):
    file = tmp_path / "pid"
    with VerifierPool(workers=1, timeout_s=0.5) as pool:
        (verdict,) = pool.score(behave(f"grandchild {file}"))
        assert verdict.error == "timed out after 0.5 s"
        until(lambda: not alive(int(file.read_text())))


def own_children() -> set[str]:
    """Return the pids of this process's children, including zombies."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended; its children are another's now
            found.update((task / "children").read_text().split())
    return found


def test_nothing_is_left_behind(behave):
    before = sorted(os.listdir("/proc/self/fd"))
    threads, children = threading.active_count(), own_children()
    pool = VerifierPool(workers=2, timeout_s=0.3)
    pool.score(behave("ok", "exit 1", "hang", "ok", "exit 1"))
    pool.start()  # the two that exited are being replaced
    left = pids(pool) + judging_pids(pool)
    assert left
    pool.close()
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads
    assert own_children() == children  # no zombies either
    with pytest.raises(RuntimeError, match="closed"):
        pool.score([])


def test_processes_start_late_and_stay(judges):
    with VerifierPool(workers=2, timeout_s=10) as pool:
        assert pids(pool) == []
        pool.start()
        started = pids(pool)
        assert len(set(started)) == 2
        pool.score([Job("exact", prompt(), "18")] * 10)
        pool.start()
        assert pids(pool) == started


def test_processes_outlive_the_thread_that_started_them(behave):
    with VerifierPool(workers=1, timeout_s=10) as pool:
        first = threading.Thread(target=pool.start)
        first.start()
        first.join()
        started = pids(pool)
        assert pool.score(behave("sleep 0.3")) == [OK]
        assert pids(pool) == started


def test_threads_may_share_a_pool(behave):
    results = {}
    with VerifierPool(workers=2, timeout_s=10) as pool:

        def score(n):
            results[n] = pool.score([Job("numeric", prompt(answer=k), str(n)) for k in range(20)])

        threads = [threading.Thread(target=score, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: [Verdict(float(k == n), None) for k in range(20)] for n in range(4)}


def test_a_worker_that_cannot_start_raises(monkeypatch):
    monkeypatch.setattr(pool_module, "_WORKER", "import sys; sys.exit(7)")
    with (
        VerifierPool(workers=1, timeout_s=1) as pool,
        pytest.raises(RuntimeError, match=r"a verifier process did not start: .* exited with code 7"),
    ):
        pool.score([Job("exact", prompt(), "")])


def test_start_up_and_imports_have_a_limit_of_their_own(monkeypatch, tmp_path):
    endless = tmp_path / "endless.py"
    endless.write_text("while True:\n    pass\n", encoding="utf-8")
    with VerifierPool(workers=1, timeout_s=0.1) as pool:
        pool.start()
        monkeypatch.setattr(pool_module, "START_LIMIT_S", 1.5)
        verdicts = pool.score([Job(f"{endless}:f", prompt(), ""), Job("exact", prompt(), "18")])
        assert verdicts == [Verdict(None, "importing the verifier took more than 1.5 s"), OK]
        monkeypatch.setattr(pool_module, "_WORKER", "import time; time.sleep(60)")
    with (
        VerifierPool(workers=1, timeout_s=1) as pool,
        pytest.raises(RuntimeError, match=r"did not start: it took more than 1\.5 s"),
    ):
        pool.start()


def test_an_interrupted_call_does_not_answer_the_next_one(behave, monkeypatch):
    with VerifierPool(workers=2, timeout_s=10) as pool:
        pool.start()
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.score(behave("sleep 3", "sleep 3"))
        start = time.monotonic()
        assert pool.score([Job("exact", prompt(), "no")] * 5) == [Verdict(0.0, None)] * 5
        assert time.monotonic() - start < 2.5


def test_columns_that_are_no_json_raise_and_leave_the_pool_usable():
    with VerifierPool(workers=1, timeout_s=10) as pool:
        with pytest.raises(TypeError, match="not JSON serializable"):
            pool.score([Job("exact", prompt(column={1, 2}), "18")])
        assert pool.score([Job("exact", prompt(), "18")]) == [OK]


@pytest.mark.parametrize(("workers", "timeout_s"), [(0, 1.0), (1, 0.0)])
def test_impossible_sizes(workers, timeout_s):
    with pytest.raises(ValueError, match="expected workers >= 1, timeout_s > 0"):
        VerifierPool(workers, timeout_s)


@pytest.mark.skipif(sys.platform != "linux", reason="a stuck worker outlives its parent where there is no prctl")
def test_workers_die_with_a_killed_parent_even_when_stuck(judges, tmp_path):
    script = tmp_path / "parent.py"  # no __main__ guard
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from pacedrl.tasks.pool import Job, VerifierPool
        from pacedrl.types import Prompt
        pool = VerifierPool(workers=2, timeout_s=600)
        pool.start()
        guardians = [w._process.pid for w in pool._workers]
        children = [Path(f"/proc/{{pid}}/task/{{pid}}/children").read_text() for pid in guardians]
        Path({str(tmp_path / "pids")!r}).write_text(" ".join([*map(str, guardians), *children]))
        pool.score([Job({f"{judges}:behave"!r}, Prompt("k", "t", "q", None), "hang")])
        """),
        encoding="utf-8",
    )
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root}) as parent:
        file = tmp_path / "pids"
        until(lambda: file.exists() and len(file.read_text().split()) == 4, 30)
        workers = [int(pid) for pid in file.read_text().split()]
        time.sleep(0.5)  # one of them hangs by now
        assert all(map(alive, workers))
        parent.kill()
    until(lambda: not any(map(alive, workers)))
