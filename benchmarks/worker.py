"""The process of one side: imports its libraries, then does what it reads from stdin, one JSON object a line.

Started by processes.py as `worker.py family side threads`. Requests and answers:

    (after the imports)                         {"memory": bytes in use}
    {"do": "build", "row": {...}, "files": ...} {"units": of a call} and forgets what was built before
    {"do": "turn", "seconds": s}                {"seconds": of a call, the mean of as many as fit into s}
    {"do": "output"}                            {"numbers": [...]} or {"tokens": [[...], ...]}
    {"do": "memory"}                            {"peak": most bytes in use since the last "build"}

A call that fails answers {"error": ...}. What libraries print goes to stderr.
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Task(NamedTuple):
    """What a side does in a row."""

    call: Callable[[], object]  # what is timed
    output: Callable[[], dict[str, Any]] | None = None  # what is compared with the other sides'


def memory(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Give back what is free, and count the peak from here on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def turn(task: Task, seconds: float) -> float:
    """Seconds of a call. A first one that is not counted warms the caches, which another side has filled."""
    began = time.perf_counter()
    task.call()
    first = time.perf_counter() - began
    if first >= seconds:
        return first
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        task.call()
        calls += 1
    return taken / calls


class Side:
    """Answers requests; holds at most one task."""

    def __init__(self, family: str, side: str, threads: int):
        self.module = importlib.import_module(f"sides_{family}")
        self.side, self.threads = side, threads
        self.module.import_libraries(side, threads)
        self.task: Task | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "build":
            self.task = None
            forget_peak()
            self.task = self.module.build(self.side, request["row"], Path(request["files"]), self.threads)
            return {}
        if request["do"] == "memory":
            return {"peak": memory("VmHWM")}
        if self.task is None:
            raise ValueError(f"{request['do']!r} was asked of {self.side} before 'build'")
        if request["do"] == "output":
            return self.task.output() if self.task.output else {}
        return {"seconds": turn(self.task, request["seconds"])}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        side = Side(sys.argv[1], sys.argv[2], int(sys.argv[3]))
        say({"memory": memory("VmRSS")})
        for line in sys.stdin:
            say(side.answer(json.loads(line)))
    except Exception as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
