"""Start a command under a unit's restrictions: no new privileges, its user, its system calls, no code in data.

Run by any Python: `confined.py UID GID MDWE ERRNO CALLS COMMAND...`, the allowed system calls with commas between them.
Others fail with the unit's error number, as under systemd.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65
ALLOW, FAIL_WITH = 0x7FFF0000, 0x00050000


def main() -> None:
    uid, gid, mdwe, number, calls, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_rule_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint)
    seccomp.seccomp_load.argtypes = (ctypes.c_void_p,)
    context = seccomp.seccomp_init(FAIL_WITH | getattr(errno, number))
    for name in calls.split(","):
        call = seccomp.seccomp_syscall_resolve_name(name.encode())
        if call >= 0:  # others are another machine's
            assert seccomp.seccomp_rule_add(context, ALLOW, call, 0) == 0, name
    if uid != "-":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    if mdwe == "yes" and libc.prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
        sys.stderr.write("this kernel cannot deny writable and executable memory: it is not denied\n")
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert seccomp.seccomp_load(context) == 0
    os.execv(command[0], command)  # noqa: S606 - the test's own command


if __name__ == "__main__":
    main()
