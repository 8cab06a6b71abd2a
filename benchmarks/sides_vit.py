"""The sides that classify; all have the weights that preparation.py wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sides_pictures
import torch
from rows import OURS, PREPARED
from sides_pictures import infer, onnx_runtime, openvino, prepare, random_pictures, train
from torch import nn
from worker import Task

OUTPUT = ["logits"]


def import_libraries(side: str, threads: int) -> None:
    sides_pictures.import_libraries(side, threads)
    if side in (OURS, PREPARED):
        from hf_attn import AttnViTForImageClassification  # noqa: F401
    elif side == "timm":
        import timm  # noqa: F401
    elif side == "transformers":
        from transformers import ViTForImageClassification  # noqa: F401


def hf_attn_model(files: Path) -> nn.Module:
    from hf_attn import AttnViTForImageClassification

    return AttnViTForImageClassification.from_pretrained(files / "vit")


def timm_model(files: Path) -> nn.Module:
    import timm

    return timm.create_model(f"local-dir:{files / 'vit-timm'}", pretrained=True)


def transformers_model(files: Path) -> nn.Module:
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(files / "vit-transformers")


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    OURS: hf_attn_model,
    PREPARED: hf_attn_model,
    "timm": timm_model,
    "transformers": transformers_model,
}


def logits_of(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def build(side: str, row: dict[str, Any], files: Path, threads: int) -> Task:
    pictures = random_pictures(row["batch"], row["image_size"], row["image_size"])
    graph = files / f"vit-{row['batch']}.onnx"
    if side == "ONNX Runtime":
        return onnx_runtime(graph, pictures, threads, OUTPUT)
    if side == "OpenVINO":
        return openvino(graph, pictures, row["dtype"], threads, OUTPUT)
    model = MODELS[side](files)
    if row["trains"]:
        labels = torch.arange(row["batch"])
        return train(model, lambda: nn.functional.cross_entropy(logits_of(model(pictures)), labels), row["dtype"])
    return infer(prepare(side, model, row["dtype"]), pictures, lambda output: {"logits": logits_of(output)})
