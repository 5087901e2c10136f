"""Members that one process trains and no other that writes into the folder meanwhile: a lock each.

A lock ends with its holder, however that ends, so a member whose process is lost can be taken by another, which goes on
from its last checkpoint. The file system must know locks (as NFS 4 does, and Lustre and GPFS where they are on).
"""

from pathlib import Path

from siitjax.base.files import Lock, hold
from siitjax.sweep.checkpoint import Spot, find
from siitjax.sweep.results import LOCK, Results
from siitjax.sweep.rows import read_rows


class Claims:
    """The members of one sweep that this process has taken."""

    def __init__(self, results: Results):
        self.results = results
        self.locks: dict[int, Lock] = {}

    def take(self, member: int) -> bool:
        """Takes a member; False where another process has it, or where its row is there."""
        if member in self.locks:
            return True  # its worker was lost
        with self.results.usable():
            lock = hold(self._file(member), patience=0.0)
            if not isinstance(lock, Lock):
                return False
            # Read when the lock is held: whoever held it before has written the row before it let go.
            if member in {row["member"] for row in read_rows(self.results.folder)}:
                lock.release()
                return False
        self.locks[member] = lock
        return True

    def release(self, member: int) -> None:
        """Lets go of a member, whose row is written."""
        self.locks.pop(member).release()

    def spots(self) -> dict[int, list[Spot]]:
        """Where each member was saved, by whichever process."""
        for _ in range(100):
            try:
                return find(self.results.checkpoints, self.results.digest)
            except FileNotFoundError:  # another process took a folder away while it was listed
                continue
        return {}

    def is_held(self, member: int) -> bool:
        """Whether any process has the member."""
        lock = hold(self._file(member), patience=0.0)
        if isinstance(lock, Lock):
            lock.release()
            return False
        return True

    def _file(self, member: int) -> Path:
        return self.results.folder / f"{LOCK}.member-{member:04d}"
