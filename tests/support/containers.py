"""Containers without an engine: the kernel's namespaces, a root of its own, and the limits that an engine sets.

An image is built by carrying out the Dockerfile in copies of a fresh Debian. A container is a process with that root,
read-only but for what is mounted, as the given user, without capabilities; all containers of a test share a network,
so each has the ports that compose.yaml says. What is not here: cgroups, seccomp, and the engine itself.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import psutil

from tests.support.dockerfiles import ROOT, Stage, seen_by_builder, stages
from tests.support.service import wait_until

T = TypeVar("T")

DEBOOTSTRAP: Final = "/usr/sbin/debootstrap"
SUITE: Final = "bookworm"
_CLONE_NEWNET: Final = 0x40000000
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
# Enters a root: $1, which $2 makes read-only (`ro`) or not. Then mounts, each as KIND SOURCE TARGET, up to `--`; then
# the program.
_ENTER: Final = """
set -eu
root=$1 mode=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in DEVICES; do : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir "$root/dev/shm"; mount -t tmpfs -o mode=1777,size=64m shm "$root/dev/shm"
while [ "$1" != -- ]; do
    case $1 in
        tmpfs) mount -t tmpfs -o "$2" tmpfs "$root$3" ;;
        rw) mount --bind "$2" "$root$3" ;;
        ro) mount --bind "$2" "$root$3"; mount -o remount,bind,ro "$root$3" ;;
    esac
    shift 3
done
shift
if [ "$mode" = ro ]; then mount -o remount,bind,ro "$root"; fi
exec chroot "$root" "$@"
""".replace("DEVICES", " ".join(_DEVICES))


def may_make_namespaces() -> bool:
    """Whether this user may do what an engine does, which most may not."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True).returncode
        == 0
    )


class Network:
    """A network namespace with nothing but a loopback interface, and a thread in it. Entered by `with`.

    What `call` runs, and every process that this starts, is in it.
    """

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self._holder: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)

    def __enter__(self) -> Network:
        ready = "ip link set lo up && " + "".join(f"ip address add {one}/32 dev lo && " for one in self._addresses)
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"{ready} echo ready && exec sleep infinity"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        assert self._holder is not None
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()

    def _enter(self) -> None:
        assert self._holder is not None and threading.current_thread() is not threading.main_thread()
        with open(f"/proc/{self._holder.pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the network")

    def call(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in the network."""
        return self._thread.submit(work).result()


class Mount(NamedTuple):
    """`source` is a path on this machine, or the options of a tmpfs."""

    kind: str
    source: str
    target: str


class Image(NamedTuple):
    """What was built: its root, and the stage that says how it is run."""

    root: Path
    stage: Stage

    @property
    def command(self) -> list[str]:
        return [*self.stage.last("ENTRYPOINT").words, *self.stage.last("CMD").words]

    @property
    def health_command(self) -> list[str]:
        return self.stage.last("HEALTHCHECK").text.partition("CMD ")[2].strip("[]").replace('"', "").split(", ")


def _confined(user: str, capabilities: Sequence[str], environment: Mapping[str, str], folder: str) -> list[str]:
    """The command that becomes this user, with these capabilities at most, with nothing but this environment."""
    uid, gid = user.split(":")
    bounding = ",".join(["-all", *(f"+{one.lower()}" for one in capabilities)])
    return [
        "/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs",
        f"--bounding-set={bounding}", "--inh-caps=-all",
        "/usr/bin/env", "--ignore-environment", f"--chdir={folder}", *(f"{k}={v}" for k, v in environment.items()),
    ]  # fmt: skip


class Container:
    """One process, and what it starts, in a root. `log` has what it prints."""

    def __init__(
        self,
        image: Image,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        user: str | None = None,
        capabilities: Sequence[str] = (),
        folder: str | None = None,
    ) -> None:
        """What is not given is the image's: environment, user, the folder to work in."""
        self.log = log
        self._root = image.root
        place_to_work = folder or image.stage.last("WORKDIR").text
        whole = {"HOME": "/", **image.stage.environment, **(environment or {})}
        self._inside = _confined(user or image.stage.last("USER").text, capabilities, whole, place_to_work)
        for mount in mounts:
            place = image.root / mount.target.lstrip("/")
            if mount.kind != "tmpfs" and Path(mount.source).is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            else:
                place.mkdir(parents=True, exist_ok=True)
        listed = [word for mount in mounts for word in mount]
        entering = ["sh", "-c", _ENTER, "enter", str(image.root), "ro", *listed, "--"]
        self._command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *entering, *self._inside, *command]
        self._outer: subprocess.Popen[bytes] | None = None

    def start(self) -> Container:
        """To be called in the network. When this returns, it is in its root, or has ended."""
        with self.log.open("ab") as log:
            self._outer = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(lambda: self._is_inside() or not self.is_running, 60, f"{self._inside} in its root")
        return self

    def _is_inside(self) -> bool:
        try:
            return os.readlink(f"/proc/{self.process.pid}/root") == str(self._root)
        except (IndexError, OSError, psutil.Error):
            return False

    @property
    def process(self) -> psutil.Process:
        """Its first process, which is process 1 inside."""
        assert self._outer is not None
        return psutil.Process(self._outer.pid).children()[0]

    @property
    def is_running(self) -> bool:
        assert self._outer is not None
        return self._outer.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code, once it has ended."""
        assert self._outer is not None
        return self._outer.wait(seconds)

    def stop(self, seconds: float) -> int:
        """As an engine stops it: SIGTERM to process 1, and SIGKILL after so many seconds. Returns the exit code."""
        assert self._outer is not None
        self.process.terminate()
        try:
            return self._outer.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it does not stop within {seconds} s:\n{self.text}") from None

    def kill(self) -> None:
        """Repeatable."""
        if self._outer is not None and self._outer.poll() is None:
            # Its child, process 1, is killed along with it, and then everything else inside.
            self._outer.kill()
            self._outer.wait(30)

    def run_inside(self, command: Sequence[str], seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """As `docker exec`, with the container's user and environment."""
        target = f"--target={self.process.pid}"
        entering = ["nsenter", target, "--mount", "--pid", "--net", "--root", *self._inside, *command]
        return subprocess.run(entering, capture_output=True, text=True, timeout=seconds)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextmanager
