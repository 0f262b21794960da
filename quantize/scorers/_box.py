"""`python _box.py SPEC`: runs a command that nobody trusts, as shut in as the machine allows.

A script of the standard library alone. SPEC is JSON: `run` (the command), `limits` (resource limits by name) and
`apart` (of `network`, `processes`, `sight` and `files`, what it gets of its own). For any of them it gets a user of its
own that may do nothing to others, so that it sees no environment and no memory of theirs. Processes of its own end when
the first of them does, whoever tries to survive; with `sight` they are all that /proc shows; of files it may write its
folder's alone. Exits as the command does, a signal as 128 + number; `NOT_APART` where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = ["NOT_APART", "main"]

#: The status that says that the machine does not allow what `apart` asks for.
NOT_APART = 97
_NO_COMMAND = 98

_CLONE = {
    "network": 0x40000000 | 0x08000000,  # with IPC
    "processes": 0x20000000,
    "sight": 0x20000000 | 0x00020000,
    "files": 0x00020000,
}
_NEW_USER = 0x10000000
_NOBODY = 65534
_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38
_MS_BIND, _MS_PRIVATE_ALL = 0x1000, 0x40000 | 0x4000
#: Read-only, no set-uid programs, no devices, no programs.
_MS_PROC = 1 | 2 | 4 | 8
#: The system call has one number on all architectures, and no function in older libraries (Linux 5.12).
_MOUNT_SETATTR, _HERE, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1


def main(spec: dict[str, Any]) -> int:
    """Run what `spec` describes; returns the status."""
    _die_with_parent()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    flags = 0
    for name in spec["apart"]:
        flags |= _CLONE[name] | _NEW_USER
    if flags:
        user, group = os.getuid(), os.getgid()
        if libc.unshare(flags) != 0:
            print(os.strerror(ctypes.get_errno()), file=sys.stderr)  # noqa: T201 (a script's own word)
            return NOT_APART
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1", encoding="ascii")
    if "files" in spec["apart"] and not _write_here_alone(libc):
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)  # noqa: T201 (as above)
        return NOT_APART
    if not {"processes", "sight"} & set(spec["apart"]):
        return _child(spec)
    # The first process in a new room of processes: when it ends, the kernel ends all others in it.
    first = os.fork()
    if first == 0:
        _die_with_parent()
        if "sight" in spec["apart"] and not _see_own_alone(libc):
            print(os.strerror(ctypes.get_errno()), file=sys.stderr)  # noqa: T201 (as above)
            os._exit(NOT_APART)
        os._exit(_child(spec))
    return _status(first)


def _see_own_alone(libc: Any) -> bool:
    """Mount a /proc that shows our own processes; False where it cannot, as where a container hides parts of its own.

    Read-only: on the kernel's settings in it root would have a say, whatever it is called here.
    """
    done: bool = (
        libc.mount(None, b"/", None, _MS_PRIVATE_ALL, None) == 0
        and libc.mount(b"proc", b"/proc", b"proc", _MS_PROC, None) == 0
    )
    return done


def _write_here_alone(libc: Any) -> bool:
    """Make everything but the current folder read-only, in our own view of the file systems; False where it cannot."""
    place = str(Path.cwd()).encode()

    def set_read_only(path: bytes, how: int, *, on: bool) -> bool:
        attributes = (ctypes.c_uint64 * 4)(_READ_ONLY if on else 0, 0 if on else _READ_ONLY, 0, 0)
        done: int = libc.syscall(_MOUNT_SETATTR, _HERE, path, how, attributes, ctypes.sizeof(attributes))
        return done == 0

    done = (
        libc.mount(None, b"/", None, _MS_PRIVATE_ALL, None) == 0
        and libc.mount(place, place, None, _MS_BIND, None) == 0
        and set_read_only(b"/", _RECURSIVE, on=True)
        and set_read_only(place, 0, on=False)
    )
    # Where we stand is still the folder under the new mount.
    os.chdir(place)
    return done


def _child(spec: dict[str, Any]) -> int:
    """The command in a process of its own."""
    command = os.fork()
    if command == 0:
        _die_with_parent()
        for name, value in spec["limits"].items():
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))
        try:
            os.execvpe(spec["run"][0], spec["run"], os.environ)  # noqa: S606 (no shell is the point)
        except OSError as error:
            print(f"{spec['run'][0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 (as above)
            os._exit(_NO_COMMAND)
    return _status(command)


def _status(process: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
