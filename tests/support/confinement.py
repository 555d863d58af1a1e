"""What a unit of deploy/systemd allows, applied to a command without systemd: `python -m tests.support.confinement
FILE… -- COMMAND…`, the files being the unit and its drop-ins.

Applied as the unit says: NoNewPrivileges, CapabilityBoundingSet, SystemCallFilter, RestrictAddressFamilies,
MemoryDenyWriteExecute, LimitNOFILE, LimitCORE, UMask; and, where this process may mount, ProtectSystem=strict with
only INGEST_DATA_DIR to write to, and ProcSubset=pid. Not applied: another user, a /tmp of its own.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

ANALYZE: Final = "/usr/bin/systemd-analyze"
LIBSECCOMP: Final = "libseccomp.so.2"
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 24, 28, 38
_NO_ROOT = 0b11  # SECBIT_NOROOT and its lock: user 0 gets no capabilities by starting a program.
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_EQUAL, _MASKED_EQUAL = 4, 7
_MOST_CAPABILITIES = 64
_WRITABLE = ("/dev", "/proc", "/sys")


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


Rule = tuple[str, tuple[int, int, int, int] | None]
"""A system call, and what one of its arguments must be: number, comparison, two values."""


def settings(files: Iterable[Path]) -> dict[str, list[str]]:
    """Name -> values of the section [Service], in order."""
    found: dict[str, list[str]] = {}
    for file in files:
        for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", file.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(value)
    return found


@lru_cache
def calls_of(group: str) -> frozenset[str]:
    """The system calls of a group such as @system-service, as this machine's systemd knows it."""
    listed = subprocess.run(
        [ANALYZE, "syscall-filter", group], capture_output=True, text=True, check=True, timeout=60
    )
    names = [line.strip() for line in listed.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return frozenset().union(*[calls_of(name) if name.startswith("@") else {name} for name in names])


def allowed_calls(filters: Iterable[str]) -> frozenset[str]:
    """What is left of the groups of SystemCallFilter when those with a ~ are taken away."""
    allowed: frozenset[str] = calls_of("@default")
    for words in filters:
        named = frozenset[str]().union(*[calls_of(name) for name in words.removeprefix("~").split()])
        allowed = allowed - named if words.startswith("~") else allowed | named
    return allowed


def confine(given: dict[str, list[str]]) -> None:
    """Apply the settings to this process, for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    is_root = os.geteuid() == 0
    if is_root and given["ProtectSystem"] == ["strict"]:
        _protect_files(libc, Path(os.environ["INGEST_DATA_DIR"]))
    for name, which in (("LimitNOFILE", resource.RLIMIT_NOFILE), ("LimitCORE", resource.RLIMIT_CORE)):
        for value in given.get(name, []):
            most = min(int(value), resource.getrlimit(which)[1]) if int(value) else 0
            resource.setrlimit(which, (most, most))
    os.umask(int(given["UMask"][-1], 8))
    if is_root:
        assert given["CapabilityBoundingSet"] == [""]
        _check(libc.prctl(_PR_SET_SECUREBITS, _NO_ROOT, 0, 0, 0))
        for capability in range(_MOST_CAPABILITIES):
            # Not all of them exist.
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    assert given["NoNewPrivileges"] == ["yes"]
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    families = [getattr(socket, name) for name in given["RestrictAddressFamilies"][-1].split()]
    calls: list[Rule] = [(name, None) for name in allowed_calls(given["SystemCallFilter"]) if name != "socket"]
    calls += [("socket", (0, _EQUAL, int(family), 0)) for family in families]
    assert given["MemoryDenyWriteExecute"] == ["yes"]
    both, runs = mmap.PROT_WRITE | mmap.PROT_EXEC, mmap.PROT_EXEC
    code: list[Rule] = [("mmap", (2, _MASKED_EQUAL, both, both))]
    code += [(name, (2, _MASKED_EQUAL, runs, runs)) for name in ("mprotect", "pkey_mprotect")]
    # Made before the first is loaded, which may refuse what the second needs.
    filters = [_filter(_ALLOW, _REFUSE, code), _filter(_REFUSE, _ALLOW, calls)]
    for load in filters:
        load()


def _protect_files(libc: ctypes.CDLL, state: Path) -> None:
    if libc.unshare(_CLONE_NEWNS):
        sys.stderr.write("no mounts here: files are not protected\n")
        return
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    state.mkdir(parents=True, exist_ok=True)
    kept = str(state.resolve())
    _check(libc.mount(kept.encode(), kept.encode(), None, _MS_BIND, None))
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for mount in sorted(mounts):
        if mount != kept and not mount.startswith(_WRITABLE):
            _check(libc.mount(None, mount.encode(), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY, None))
    _check(libc.mount(b"proc", b"/proc", b"proc", 0, b"subset=pid"))


def _filter(otherwise: int, action: int, rules: Iterable[Rule]) -> Callable[[], None]:
    """A filter of system calls, in which those that the rules name get this action. Returns what loads it."""
    library = ctypes.CDLL(LIBSECCOMP, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(otherwise)))
    for name, comparison in rules:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            # Of another architecture.
            continue
        compared = (_Comparison * 1)(_Comparison(*comparison)) if comparison is not None else None
        added = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), number, int(comparison is not None), compared
        )
        if added:
            raise OSError(-added, f"{name}: {os.strerror(-added)}")

    def load() -> None:
        loaded = library.seccomp_load(context)
        if loaded:
            raise OSError(-loaded, os.strerror(-loaded))

    return load


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def prove() -> None:
    """That it is confined: each of these must fail, or the tests would show nothing."""
    attempts: dict[str, Callable[[], object]] = {
        "code that can be changed": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
        "another kind of socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "a system call that is not allowed": lambda: os.chown("/proc/self", 0, 0),
        "another root": lambda: os.chroot("/"),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        raise SystemExit(f"not confined: {what}")


def main(arguments: list[str]) -> None:
    at = arguments.index("--")
    given = settings(map(Path, arguments[:at]))
    confine(given)
    prove()
    command = arguments[at + 1 :]
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
