"""What the sides of vit and detr have in common: models of torch, and graphs in ONNX Runtime and OpenVINO."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import PREPARED
from torch import nn
from turns import DTYPES
from worker import Task


def random_pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """(batch, 3, height, width), the same on all sides."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def numbers(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared, as lists."""
    return {"numbers": {name: np.asarray(values).flatten().tolist() for name, values in outputs.items()}}


def prepare(side: str, model: nn.Module, dtype: str) -> nn.Module:
    """For inference in a number format: packed where the side says so, plain otherwise."""
    model = model.eval()
    if side == PREPARED:
        return model.prepare_for_inference(dtype=None if dtype == "fp32" else DTYPES[dtype])
    return model.to(DTYPES[dtype])


def infer(model: nn.Module, pictures: torch.Tensor, read: Callable[[Any], dict[str, torch.Tensor]]) -> Task:
    """A forward of a batch.

    Args:
        read: takes what is compared from the model's output.
    """
    pictures = pictures.to(next(model.parameters()).dtype)

    def call() -> Any:
        with torch.inference_mode():
            return model(pictures)

    return Task(call, lambda: numbers({name: values.float() for name, values in read(call()).items()}))


def train(model: nn.Module, loss_of: Callable[[], torch.Tensor], dtype: str) -> Task:
    """A step: forward, backward, torch's fused AdamW. Weights stay in float32; bfloat16 is autocast's."""
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Task(call)


def onnx_runtime(graph: Path, pictures: torch.Tensor, threads: int, names: list[str]) -> Task:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: pictures.numpy()}

    def call() -> list[np.ndarray]:
        return session.run(names, feed)

    return Task(call, lambda: numbers(dict(zip(names, call(), strict=True))))


def openvino(graph: Path, pictures: torch.Tensor, dtype: str, threads: int, names: list[str]) -> Task:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
    feed = pictures.numpy()

    def call() -> Any:
        return request.infer([feed], share_inputs=True)

    return Task(call, lambda: numbers({name: call()[name].astype(np.float32) for name in names}))


def import_libraries(side: str, threads: int) -> None:
    """Before any model is built: what a user of this side imports."""
    torch.set_num_threads(threads)
    if side == "ONNX Runtime":
        import onnxruntime  # noqa: F401
    elif side == "OpenVINO":
        import openvino  # noqa: F401
