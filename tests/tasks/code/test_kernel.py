"""Tests of what the kernel refuses to completions, in both kinds of bubblewrap sandbox: verdicts on real programs."""

import os
import platform
import site
import sys
import sysconfig
from pathlib import Path

import pytest
from code_helpers import reward
from sandbox_helpers import needs_bubblewrap

from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.verifier import CodeSettings

pytestmark = needs_bubblewrap
EPERM, ENOSYS = 1, 38
NEW_USER, NEW_NETWORK, NEW_MOUNT = 0x10000000, 0x40000000, 0x20000


@pytest.fixture(autouse=True, params=["a user of its own", "a user namespace"])
def way(request, monkeypatch):
    """Run each test in both kinds: root's sandbox has no user namespace, other users' have one; root can make both."""
    if request.param == "a user of its own":
        if os.geteuid() != 0:
            pytest.skip("only root can start a sandbox without a user namespace")
        yield
        return
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    sandbox._namespaces.cache_clear()
    yield
    monkeypatch.undo()
    sandbox._namespaces.cache_clear()


def passes(text, *tests, **limits):
    """Tell whether all tests pass."""
    return reward(text, test_list=list(tests), settings=CodeSettings(timeout_s=20.0, **limits)) == 1.0


CALL = (
    "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "def call(*arguments):\n    return libc.syscall(*arguments), ctypes.get_errno()\n"
)
REFUSED = {
    "clone": [
        (56, flags | 17, 0, 0, 0, 0)
        for flags in (0x2000000, 0x4000000, 0x8000000, 0x20000000, NEW_USER, NEW_NETWORK, NEW_MOUNT, 0x7E020000)
    ],
    "unshare and setns": [(272, NEW_USER), (272, NEW_NETWORK), (272, 0x80), (272, 0), (308, 0, 0)],
    "mounts": [(n, 0, 0, 0, 0, 0) for n in (165, 166, 155, 161, 428, 429, 430, 431, 432, 433, 442, 303, 304, 300)],
    "memory": [
        (319, b"x", 0), (447, 0), (29, 0, 1 << 30, 0o1600), (68, 0, 0o1600), (64, 0, 1, 0o1600),
        (240, b"x", 0o102, 0o600, 0), (278, 1, 0, 0, 0), (206, 1, 0),
    ],
    "other processes": [
        (101, 16, 1), (101, 0, 0), (310, 1, 0, 0, 0, 0, 0), (311, 1, 0, 0, 0, 0, 0), (312, 1, 1, 0, 0, 0),
        (424, 0, 9, 0), (434, 1, 0), (438, 0, 0, 0), (440, 0, 0, 0, 0, 0), (448, 0, 0), (256, 1, 0, 0, 0),
        (279, 1, 0, 0, 0, 0, 0),
    ],
    "holes": [
        *((n, 0, 0, 0) for n in (425, 426, 427, 248, 249, 250, 298, 321, 323, 216, 154, 134, 212)),
        (135, 0xFFFFFFFF), (135, 0x400000),
    ],
    "the machine": [
        (n, 0, 0, 0) for n in (172, 173, 175, 313, 176, 246, 320, 169, 167, 168, 163, 179, 443, 103, 170, 171, 153)
    ],
    "a second set of numbers": [(0x40000000 | 39,), (0x40000000 | 272, NEW_USER)],
}  # fmt: skip


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are x86_64's")
@pytest.mark.parametrize("name", REFUSED)
def test_a_system_call_is_refused(name):
    tests = [f"assert call(*{call}) == (-1, {EPERM})" for call in REFUSED[name]]
    assert passes(CALL, *tests)
    assert not passes(CALL, *tests, f"assert call(39) == (-1, {EPERM})")  # getpid, which is not refused


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are x86_64's")
def test_clone3_does_not_exist_whatever_its_flags_are():
    text = CALL + "def clone3(flags):\n    return call(435, (ctypes.c_uint64 * 8)(flags, 0, 0, 0, 17), 64)\n"
    assert passes(text, f"assert [clone3(flags) for flags in (0, {NEW_USER}, {NEW_NETWORK})] == [(-1, {ENOSYS})] * 3")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine code is x86_64's")
def test_calls_of_the_32_bit_kind_kill():
    text = (
        "import ctypes, mmap\n"
        "def run(code):\n"
        "    page = mmap.mmap(-1, 4096, prot=7)\n    page.write(code)\n"
        "    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()\n"
    )
    assert passes(text, "assert run(bytes.fromhex('b807000000c3')) == 7")  # mov eax, 7; ret
    assert not passes(text, "assert run(bytes.fromhex('b814000000cd80c3')) >= -99")  # getpid by int 0x80


