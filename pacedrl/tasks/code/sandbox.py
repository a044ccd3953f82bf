"""Runs an untrusted Python program in its own namespaces, under resource limits, with access to little else.

    with start("bubblewrap", [Path("program.py")], Limits(), requests, answers, errors) as process:
        process.wait(10.0)

A program is a file that defines ``main(seal, *descriptors)`` and calls ``seal()``, which limits its processes, before
it runs untrusted code. It imports the other files as ``pacedrl.tasks.code.NAME``, and no package but numpy.

``bubblewrap`` shows the program the standard library, shared libraries and time zones, all read-only, and an empty
/tmp. There is no network, no /proc, no environment and no other process, and a filter forbids system calls (see
``seccomp``). All of it ends with the process that started it. ``rlimits`` is for machines that allow no namespaces:
resource limits, an empty environment and a temporary directory prevent accidents, not malice.
"""

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

_TEMPORARY_MB = 64  # the size of the sandbox's /tmp, which is kept in memory
_PYTHON = Path(os.path.realpath(sys.executable))  # not a virtual environment's link to it
_PROBE_LIMIT_S = 30.0
_DYNAMIC_UIDS = range(61184, 65520)  # systemd's range for users that exist as long as a process does

# Python's option -S leaves out the folders of packages, and also exit() and quit(), which site.setquit() adds again.
# The digits of an integer need no limit, because time has one. The limits are set here, inside, because a limit on
# processes counts those of a user in a namespace. Empty packages stand in for the real ones of these names, whose
# imports would take seconds. Bubblewrap's programs die with their parent anyway; others ask Linux for it, each process
# for itself.
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
    """Limits of each process: CPU seconds, MiB of address space, MiB of a file, open files; and a number of processes.

    Threads count as processes. A process that exceeds ``cpu_s`` is killed; exceeding another limit is an error inside.
    """

    cpu_s: int = 10
    memory_mb: int = 1024
    file_mb: int = 16
    files: int = 64
    processes: int = 16