def gone_at_the_end() -> Iterator[list[Container]]:
    """A list: what is in it is killed at the end, whatever happens."""
    started: list[Container] = []
    try:
        yield started
    finally:
        for container in started:
            container.kill()


def make_debian(folder: Path) -> Path:
    """A fresh Debian with Python and nothing else of use: what stands for the base image.

    INGEST_TEST_DEBIAN names one that is there already, as to make one takes minutes.
    """
    given = os.environ.get("INGEST_TEST_DEBIAN")
    if given is not None:
        return Path(given)
    done = subprocess.run(
        [DEBOOTSTRAP, "--variant=minbase", "--include=python3-minimal,python3-venv", SUITE, str(folder)],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def download(lock: Path, folder: Path) -> None:
    """The files of a lock, with pip's settings on this machine; each must have one of the lock's hashes."""
    arguments = ["download", "--quiet", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--requirement", str(lock)], check=True, timeout=3600)


def build(debian: Path, wheels: Path, folder: Path) -> Image:
    """Carry out the Dockerfile, each stage in a copy of this Debian. Packages come from the folder `wheels`;
    there is no network."""
    context = folder / "context"
    for name in seen_by_builder():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, context / name)
    roots: dict[str | None, Path] = {}
    stage = None
    for stage in stages():
        root = folder / f"stage-{len(roots)}"
        subprocess.run(["cp", "--archive", str(debian), str(root)], check=True)
        roots[stage.name] = root
        _carry_out(stage, root, context, roots, wheels)
    assert stage is not None
    return Image(roots[stage.name], stage)


def _carry_out(stage: Stage, root: Path, context: Path, roots: Mapping[str | None, Path], wheels: Path) -> None:
    environment = {"PATH": _PATH, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt"}
    folder = "/"
    for word, flags, text in stage.instructions:
        if word == "ENV":
            environment |= stage.environment
        elif word == "WORKDIR":
            folder = text
            (root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            _copy(roots[flags["from"]] if "from" in flags else context, text.split(), root, folder)
        elif word == "RUN":
            mounts = [*Mount("ro", str(wheels), "/mnt"), "--"]
            inside = ["/usr/bin/env", "--ignore-environment", f"--chdir={folder}"]
            inside += [f"{name}={value}" for name, value in environment.items()]
            entering = ["sh", "-c", _ENTER, "enter", str(root), "rw", *mounts, *inside, "/bin/sh", "-c", text]
            isolated = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", *entering]
            done = subprocess.run(isolated, capture_output=True, text=True, timeout=1800)
            assert done.returncode == 0, f"RUN {text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        else:
            assert word in ("USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"), word


def _copy(source: Path, words: list[str], root: Path, folder: str) -> None:
    *names, target = words
    place = root / os.path.join(folder, target).lstrip("/")
    for name in names:
        found = source / name.lstrip("/")
        assert found.exists(), name
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True)
        else:
            into = place / found.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into)


def wait_healthy(container: Container, command: Sequence[str], seconds: float = 120) -> None:
    """Return when the check succeeds; it fails as long as nobody listens."""

    def is_healthy() -> bool:
        assert container.is_running, container.text
        return container.run_inside(command).returncode == 0

    wait_until(is_healthy, seconds, f"healthy, by {' '.join(command)}; {container.log} may say why")
