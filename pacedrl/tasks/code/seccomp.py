"""Decides which system calls a sandboxed program may make: a classic BPF program for Linux' seccomp.

Calls that no solution needs fail with EPERM; all others work. A call is forbidden if it

- reaches into another process, for example the one that ends the sandbox;
- makes namespaces, where an unprivileged user has all capabilities and so can reach far more of the kernel;
- keeps memory that the limit on a process' address space does not count;
- opens a socket other than a Unix one: a network namespace does not separate some families, for example vsock;
- is for administrators only, or known for holes in the kernel.
"""

import errno
import struct

# Name from ``platform.machine()`` → number in the kernel ("audit architecture") and column below.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64; None if the machine has no such call.
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
    # The machine itself.
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
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = (0x00050000 | error for error in (errno.EPERM, errno.ENOSYS))


def system_call_filter(machine: str) -> bytes:
    """Return the program for ``bwrap --seccomp``. Raises KeyError for a machine that it does not know."""
    audit, column = MACHINES[machine]
    # Each instruction is an operation, how many instructions to skip if it is true and if it is false, and a value.
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _SECOND_NUMBERS),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # The flags of clone3 are in memory, where a filter cannot look. The C library uses clone if there is no clone3.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _UNKNOWN)]
    for number, test, skipped, value in (
        (_CLONE[column], _ANY_BIT, (0, 1), _CLONE_NEW),
        (_SOCKET[column], _EQUAL, (1, 0), _AF_UNIX),
        (_SOCKETPAIR[column], _EQUAL, (1, 0), _AF_UNIX),
    ):
        program += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _FIRST_ARGUMENT), (test, *skipped, value)]
        program += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*program, (_RETURN, 0, 0, _ALLOW)])
