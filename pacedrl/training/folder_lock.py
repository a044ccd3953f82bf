"""A lock that lets one process at a time work in a folder.

The operating system holds the lock, so it ends with its process, even by SIGKILL.
"""

import fcntl
import os
import platform
from pathlib import Path

LOCK_FILE = ".lock"
_held: dict[Path, int] = {}
"""Folder → descriptor of its lock file, for every lock that this process holds."""


class FolderBusy(Exception):
    """Another process holds the lock; the message names it if it is known."""


def lock_folder(folder: Path) -> bool:
    """Lock the folder, which must exist; return False if its file system has no locks.

    The file ``.lock`` in it stays locked until `unlock_folder`, or the end of the process. The lock belongs to the
    process, which may take it twice: a notebook does so when it builds its trainer again. Child processes do not
    inherit it: the descriptor is closed in programs that are started, and in forks.

    Raises FolderBusy, and OSError if the file cannot be written.
    """
    folder = folder.resolve()
    if folder in _held:
        return True
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.close(descriptor)
        raise FolderBusy(f"another process ({holder})" if holder else "another process") from None
    except OSError:  # some network file systems have none
        os.close(descriptor)
        return False
    if os.fstat(descriptor).st_nlink == 0:  # its holder has just removed the file that we locked
        os.close(descriptor)
        return lock_folder(folder)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"pid {os.getpid()} on {platform.node()}\n".encode())
    _held[folder] = descriptor
    return True


def unlock_folder(folder: Path, remove: bool = False) -> None:
    """Unlock the folder if this process holds the lock. With ``remove``, also remove it if it is empty."""
    folder = folder.resolve()
    descriptor = _held.pop(folder, None)
    if descriptor is None:
        return
    (folder / LOCK_FILE).unlink(missing_ok=True)
    if remove and not any(folder.iterdir()):
        folder.rmdir()
    os.close(descriptor)


def _leave_to_parent() -> None:
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
