"""Tests of what a program in a sandbox can see and do, and that it leaves nothing behind."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from pool_helpers import until
from sandbox_helpers import both_modes, needs_bubblewrap, processes

from pacedrl.errors import InputError
from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.sandbox import Limits

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a program outlives its parent where there is no prctl")


@pytest.fixture
def program(tmp_path):
    """Write a program whose ``main`` runs the given statements; its name is in the command line of its processes."""

    def write(body):
        file = tmp_path / f"program_{os.getpid()}_{time.monotonic_ns()}.py"
        file.write_text("import os, sys, time\ndef main(seal, *descriptors):\n" + textwrap.indent(body, "    "))
        return file

    return write


def run(mode, file, limits=Limits(), stdin=b"", seconds=20.0):  # noqa: B008 - it is frozen
    """Return the exit code, what it printed, and the last line of its errors."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        with sandbox.start(mode, [file], limits, given, out, errors) as process:
            code = process.wait(seconds)
        out.seek(0)
        return code, out.read().decode(), sandbox.last_line(errors)


@both_modes
def test_input_output_exit_code_and_errors(mode, program):
    file = program("print(sys.stdin.read().upper(), flush=True)\nprint('oops', file=sys.stderr)\nos._exit(3)")
    assert run(mode, file, stdin=b"abc") == (3, "ABC\n", "oops")


@both_modes
def test_inherited_descriptors_are_the_only_ones(mode, program):
    file = program(
        "seal()\n"
        "os.write(descriptors[0], b'hello')\n"
        "opened = []\n"
        "for fd in range(64):\n"
        "    try:\n        os.fstat(fd)\n        opened.append(fd)\n"
        "    except OSError:\n        pass\n"
        "print(opened == [0, 1, 2, *descriptors])"
    )
    read, write = os.pipe()
    secret = os.open("/", os.O_RDONLY)
    os.set_inheritable(secret, True)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        with sandbox.start(mode, [file], Limits(), subprocess.DEVNULL, out, errors, inherited=[write]) as process:
            assert process.wait(20) == 0, sandbox.last_line(errors)
        assert os.read(read, 10) == b"hello"
        out.seek(0)
        assert out.read() == b"True\n"
    for descriptor in (read, write, secret):
        os.close(descriptor)


@both_modes
def test_the_environment_is_empty_and_no_package_can_be_imported(mode, program, monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    file = program(
        "print(sorted(os.environ))\n"
        "for name in ('yaml', 'numpy', 'pacedrl.errors', 'pip'):\n"
        "    try:\n        __import__(name)\n        print(name)\n"
        "    except ImportError:\n        pass\n"
    )
    _, out, _ = run(mode, file)
    assert set(json.loads(out.replace("'", '"'))) <= {"OPENBLAS_NUM_THREADS", "PWD", "LC_CTYPE"}


@both_modes
def test_limits_are_set_hard_and_soft(mode, program):
    limits = Limits(cpu_s=7, memory_mb=300, file_mb=3, files=40, processes=5)
    names = ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_NPROC")
    file = program(f"import resource\nseal()\nprint([resource.getrlimit(getattr(resource, n)) for n in {names}])")
    code, out, error = run(mode, file, limits)
    assert code == 0, error
    assert json.loads(out.translate(str.maketrans("()", "[]"))) == [
        [limit, limit] for limit in (7, 300 << 20, 3 << 20, 40, 0, 5)
    ]


@both_modes
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(4 << 20))", "OSError: [Errno 27] File too large"),
        ("files = [open('/dev/null') for _ in range(100)]", "OSError: [Errno 24] Too many open files: '/dev/null'"),
    ],
)
def test_past_a_limit_is_an_error(mode, program, body, message):
    code, _, error = run(mode, program(body), Limits(memory_mb=300, file_mb=1, files=40))
    assert (code, error) == (1, message)


@both_modes
def test_cpu_time_ends_a_loop(mode, program):
    start = time.monotonic()
    code, _, _ = run(mode, program("while True:\n    pass"), Limits(cpu_s=1))
    assert code not in (0, 1)
    assert time.monotonic() - start < 10


@both_modes
def test_the_end_of_the_block_ends_all_processes(mode, program):
    file = program("os.fork()\nos.fork()\ntime.sleep(600)")
    null = subprocess.DEVNULL
    with sandbox.start(mode, [file], Limits(), null, null, null):
        until(lambda: len(processes(file.stem) - {os.getpid()}) >= 4)
    until(lambda: not (processes(file.stem) - {os.getpid()}))