def check(mode: Mode) -> None:
    """Raise InputError, saying why and what to do, if this machine cannot run programs in this ``mode``.

    The first call tries it, because nothing else tells whether the machine allows namespaces.
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
    """Run ``main(seal, *inherited)`` of ``files[0]`` in a sandbox; the block's end kills it and all that it started.

    In ``rlimits`` mode, the block's end kills the process and its group, but no process that left the group. The
    program gets the ``inherited`` descriptors and no others. ``numpy`` makes numpy importable if it is installed.
    """
    inside = mode == "bubblewrap"
    packages = _numpy_paths() if numpy else []
    command = _python_command(inside, files, packages, limits, inherited)
    descriptors = list(inherited)
    folder = None
    with contextlib.ExitStack() as stack:
        if inside:
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            file.write(seccomp.system_call_filter(platform.machine()))
            file.seek(0)
            descriptors.append(file.fileno())
            command = [*_namespaces(), "--seccomp", str(file.fileno()), *_file_system(files, packages), "--", *command]
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pacedrl-", ignore_cleanup_errors=True))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=descriptors,
                cwd=folder,
                env={},
                process_group=None if inside else 0,  # bubblewrap stays in the caller's group and ends with it
            )
        )
        try:
            yield process
        finally:
            if not inside:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
            process.kill()  # bubblewrap's end is that of the first process in its namespace, and so of all in it
            process.wait()


def _python_command(
    inside: bool, files: Sequence[Path], packages: Sequence[Path], limits: Limits, inherited: Sequence[int]
) -> Sequence[str]:
    settings = (
        inside,
        ["/program"] if inside else [str(path.parent) for path in files],
        sorted({"/packages" if inside else str(path.parent) for path in packages}),
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
    return [str(_PYTHON), "-I", "-S", "-B", "-c", _START.format(settings=settings, program=files[0].stem)]


@functools.cache
def _namespaces() -> Sequence[str]:
    bwrap = shutil.which("bwrap") or "bwrap"
    unshared = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
    alone = (bwrap, *unshared, "--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv")
    if os.geteuid() != 0:
        user = ("--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534")
        return (*alone, *user, "--cap-drop", "ALL")
    # Root needs no user namespace to make the others. Inside one it would still be root to the kernel, which does not
    # limit root's processes. So the program becomes a user of its own, and thereby loses all capabilities. That user
    # could make user namespaces, which only the other branch turns off; the system call filter forbids them.
    return (*alone, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")


def _file_system(files: Sequence[Path], packages: Sequence[Path]) -> Sequence[str]:
    """Return arguments that show what ``_system`` names, four devices, the program's files and ``packages``."""
    compiled = [Path(importlib.util.cache_from_source(str(path))) for path in files]  # saves a few milliseconds
    everything = [(path, path) for path in _system()]
    everything += [(path, Path("/program") / path.name) for path in files]
    everything += [(path, Path("/program/__pycache__") / path.name) for path in compiled if path.exists()]
    everything += [(path, Path("/packages") / path.name) for path in packages]
    parents = {parent for _, there in everything for parent in there.parents} - {Path("/")}
    arguments: list[str] = []
    for parent in sorted([*parents, Path("/dev")]):
        arguments += ["--perms", "0755", "--dir", str(parent)]
    for here, there in everything:
        is_link = here.is_symlink() and here == there
        arguments += ["--symlink", os.readlink(here), str(there)] if is_link else ["--ro-bind", str(here), str(there)]
    for device in ("null", "zero", "random", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for folder in _packages():  # they are empty for the program
        arguments += ["--tmpfs", folder, "--remount-ro", folder]
    temporary = ["--size", str(_TEMPORARY_MB << 20), "--perms", "1777", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*arguments, *temporary, "--remount-ro", "/"]


@functools.cache
def _system() -> Sequence[Path]:
    """Return Python's executable and library folders, the system's shared libraries, and time zones, as they are."""
    others = (Path("/etc/ld.so.cache"), Path("/usr/share/zoneinfo"))
    paths = [*_shared_libraries(), *(path for path in others if path.exists())]
    library = Path(sys.base_prefix) / "lib"
    own = [library] if library != Path("/usr/lib") else []  # /usr/lib holds far more than Python
    for path in (*own, Path(sysconfig.get_path("stdlib")), _PYTHON):
        if not any(path.is_relative_to(shown) for shown in paths):
            paths.append(path)
    return paths


def _shared_libraries() -> list[Path]:
    """Return the folders of the system's shared libraries: those of the machine's kind, or else all of /usr/lib."""
    folders = [Path("/usr/lib64"), Path("/lib64")]
    for parent in (Path("/usr/lib"), Path("/lib")):
        folders += [parent] if parent.is_symlink() else sorted(parent.glob(f"{platform.machine()}-linux-*"))
    if not any((folder / "libc.so.6").exists() for folder in folders if not folder.is_symlink()):
        folders += [Path("/usr/lib"), Path("/lib")]
    return [folder for folder in dict.fromkeys(folders) if folder.exists()]


_PACKAGES = ("site-packages", "dist-packages", "node_modules", "_bundled")
"""Names of folders of installed packages; the last one holds the pip that venv installs."""


@functools.cache
def _packages() -> Sequence[str]:
    """Return the folders of installed packages, of any program, in what ``_system`` shows, each by its real path."""
    shown = [path for path in _system() if not path.is_symlink()]
    found = set()
    for root in shown:
        for folder, names, _ in os.walk(root):
            found |= {Path(os.path.realpath(os.path.join(folder, name))) for name in names if name in _PACKAGES}
            names[:] = [name for name in names if name not in _PACKAGES]
    return sorted(str(folder) for folder in found if any(folder.is_relative_to(root) for root in shown))


@functools.cache
def _numpy_paths() -> Sequence[Path]:
    """Return numpy's folder and that of its libraries; nothing if it is not installed."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    return [path for path in (folder, folder.with_name("numpy.libs")) if path.exists()]


@functools.cache
def _why_not() -> str | None:
    """Return the reason in one line why a bubblewrap sandbox does not work here; None if it does."""
    if platform.machine() not in seccomp.MACHINES:
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
    """Return the last line of what a program wrote to the temporary ``file``, at most 200 characters."""
    file.seek(0)
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
