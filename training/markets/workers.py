"""Work on several cores: the same calls with the same results in the same order, whatever the number of processes.

Processes are started afresh (no state of the parent's reaches them), compute with one thread each, end with the
parent, however that ends, and leave Ctrl-C to it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import TypeVar

import structlog

from training.errors import TrainingError

Task = TypeVar("Task")
Result = TypeVar("Result")
OnDone = Callable[[], None]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that numerical libraries read when they are loaded."""
END_S = 10.0
"""Longest wait for a killed process to be gone."""
PARENT_GONE = 1
"""Exit code of a worker whose parent has died."""


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Runs calls, in this process or in others; made by `workers`."""

    def __init__(self, count: int, executor: ProcessPoolExecutor | None) -> None:
        self.count = count
        self._executor = executor

    def map(self, call: Callable[[Task], Result], tasks: Sequence[Task], on_done: OnDone | None = None) -> list[Result]:
        """Return what `call` returns for each task, in their order.

        Args:
            call: A function that another process finds by its name.
            tasks: One argument each.
            on_done: Called after each.

        Raises:
            TrainingError: A process died; and whatever `call` raises.
        """
        done = on_done or (lambda: None)
        results: list[Result] = []
        if self._executor is None:
            for task in tasks:
                results.append(call(task))
                done()
            return results
        futures = [self._executor.submit(call, task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                done()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process died, most likely for want of memory: use fewer --workers or fewer bars"
            ) from error
        return [future.result() for future in futures]


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Yield `count` workers; a single one is this process. An error or Ctrl-C ends them at once."""
    if count <= 1:
        yield Workers(1, None)
        return
    others = set(multiprocessing.active_children())
    with _one_thread_each():
        executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)
        try:
            yield Workers(count, executor)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            ours = set(multiprocessing.active_children()) - others
            for process in ours:
                process.kill()
            for process in ours:
                process.join(END_S)
            raise
        executor.shutdown()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Have processes started meanwhile compute with one thread each: there is one of them for each core."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin() -> None:
    """Begin a worker: Ctrl-C is the parent's to see, logs go to stderr, and no parent means no work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(PARENT_GONE)
