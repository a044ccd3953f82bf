"""Runs a Python program that nobody trusts: in namespaces of its own, under resource limits, with nothing to see.

    with start("bubblewrap", [Path("program.py")], Limits(), requests, answers, errors) as process:
        process.wait(10.0)

A program is a file that defines ``main(seal, *descriptors)``: ``seal()`` sets the limit on processes and is for the
program to call before it runs what it does not trust. The other files are modules that the first one imports as
``pacedrl.tasks.code.NAME``; nothing else of this package, and no installed package but numpy, can be imported.

``bubblewrap`` shows the program the standard library, the system's shared libraries and time zones, read-only and
without any folder of installed packages, and an empty /tmp to work in. There is no network, no /proc, no environment,
no process but its own, and a filter on system calls (see ``seccomp``). All of it ends with whoever started it.
``rlimits`` is for machines that allow no namespaces: resource limits, an empty environment and a temporary directory
hinder accidents, not malice.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pacedrl.errors import InputError
from pacedrl.tasks.code import seccomp

Mode = Literal["bubblewrap", "rlimits"]

TEMPORARY_MB = 64
"""Size of the sandbox's /tmp in MiB; it is memory."""

_PROBE_LIMIT_S = 30.0
_DYNAMIC_UIDS = range(61184, 65520)  # systemd's, for users that exist as long as a process does

# -S leaves out the folders of packages, and exit() and quit() with them. The digits of an integer need no limit of
# their own where time has one.
# The limits are set here, inside, because a limit on processes counts those of a user in a namespace. Packages of the
# names that the modules know themselves by stand in for the real ones, whose imports would take seconds. Bubblewrap's
# programs die with their parent anyway; others ask Linux for it, each process for itself.
_START = """
import os, resource, site, sys
inside, modules, packages, uid, limits, processes, descriptors = {settings!r}
if uid is not None:
    os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
for name, limit in limits:
    resource.setrlimit(getattr(resource, name), (limit, limit))
for name in ("pacedrl", "pacedrl.tasks", "pacedrl.tasks.code"):
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = modules
sys.path += packages
os.environ["OPENBLAS_NUM_THREADS"] = "1"
site.setquit()
sys.set_int_max_str_digits(0)
def die_with_parent():
    if not inside and sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).prctl(1, 9)
die_with_parent()
def seal():
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
from pacedrl.tasks.code.{program} import main
main(seal, *descriptors)
"""

_PROBE = """
import os
def main(seal):
    seal()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os._exit(os.waitpid(child, 0)[1])
"""


@dataclass(frozen=True)
class Limits:
    """Of each process: CPU seconds, address space in MiB, size of a file in MiB and open files; of all: processes.

    Threads count as processes. A process past ``cpu_s`` is killed; everything else past a limit is an error inside.
    """

    cpu_s: int = 10
    memory_mb: int = 1024
    file_mb: int = 16
    files: int = 64
    processes: int = 16


def check(mode: Mode) -> None:
    """Raise InputError, saying why and what to do, when this machine cannot run programs in this ``mode``.

    Tries it once a process: whether namespaces can be had is not written anywhere.
    """
    reason = _why_not() if mode == "bubblewrap" else None
    if reason is not None:
        raise InputError(
            f"programs cannot be run in a bubblewrap sandbox here: {reason}; 'sandbox: rlimits' does without, and "
            "gives up protection from hostile programs: they can read this machine's files, the tests among them, use "
            "its network and leave processes behind",
            docs="verifiers",
        )


