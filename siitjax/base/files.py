"""Files that are there whole or not at all, and files that one process holds.

What was written is on the disk before a name stands for it, and the name is on the disk before anything that relies on
it is written: so no power cut leaves a row without the files of its member.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 3.0
"""Seconds to wait for a lock: the workers of a process that was killed let go of it a moment later."""


def sync(path: Path) -> None:
    """Has a file's content, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a folder, some network file systems say so
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it; their names are on the disk when this returns."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Puts `content` at `path`: a reader, or a crash, sees the old file or the new one and nothing between.

    It is on the disk when this returns.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        sync(path.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, of the same suffix; what was written is put at `path` when it is whole."""
    new = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield new
        sync(new)
        os.replace(new, path)
        sync(path.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: str


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds, and every child that the descriptor is passed to; it ends with the last."""

    path: Path
    descriptor: int

    def release(self) -> None:
        """Lets go of the lock, and takes its file away."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def hold(path: Path, patience: float = PATIENCE) -> Lock | Holder:
    """Takes the lock at `path`, or says who holds it after so many seconds. The kernel lets go of it when its holders
    die."""
    until = time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before took the file away: what we locked may be no longer there.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return Lock(path, descriptor)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() > until:
                pid = os.pread(descriptor, 20, 0).decode().strip()
                os.close(descriptor)
                return Holder(pid or "unknown")
        os.close(descriptor)
        time.sleep(0.05)
