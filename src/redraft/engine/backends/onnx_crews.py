"""Requests parted among the cores: a crew of lanes each, instead of every operator shared out among all cores.

An operator on a few rows is over before another core has taken up its part of it, and a hundred of them follow one
another. Requests are independent, so a core of its own for each crew waits for the others once an evaluation.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from redraft.engine.backends.onnx_cache import OnnxContext

Job = Callable[[], None]
Outcome = BaseException | None
THREAD_NAME = "redraft-crew"


class Workers:
    """Threads that wait for work, one for each crew but the first, whose work the caller does itself. They end when
    nobody holds this object any more."""

    def __init__(self, count: int) -> None:
        self._jobs: list[SimpleQueue[Job | None]] = [SimpleQueue() for _ in range(count)]
        self._done: SimpleQueue[Outcome] = SimpleQueue()
        for number, jobs in enumerate(self._jobs):
            name, given = f"{THREAD_NAME}-{number}", (jobs, self._done)
            threading.Thread(target=_serve, args=given, name=name, daemon=True).start()
        weakref.finalize(self, _dismiss, self._jobs)

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs all jobs at once, at most one more than there are threads; raises what the first to fail raised, when
        all have come to their end."""
        for queue, job in zip(self._jobs, jobs[1:], strict=False):
            queue.put(job)
        outcomes: list[Outcome] = [_outcome(jobs[0])]
        interrupted: Outcome = None
        while len(outcomes) < len(jobs):
            try:
                outcomes.append(self._done.get())
            except KeyboardInterrupt as error:  # the others still write where their contexts lie
                interrupted = error
        for failed in (interrupted, *outcomes):
            if failed is not None:
                raise failed


def _outcome(job: Job) -> Outcome:
    try:
        job()
    except BaseException as error:  # raised again in the caller's thread
        return error
    return None


def _serve(jobs: SimpleQueue[Job | None], done: SimpleQueue[Outcome]) -> None:
    while (job := jobs.get()) is not None:
        done.put(_outcome(job))
        del job  # or it would keep a request's memory until the next


def _dismiss(queues: Sequence[SimpleQueue[Job | None]]) -> None:
    for queue in queues:
        queue.put(None)


def crews_of(contexts: Sequence[OnnxContext], needed: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of the contexts by crew, as many in each as can be. Who has a crew stays in it, since changing it means
    moving keys and values; newcomers, the longest first, fill the smallest. Crews of nobody are left out. Afterwards no
    two crews share an arena."""
    crews: list[list[int]] = [[] for _ in range(count)]
    for i, context in enumerate(contexts):
        if context.crew is not None and context.crew < count:
            crews[context.crew].append(i)
    new = [i for i, context in enumerate(contexts) if context.crew is None or context.crew >= count]

    def load(crew: list[int]) -> tuple[int, int]:
        return len(crew), sum(needed[i] for i in crew)

    for i in sorted(new, key=lambda i: -needed[i]):
        min(crews, key=load).append(i)
    while len(most := max(crews, key=load)) > len(least := min(crews, key=load)) + 1:
        least.append(most.pop(min(range(len(most)), key=lambda at: needed[most[at]])))
    owners: dict[int, int] = {}
    for number, crew in enumerate(crews):
        for i in crew:
            context = contexts[i]
            context.crew = number
            # While one crew runs, another must not move what it reads: no arena holds contexts of two.
            if context.home is not None and owners.setdefault(id(context.home), number) != number:
                context.move_out(context.length)
    return [sorted(crew) for crew in crews if crew]