@both_modes
@linux_only
def test_a_killed_parent_takes_the_program_along(mode, program, tmp_path):
    file = program("time.sleep(600)")
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import subprocess, time
        from pathlib import Path
        from pacedrl.tasks.code import sandbox
        null = subprocess.DEVNULL
        with sandbox.start({mode!r}, [Path({str(file)!r})], sandbox.Limits(), null, null, null):
            time.sleep(600)
        """),
        encoding="utf-8",
    )
    root = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path]), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], env=env) as parent:
        until(lambda: processes(file.stem) - {os.getpid()}, 60)
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not (processes(file.stem) - {os.getpid()}))


def test_rlimits_leaves_no_directory_behind(program):
    code, out, _ = run("rlimits", program("open('x', 'w').close()\nprint(os.getcwd())"))
    assert code == 0
    assert not Path(out.strip()).exists()


@needs_bubblewrap
def test_the_file_system_shows_only_what_python_needs(program):
    file = program(
        "print(sorted(os.listdir('/')), os.listdir('/tmp'), sorted(os.listdir('/dev')), os.getcwd())\n"
        "for path in ('/etc/passwd', '/proc/self/environ', '/root/.bashrc', '/usr/bin/env', '/home', '/bin/sh'):\n"
        "    print(os.path.exists(path))\n"
    )
    _, out, _ = run("bubblewrap", file)
    first, *exists = out.splitlines()
    assert first.endswith("[] ['null', 'random', 'urandom', 'zero'] /tmp")
    assert "'proc'" not in first
    assert "'work'" not in first
    assert exists == ["False"] * 6


@needs_bubblewrap
def test_no_folder_of_installed_packages_has_anything_in_it(program):
    file = program(
        "names = ('site-packages', 'dist-packages', 'node_modules', '_bundled')\n"
        "folders = [place for place, _, _ in os.walk('/', followlinks=False)]\n"
        "print(len(folders) > 100, os.path.basename(os.path.dirname(os.__file__)))\n"
        "print([place for place in folders if os.path.basename(place) in names and os.listdir(place)])\n"
    )
    code, out, error = run("bubblewrap", file)
    assert code == 0, error
    assert out.splitlines()[0].startswith("True python3")
    assert out.splitlines()[1] == "[]"


@needs_bubblewrap
@pytest.mark.skipif(not Path("/usr/share/zoneinfo/Europe/Paris").exists(), reason="this machine has no time zones")
def test_time_zones(program):
    file = program(
        "import datetime, zoneinfo\n"
        "for name in ('UTC', 'Europe/Paris'):\n"
        "    print(datetime.datetime(2020, 7, 1, tzinfo=zoneinfo.ZoneInfo(name)).isoformat())\n"
    )
    _, out, error = run("bubblewrap", file)
    assert out.split() == ["2020-07-01T00:00:00+00:00", "2020-07-01T00:00:00+02:00"], error


@needs_bubblewrap
def test_only_tmp_can_be_written(program):
    file = program(
        "import errno, sysconfig\n"
        "for folder in ('/', '/dev', '/usr', '/usr/lib', '/program', sysconfig.get_path('stdlib')):\n"
        "    try:\n        open(os.path.join(folder, 'x'), 'w')\n        print('written', folder)\n"
        "    except OSError as error:\n        print(error.errno in (errno.EROFS, errno.EACCES))\n"
        "    try:\n        os.chmod(folder, 0o777)\n        print('changed', folder)\n"
        "    except OSError as error:\n        pass\n"
        "open('/tmp/written-by-the-sandbox-test', 'w').write('y')\n"
    )
    code, out, error = run("bubblewrap", file)
    assert code == 0, error
    assert out.split() == ["True"] * 6
    assert not Path("/tmp/written-by-the-sandbox-test").exists()


CANNOT = [
    "open('/etc/passwd').read()",
    "open('/proc/1/environ').read()",
    "open(f'/proc/{os.getppid()}/environ').read()",
    "os.environ['SECRET']",
    "os.environ['PATH']",
    "os.listdir('/proc')[0]",
    "os.listdir('/root/.ssh')",
    f"os.listdir({str(Path(__file__).parent)!r})",
    "open('/hostile_here', 'w')",
    "open(sys.modules['pacedrl.tasks.code.' + PROGRAM].__file__, 'a')",
    "open(os.__file__, 'a')",
    "open('/dev/hostile_here', 'w')",
    "os.symlink('/etc/passwd', '/tmp/p') or open('/tmp/p').read()",
    "os.symlink('/', '/tmp/r') or open('/tmp/r/hostile_here', 'w')",
    "os.symlink('/proc/self/root/etc/passwd', '/tmp/q') or open('/tmp/q')",
    "os.link(os.__file__, '/tmp/os.py')",
    "open('../../../../etc/shadow')",
    "os.chroot('/tmp')",
    "os.setuid(0)",
    "os.setgroups([0])",
    "os.mknod('/tmp/disk', 0o60666, os.makedev(8, 0))",
    "os.nice(-5)",
    "os.kill(1, signal.SIGKILL) or open('/never')",
    "socket.create_connection(('127.0.0.1', PORT), 1)",
    "socket.create_connection(('localhost', PORT), 1)",
    "socket.create_connection(('1.1.1.1', 53), 1)",
    "socket.socket(socket.AF_UNIX).connect('/run/dbus/system_bus_socket')",
    "socket.socket(socket.AF_UNIX).connect('\\0hostile_here')",
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 or 1 / 0",
    "ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 or 1 / 0",
    "ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600) >= 0 or 1 / 0",
    "ctypes.CDLL(None).unshare(0x10000000) == 0 or 1 / 0",
    "os.pidfd_open(1)",
    "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 or 1 / 0",
    "os.execv('/bin/sh', ['sh', '-c', 'true'])",
    "os.system('true') == 0 or 1 / 0",
    "__import__('resource').setrlimit(4, (-1, -1))",
    "__import__('numpy')",
    "__import__('pacedrl.tasks.code.verifier')",
    "open('/dev/kmsg')",
    "open('/dev/mem')",
    "open('/dev/tty')",
    "os.open('/sys', os.O_RDONLY)",
]
CAN = (
    "[open('x', 'w').close(), os.listdir('.'), os.urandom(4), __import__('random').random(), os.getpid() < 10 or 1 / 0]"
)


@needs_bubblewrap
def test_what_a_program_cannot_do_and_what_it_can(program, monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    body = "import ctypes, signal, socket\nseal()\n"
    for action in [*CANNOT, CAN]:
        body += f"try:\n    {action}\n    print({action!r})\nexcept Exception:\n    pass\n"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0hostile_here")
        abstract.listen()
        file = program(body.replace("PORT", str(server.getsockname()[1])))
        file.write_text(f"PROGRAM = {file.stem!r}\n{file.read_text()}")
        code, out, error = run("bubblewrap", file)
    assert (code, out.splitlines()) == (0, [CAN]), error


@needs_bubblewrap
def test_processes_are_limited_where_root_started_it_too(program):
    file = program(
        "seal()\nn = 0\ntry:\n    while os.fork():\n        n += 1\n    time.sleep(600)\n"
        "except OSError as error:\n    print(n < 8, error.errno, flush=True)\n    os._exit(0)"
    )
    code, out, error = run("bubblewrap", file, Limits(processes=8))
    assert (code, out) == (0, "True 11\n"), error
    until(lambda: not (processes(file.stem) - {os.getpid()}))


def fresh_check(monkeypatch):
    sandbox._why_not.cache_clear()
    sandbox._namespaces.cache_clear()
    try:
        with pytest.raises(InputError) as error:
            sandbox.check("bubblewrap")
    finally:
        monkeypatch.undo()
        sandbox._why_not.cache_clear()
        sandbox._namespaces.cache_clear()
    assert "\n" not in str(error.value)
    assert "'sandbox: rlimits'" in str(error.value)
    return str(error.value)


def test_a_missing_bubblewrap_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no program 'bwrap' (on Debian and Ubuntu: apt-get install bubblewrap)" in fresh_check(monkeypatch)


def test_namespaces_that_are_not_allowed_are_an_error(monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "here: bwrap: No permissions to create new namespace;" in fresh_check(monkeypatch)


def test_rlimits_needs_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.check("rlimits")


def test_the_limits_of_this_process_stay(program):
    before = resource.getrlimit(resource.RLIMIT_AS)
    run("rlimits", program("pass"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