def test_threads_processes_and_event_loops_work_nevertheless():
    text = (
        "import asyncio, os, socket, threading\n"
        "def work():\n"
        "    results = []\n"
        "    thread = threading.Thread(target=results.append, args=(1,))\n    thread.start()\n    thread.join()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        os._exit(2)\n"
        "    results.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "    results.append(asyncio.run(asyncio.sleep(0, 3)))\n"
        "    left, right = socket.socketpair()\n    left.send(b'4')\n"
        "    return [*results, right.recv(1)]\n"
    )
    assert passes(text, "assert work() == [1, 2, 3, b'4']")


def test_no_socket_but_a_unix_one_can_be_had():
    text = (
        "import socket\n"
        "def refused(call, *family):\n"
        "    try:\n        getattr(socket, call)(*family)\n"
        "    except OSError as error:\n        return error.errno\n"
    )
    # IPv4 and 6, netlink, packet, key, RDS, CAN, TIPC, Bluetooth, ALG, vsock, XDP
    families = [2, 10, 16, 17, 15, 21, 29, 30, 31, 38, 40, 44, 1 << 20, 0]
    kinds = ["socket.SOCK_STREAM", "socket.SOCK_DGRAM", "socket.SOCK_RAW", "socket.SOCK_SEQPACKET"]
    for kind in kinds:
        tests = [f"assert refused('socket', {family}, {kind}) == {EPERM}" for family in families]
        tests += [f"assert refused('socketpair', {family}, {kind}) == {EPERM}" for family in (2, 30)]
        assert passes(text, "import socket\n" + "\n".join(tests)), kind


def test_memory_is_limited_wherever_it_is_kept():
    text = (
        "import ctypes, mmap, os\n"
        "def refused(way):\n"
        "    try:\n        ways[way]()\n"
        "    except (OSError, MemoryError, PermissionError, FileNotFoundError) as error:\n"
        "        return type(error).__name__\n"
        "def fill(folder):\n"
        "    for n in range(32):\n"
        "        with open(f'{folder}/{n}', 'wb') as file: file.write(bytes(8 << 20))\n"
        "ways = {\n"
        "    'heap': lambda: bytearray(1 << 30),\n"
        "    'anonymous': lambda: mmap.mmap(-1, 1 << 30),\n"
        "    'memfd': lambda: os.memfd_create('x'),\n"
        "    'tmp': lambda: fill('/tmp'),\n"
        "    'shm': lambda: fill('/dev/shm'),\n"
        "    'run': lambda: fill('/run'),\n"
        "    'root': lambda: fill('/'),\n"
        "    'packages': lambda: fill(PACKAGES[0]),\n"
        "    'queue': lambda: __import__('multiprocessing').shared_memory.SharedMemory(create=True, size=1 << 30),\n"
        "}\n"
    ).replace("PACKAGES", repr(sandbox._packages()))
    expected = {
        "heap": "MemoryError",
        "anonymous": "OSError",
        "memfd": "PermissionError",
        "tmp": "OSError",
        "shm": "FileNotFoundError",
        "run": "FileNotFoundError",
        "root": "OSError",
    }
    expected |= {"packages": "OSError"} if sandbox._packages() else {}
    for way, error in expected.items():
        assert passes(text, f"assert refused({way!r}) in ({error!r}, 'PermissionError')", memory_mb=512), way


def installed():
    """Return the folders of the base interpreter's installed packages, and of the system's."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    folders = {sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")}
    folders |= {"/usr/lib/python3/dist-packages", *site.getsitepackages()}
    return sorted(folder for folder in folders if Path(folder).is_dir() and any(Path(folder).iterdir()))


@pytest.mark.skipif(not installed(), reason="nothing is installed")
def test_installed_packages_can_be_neither_read_nor_imported():
    text = (
        "import os, sys\n"
        "def seen(folder):\n"
        "    return os.listdir(folder) if os.path.exists(folder) else []\n"
        "def imported(folder, name):\n"
        "    sys.path.insert(0, folder)\n"
        "    try:\n        __import__(name)\n        return True\n"
        "    except ImportError:\n        return False\n"
    )
    for folder in installed():
        names = [path.name for path in Path(folder).iterdir() if (path / "__init__.py").exists()]
        assert passes(text, f"assert seen({folder!r}) == []"), folder
        assert not names or passes(text, "imported('', 'x')", f"assert not imported({folder!r}, {names[0]!r})"), folder
