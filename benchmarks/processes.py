"""One process per side, of which at most one runs at any time: starting them, asking them, taking turns.

Two inference libraries in one process disturb each other's threads, so each side gets its own, started by `worker.py`.
A process that is not asked is stopped (SIGSTOP): not even threads that wait by spinning take anything from the others.
"""

import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
WARM_UP, LAST_LINES = 2, 12


def environment(threads: int) -> dict[str, str]:
    """Of a side: its threads, which libraries read when they are imported, and nothing fetched from anywhere."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **offline}


def check_installed(sides: Mapping[str, str]) -> None:
    """Refuse sides that are not installed, before anything is measured.

    Args:
        sides: the package of each, by its name in pip, which is that of the module too.

    Raises:
        ValueError: for the first one that is missing; the message names the package.
    """
    for side, package in sides.items():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{side} is not installed: pip install {package}, or choose the others by --side")


class Worker:
    """A side in a process of its own; `ask` runs it, and it is stopped again once it has answered."""

    def __init__(self, side: str, family: str, threads: int):
        self.side = side
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), family, side, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment(threads),
            text=True,
        )

    def ready(self) -> int:
        """Wait for the libraries to be imported; returns the bytes of memory that they take."""
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return answer["memory"]

    def ask(self, do: str, **of_request: Any) -> dict[str, Any]:
        """The answer to a request, see worker.py.

        Raises:
            RuntimeError: if the process fails or ends; the message holds the last lines that it wrote.
        """
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # `_read` tells why
            self._process.stdin.write(json.dumps({"do": do, **of_request}) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with exit code {self._process.wait()}"}
        if "error" in answer:
            self._complaints.seek(0)
            last = "".join(self._complaints.readlines()[-LAST_LINES:])
            raise RuntimeError(f"{self.side}: {answer['error']}\n{last}".rstrip())
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                stream.close()


def take_turns(
    workers: dict[str, Worker], call_seconds: float, row_seconds: float, turns: tuple[int, int], warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of a call of each side in each turn, after turns to warm up; who begins a turn rotates.

    Args:
        call_seconds: a side repeats its call within a turn until so much time has passed.
        row_seconds: no turn begins after that.
        turns: the least and the most.
        warm_up: turns that are not counted.
    """
    measured: dict[str, list[float]] = {side: [] for side in workers}
    began, order, turn = time.monotonic(), list(workers), -warm_up
    while turn < turns[1] and (turn < turns[0] or time.monotonic() - began < row_seconds):
        for side in order:
            taken = workers[side].ask("turn", seconds=call_seconds if turn >= 0 else 0)["seconds"]
            if turn >= 0:
                measured[side].append(taken)
        order.append(order.pop(0))
        turn += 1
        if turn < 0 and time.monotonic() - began > row_seconds / 4:
            turn = 0  # calls so long are warm after one
    return measured


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