@contextlib.contextmanager
def start(
    mode: Mode,
    files: Sequence[Path],
    limits: Limits,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    *,
    inherited: Sequence[int] = (),
    numpy: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``files[0]``'s ``main(seal, *inherited)`` in a sandbox; the block's end kills it and all that it started.

    Killed in ``rlimits`` mode are the process and its group: one that left the group stays. The descriptors are handed
    down as they are, and no others. ``numpy`` makes numpy importable where it is installed.
    """
    with contextlib.ExitStack() as stack:
        folder = filter_from = None
        if mode == "bubblewrap":
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            file.write(seccomp.system_call_filter(platform.machine()))
            file.seek(0)
            filter_from = file.fileno()
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pacedrl-", ignore_cleanup_errors=True))
        process = subprocess.Popen(
            _command(mode, files, limits, inherited, filter_from, numpy),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=inherited if filter_from is None else [*inherited, filter_from],
            cwd=folder,
            env={},
            process_group=0 if mode == "rlimits" else None,  # with bubblewrap it shares the fate of the caller's group
        )
        try:
            yield process
        finally:
            _kill(process, whole_group=mode == "rlimits")


def _kill(process: subprocess.Popen[bytes], whole_group: bool) -> None:
    if whole_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    process.kill()  # bubblewrap's end is that of the first process in its namespace, and with it of all
    process.wait()


def _command(
    mode: Mode, files: Sequence[Path], limits: Limits, inherited: Sequence[int], filter_from: int | None, numpy: bool
) -> Sequence[str]:
    inside = mode == "bubblewrap"
    packages = _numpy_paths() if numpy else []
    settings = (
        inside,
        ["/program"] if inside else [str(path.parent) for path in files],
        sorted({str(Path("/packages") if inside else path.parent) for path in packages}),
        secrets.choice(_DYNAMIC_UIDS) if inside and os.geteuid() == 0 else None,
        [
            ("RLIMIT_CPU", limits.cpu_s),
            ("RLIMIT_AS", limits.memory_mb << 20),
            ("RLIMIT_FSIZE", limits.file_mb << 20),
            ("RLIMIT_NOFILE", limits.files),
            ("RLIMIT_CORE", 0),
        ],
        limits.processes,
        list(inherited),
    )
    code = _START.format(settings=settings, program=files[0].stem)
    python = [str(_python()), "-I", "-S", "-B", "-c", code]
    if not inside:
        return python
    compiled = [Path(importlib.util.cache_from_source(str(path))) for path in files]  # saves a few milliseconds
    shown = [(path, Path("/program") / path.name) for path in files]
    shown += [(path, Path("/program/__pycache__") / path.name) for path in compiled if path.exists()]
    shown += [(path, Path("/packages") / path.name) for path in packages]
    filtered = ["--seccomp", str(filter_from)]
    return [*_namespaces(), *filtered, *_binds(shown), "--size", str(TEMPORARY_MB << 20), *_WRITABLE, *python]


_WRITABLE = ("--perms", "1777", "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/", "--")


@functools.cache
def _namespaces() -> Sequence[str]:
    bwrap = shutil.which("bwrap") or "bwrap"
    unshared = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
    alone = (bwrap, *unshared, "--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv")
    if os.geteuid() != 0:
        user = ("--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534")
        return (*alone, *user, "--cap-drop", "ALL")
    # Root needs no user namespace to make the others. And inside one it would still be root to the kernel, which does
    # not limit root's processes. So the program becomes a user of its own, and loses all capabilities by that. That
    # user could make user namespaces, which only the other branch turns off; the system call filter forbids them.
    return (*alone, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")


def _binds(shown: Sequence[tuple[Path, Path]]) -> Sequence[str]:
    """Arguments that show what ``_system`` names, four devices and ``shown``, pairs of where and where to."""
    everything = [*_system(), *shown]
    parents = {parent for _, there in everything for parent in there.parents} - {Path("/")}
    arguments: list[str] = []
    for parent in sorted([*parents, Path("/dev")]):
        arguments += ["--perms", "0755", "--dir", str(parent)]
    for here, there in everything:
        is_link = here.is_symlink() and here == there
        arguments += ["--symlink", os.readlink(here), str(there)] if is_link else ["--ro-bind", str(here), str(there)]
    for device in ("null", "zero", "random", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for folder in _packages():  # nothing is in them for the program
        arguments += ["--tmpfs", folder, "--remount-ro", folder]
    return arguments


@functools.cache
def _system() -> Sequence[tuple[Path, Path]]:
    """Python's executable and library folders, the system's shared libraries, and time zones; links stay links."""
    paths = [*_shared_libraries(), *(path for path in map(Path, _OTHER_FILES) if path.exists())]
    library = Path(sys.base_prefix) / "lib"
    own = [library] if library != Path("/usr/lib") else []  # which holds far more than Python
    for path in (*own, Path(sysconfig.get_path("stdlib")), _python()):
        paths += [] if _covered(path, paths) else [path]
    return [(path, path) for path in paths]


_OTHER_FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")


def _shared_libraries() -> list[Path]:
    """The folders of the system's shared libraries: those of the machine's kind, else all that /usr/lib holds."""
    folders = [Path("/usr/lib64"), Path("/lib64")]
    for parent in (Path("/usr/lib"), Path("/lib")):
        folders += [parent] if parent.is_symlink() else sorted(parent.glob(f"{platform.machine()}-linux-*"))
    if not any((folder / "libc.so.6").exists() for folder in folders if not folder.is_symlink()):
        folders += [Path("/usr/lib"), Path("/lib")]
    return [folder for folder in dict.fromkeys(folders) if folder.exists()]


_PACKAGES = ("site-packages", "dist-packages", "node_modules", "_bundled")
"""Names of folders of installed packages; in the last one pip waits to be installed."""


@functools.cache
def _packages() -> Sequence[str]:
    """The folders of installed packages in what ``_system`` shows, of any program's, each by its real path."""
    shown = [path for path, _ in _system() if not path.is_symlink()]
    found = set()
    for root in shown:
        for folder, names, _ in os.walk(root):
            found |= {Path(os.path.realpath(os.path.join(folder, name))) for name in names if name in _PACKAGES}
            names[:] = [name for name in names if name not in _PACKAGES]
    return sorted(str(folder) for folder in found if _covered(folder, shown))


def _covered(path: Path, by: Sequence[Path]) -> bool:
    return any(path.is_relative_to(other) for other in by)


def _python() -> Path:
    """The executable itself, not a virtual environment's link to it."""
    return Path(os.path.realpath(sys.executable))


@functools.cache
def _numpy_paths() -> Sequence[Path]:
    """numpy's folder and that of its libraries; empty where it is not installed."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    return [path for path in (folder, folder.with_name("numpy.libs")) if path.exists()]


@functools.cache
def _why_not() -> str | None:
    """The reason in one line why a bubblewrap sandbox does not work here, None when it does."""
    if not seccomp.knows(platform.machine()):
        return f"on {platform.machine()} it is not known which system calls to forbid"
    if shutil.which("bwrap") is None:
        return "there is no program 'bwrap' (on Debian and Ubuntu: apt-get install bubblewrap)"
    with tempfile.TemporaryDirectory(prefix="pacedrl-") as folder, tempfile.TemporaryFile() as errors:
        probe = Path(folder) / "probe.py"
        probe.write_text(_PROBE, encoding="utf-8")
        nothing = subprocess.DEVNULL
        try:
            with start("bubblewrap", [probe], Limits(), nothing, nothing, errors) as process:
                code = process.wait(_PROBE_LIMIT_S)
        except subprocess.TimeoutExpired:
            return f"nothing happened for {_PROBE_LIMIT_S:g} s"
        return None if code == 0 else last_line(errors) or f"it ended with code {code}"


def last_line(file: IO[bytes]) -> str:
    """The last line of what a program wrote to the temporary ``file``, at most 200 characters."""
    file.seek(0)
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
