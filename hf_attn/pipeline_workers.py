"""Work done side by side by processes that begin as copies of this one, as those of torch's DataLoader do.

Threads would wait for each other: between two small products of a step Python's lock changes hands.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

_function: Callable[[Any], dict[str, torch.Tensor]]  # of a worker


def can_fork() -> bool:
    """Whether this system copies processes: Linux does; macOS could, but its libraries do not bear it."""
    return sys.platform == "linux"


def side_by_side(
    function: Callable[[Any], dict[str, torch.Tensor]], items: Iterable[Any], workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """What a function makes of each item, in their order; tensors by name, on the CPU.

    The workers share this process's memory, a model's weights for example, and its threads are divided among them.
    """
    import multiprocessing  # not needed by many, and not quick to import
    from concurrent.futures import ProcessPoolExecutor

    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, wherever there are threads
        pool = ProcessPoolExecutor(workers, context, _begin, (function, threads))
        try:
            for made in pool.map(_work, items):
                yield {name: torch.from_numpy(array) for name, array in made.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], dict[str, torch.Tensor]], threads: int) -> None:
    global _function
    _function = function
    torch.set_num_threads(threads)


def _work(item: Any) -> dict[str, Any]:
    made = _function(item)
    return {name: (one.float() if one.dtype == torch.bfloat16 else one).numpy() for name, one in made.items()}
