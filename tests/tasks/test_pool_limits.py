"""Tests of verifier processes that run out of memory, die or are stuck: they are replaced and leave nothing behind."""

import gc
import os
import time
from pathlib import Path

import pytest
from pool_helpers import OK, alive, judging_pids, pids, prompt

from pacedrl.tasks import pool as pool_module
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import Verdict


def test_a_job_out_of_memory_is_an_error_and_its_process_is_replaced(behave):
    with VerifierPool(workers=1, timeout_s=10, memory_mib=64) as pool:
        pool.start()
        (before,) = pids(pool)
        verdicts = pool.score(behave("memory 16", "memory 256", "memory 16"))
        assert verdicts == [OK, Verdict(None, "ran out of memory; the limit is 64 MiB (verifier.memory_mib)"), OK]
        (after,) = pids(pool)
    assert before != after
    assert not alive(before)


def test_a_verifier_that_leaks_is_stopped_in_time(behave):
    with VerifierPool(workers=1, timeout_s=10, memory_mib=64) as pool:
        verdicts = pool.score(behave(*["leak 10"] * 20))
    errors = [v for v in verdicts if v.error]
    assert 2 <= len(errors) <= 4
    assert verdicts[:5] == [OK] * 5


def test_a_job_is_not_lost_with_a_process_that_died_before_it_began(behave):
    with VerifierPool(workers=1, timeout_s=10) as pool:
        pool.start()
        real = pool_module._Worker.hand

        def hand_to_the_dying(self, number, job):
            if number == 1 and not handed:
                handed.append(self._process.pid)
                self._process.kill()
                self._process.wait()
            real(self, number, job)

        handed = []
        pool_module._Worker.hand = hand_to_the_dying
        try:
            assert pool.score(behave("ok", "ok", "ok")) == [OK] * 3
        finally:
            pool_module._Worker.hand = real
    assert len(handed) == 1


def test_a_verifier_that_kills_its_process_on_import_does_not_go_round_for_ever(tmp_path):
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, sys\nif 'pacedrl.tasks.worker' in sys.modules: os._exit(3)\ndef f(completions): return [1.0]\n"
    )
    with VerifierPool(workers=1, timeout_s=10) as pool:
        verdicts = pool.score([Job(f"{deadly}:f", prompt(), "x"), Job("exact", prompt("x"), "x")])
    assert verdicts == [Verdict(None, "the verifier's process exited with code 3"), OK]


def test_a_stuck_process_is_replaced_within_a_second(behave):
    with VerifierPool(workers=1, timeout_s=0.5) as pool:
        pool.start()
        start = time.monotonic()
        assert [v.reward for v in pool.score(behave("hang", "ok"))] == [None, 1.0]
        assert time.monotonic() - start < 0.5 + 1.0 + 1.5  # the limit, the replacement, and a slow machine


def test_ten_thousand_jobs_leave_no_process_and_no_descriptor_behind(behave):
    gc.collect()  # descriptors that earlier tests left open do not count

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    with VerifierPool(workers=2, timeout_s=10) as pool:
        jobs = [Job("numeric", prompt(answer=n % 7), str(n % 5)) for n in range(9_900)]
        jobs[500:500] = behave(*["exit 1"] * 5, "segfault")
        pool.score(jobs)
        workers = judging_pids(pool)
        assert len(workers) == 2
        memory = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in workers]
        pool.score(jobs[:100])
        assert [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in workers] == pytest.approx(
            memory, rel=0.02
        )
        guardians = pids(pool)
    assert descriptors() == before
    assert not any(map(alive, workers + guardians))
    zombies = [p for p in Path("/proc").glob("[0-9]*/stat") if _is_zombie_child(p)]
    assert zombies == []


def _is_zombie_child(stat):
    try:
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return state == "Z" and int(parent) == os.getpid()
