"""A worker process, which its pool keeps on one core: it trains what its pool hands it, one member after another.

    python -m siitjax.sweep.processes.worker sweeps.betas:Betas START --flags ...

It is started by `siitjax.sweep.processes.pool`, with the same question as its parent and so the same members, and
speaks with it in the lines of `siitjax.sweep.processes.messages`: on its standard output it says what happens and asks
for members, on its standard input it is answered. When its parent is gone it goes too. A bug ends it by its traceback,
on its standard error, which the pool keeps.
"""

import importlib
import importlib.util
import os
import signal
import sys
import threading
from dataclasses import asdict
from queue import SimpleQueue
from typing import IO, Any

BAD_INPUT = 2


def find_question(name: str) -> Any:
    """The class that `module:Class` or `path/to/file.py:Class` names."""
    module, _, attribute = name.rpartition(":")
    if module.endswith(".py"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(module)))
        spec = importlib.util.spec_from_file_location("question", module)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules["question"] = found
        spec.loader.exec_module(found)
    else:
        found = importlib.import_module(module)
    return getattr(found, attribute)


def work(question: Any, start: str, said: IO[str], heard: IO[str]) -> int:
    """Trains until the pool has no more; gives the exit code."""
    # Imported here, since the signals must be ignored before anything takes long.
    from siitjax.base.errors import UserError, one_line
    from siitjax.sweep.checkpoint import Checkpoints, load
    from siitjax.sweep.engine import Engine, Watcher
    from siitjax.sweep.placement import Compiler, Policy, use_compilation_cache
    from siitjax.sweep.processes import messages
    from siitjax.sweep.results import Results

    use_compilation_cache()
    members = tuple(question.members())
    results = Results(question.folder, question.title, members)
    stopping, answers, speaking = threading.Event(), SimpleQueue(), threading.Lock()

    def say(message: messages.Said) -> None:
        with speaking:
            said.write(messages.say(message) + "\n")
            said.flush()

    class Speaker(Watcher):
        def started(self, index, member, epoch):
            say(messages.Started(index, epoch))

        def compiling(self, index, member):
            say(messages.Compiling(index))

        def epoch(self, index, member, epoch, seen):
            say(messages.Reached(index, epoch, [*map(str, seen)]))

        def finished(self, index, member, row):
            say(messages.Finished(index, row))

        def note(self, words):
            say(messages.Note(words))

    class Asking:
        def take(self, like):
            # A bucket is named by its first member.
            same = None if like is None else next(i for i, member in enumerate(members) if member.config == like)
            say(messages.Take(same))
            given = answers.get()
            return None if given.index is None else (given.index, given.spots)

    lanes = question.lanes or 1
    engine = Engine(
        members=members,
        compiled=Compiler(Policy(0, lanes, 1, "map"), lambda config: lanes),
        keep=results.write,
        load=lambda spot, like: load(results.checkpoints, spot, like),
        watcher=Speaker(),
        save_seconds=question.save_seconds,
        stopping=stopping,
    )

    def listen() -> None:
        for line in heard:
            message = messages.read_told(line)
            if isinstance(message, messages.Given):
                answers.put(message)
            elif engine.compiling:
                os._exit(0)
            else:
                stopping.set()
        os._exit(1)  # the parent is gone, and with it the right to write into the folder

    threading.Thread(target=listen, daemon=True).start()
    try:
        with Checkpoints(results.checkpoints, start, results.digest) as engine.checkpoints:
            engine.run(Asking())
            engine.checkpoints.wait()
        say(messages.Done(asdict(engine.occupancy)))
    except (UserError, OSError, MemoryError) as error:
        say(messages.Failed(one_line(error)))
        return BAD_INPUT
    return 0


def main(argv: list[str]) -> None:
    """The process: `argv` is the question's name, this start's name, and the question's flags."""
    name, start, *flags = argv
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the parent says what is to be done
    # What libraries print must not come between the lines that the parent reads.
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from siitjax.base.command import parse

    sys.exit(work(parse(find_question(name), [name, *flags]), start, said, sys.stdin))


if __name__ == "__main__":
    main(sys.argv[1:])
