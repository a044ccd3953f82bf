"""Which system calls a sandboxed program may make: a classic BPF program for Linux' seccomp.

Calls that no solution needs fail with EPERM; all others work. Forbidden are those that

- reach into another process, for example the one that ends the sandbox;
- make namespaces, in which an unprivileged user has all capabilities and with them far more of the kernel within reach;
- keep memory that the limit on a process' address space does not count;
- open a socket other than a Unix one: some families, for example vsock, are not separated by a network namespace;
- only administrators use, or are known for holes in the kernel.
"""

from __future__ import annotations

import errno
import struct

# The machine's number in the kernel ("audit architecture"), and the column of the tables below that is the machine's.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64; None where the machine has no such call.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # Namespaces and file systems.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # Memory outside the address space: files, segments and queues without a name, and pages that a pipe keeps.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    "io_setup": (206, 0),
    # Known for holes.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "personality": (135, 92),
    "remap_file_pages": (216, 234),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "lookup_dcookie": (212, 18),
    # The machine's.
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "vhangup": (153, 58),
}
_CLONE = (56, 220)
_CLONE3 = 435
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)

_CLONE_NEW = 0x7E020000  # the flags that make a mount, cgroup, UTS, IPC, user, PID or network namespace
_AF_UNIX = 1
_SECOND_NUMBERS = 0x40000000  # where x86_64 has a second set of numbers for the same calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in what the kernel shows; of the argument, its lower half
_VERDICTS = {
    "allow": 0x7FFF0000,
    "refuse": 0x00050000 | errno.EPERM,
    "unknown": 0x00050000 | errno.ENOSYS,
    "kill": 0x80000000,
}


def knows(machine: str) -> bool:
    """Whether there is a filter for this machine, named as ``platform.machine()`` does."""
    return machine in _MACHINES


def system_call_filter(machine: str) -> bytes:
    """The program for ``bwrap --seccomp``. KeyError for a machine that it does not know."""
    audit, column = _MACHINES[machine]
    forbidden = [numbers[column] for numbers in _FORBIDDEN.values() if numbers[column] is not None]
    checks = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_EQUAL, audit, None, "kill"),
        (_LOAD, _NUMBER, None, None),
        (_AT_LEAST, _SECOND_NUMBERS, "refuse", None),
        *((_EQUAL, number, "refuse", None) for number in forbidden),
        # Its flags are in memory, where a filter cannot look. The C library takes clone where there is no clone3.
        (_EQUAL, _CLONE3, "unknown", None),
        (_EQUAL, _CLONE[column], "clone", None),
        (_EQUAL, _SOCKET[column], "socket", None),
        (_EQUAL, _SOCKETPAIR[column], "socket", "allow"),
    ]
    labels = {"clone": len(checks), "socket": len(checks) + 2}
    checks += [
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_ANY_BIT, _CLONE_NEW, "refuse", "allow"),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_EQUAL, _AF_UNIX, "allow", "refuse"),
    ]
    labels |= {verdict: len(checks) + n for n, verdict in enumerate(_VERDICTS)}
    program = b""
    for n, (code, value, then, otherwise) in enumerate(checks):
        jumps = [labels[label] - n - 1 if label else 0 for label in (then, otherwise)]
        program += struct.pack("=HBBI", code, *jumps, value)
    return program + b"".join(struct.pack("=HBBI", _RETURN, 0, 0, verdict) for verdict in _VERDICTS.values())
