"""The sides that detect; all have the weights that preparation.py wrote."""

from pathlib import Path
from typing import Any

import sides_pictures
import torch
from rows import OURS, PREPARED
from sides_pictures import infer, onnx_runtime, openvino, prepare, random_pictures, train
from torch import nn
from worker import Task

OUTPUTS = ["logits", "pred_boxes"]
BOXES = 20


def import_libraries(side: str, threads: int) -> None:
    sides_pictures.import_libraries(side, threads)
    if side in (OURS, PREPARED):
        from hf_attn import AttnDetrForObjectDetection  # noqa: F401
    elif side == "transformers":
        from transformers import DetrForObjectDetection  # noqa: F401


def hf_attn_model(files: Path) -> nn.Module:
    from hf_attn import AttnDetrForObjectDetection

    return AttnDetrForObjectDetection.from_pretrained(files / "detr")


def transformers_model(files: Path, trains: bool = False) -> nn.Module:
    """With the losses of all layers and the first stage frozen in training, as ours."""
    from transformers import DetrForObjectDetection

    given = {"auxiliary_loss": True} if trains else {}
    model = DetrForObjectDetection.from_pretrained(files / "detr-transformers", **given)
    for name, parameter in model.named_parameters():
        if "backbone" in name and not any(stage in name for stage in ("layer2", "layer3", "layer4")):
            parameter.requires_grad_(False)
    return model


def some_labels(classes: int) -> list[dict[str, torch.Tensor]]:
    """Of one picture: `BOXES` boxes, cxcywh in fractions."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.25 + 0.5 * torch.rand(BOXES, 2, generator=generator)
    sides = 0.05 + 0.4 * torch.rand(BOXES, 2, generator=generator)
    named = torch.randint(classes, (BOXES,), generator=generator)
    return [{"class_labels": named, "boxes": torch.cat([centres, sides], dim=1)}]


def build(side: str, row: dict[str, Any], files: Path, threads: int) -> Task:
    pictures = random_pictures(row["batch"], *row["picture"])
    graph = files / f"detr-{row['batch']}.onnx"
    if side == "ONNX Runtime":
        return onnx_runtime(graph, pictures, threads, OUTPUTS)
    if side == "OpenVINO":
        return openvino(graph, pictures, row["dtype"], threads, OUTPUTS)
    model = transformers_model(files, row["trains"]) if side == "transformers" else hf_attn_model(files)
    if row["trains"]:
        labels = some_labels(row["num_labels"])
        return train(model, lambda: model(pictures, labels=labels).loss, row["dtype"])
    model = prepare(side, model, row["dtype"])
    return infer(model, pictures, lambda output: {name: output[name] for name in OUTPUTS})
