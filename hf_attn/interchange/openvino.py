"""ViT and DETR for OpenVINO, which runs them fast on CPUs of Intel: model.xml with its weights, in model.bin, checked.

Inputs and outputs are those of the graph in hf_attn/interchange/onnx.py, of which it is made. Weights are float32; at
which precision OpenVINO computes is chosen when a graph is compiled, by INFERENCE_PRECISION_HINT.

Translators are refused. OpenVINO 2026.4 keeps the code that it made for the first word, whose query sees one key, and
runs it for all that follow; on a CPU with AVX-512 all logits are wrong from the 16th word on, by 1 to 5, where those
of onnxruntime are right to 2e-6. They are right with CPU_RUNTIME_CACHE_CAPACITY 0, but that is set by those who run a
graph, not in the graph.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hf_attn.interchange.early_checks import check_new_directory
from hf_attn.interchange.onnx import OnnxExport, kind_of, missing_package, write_beside, write_graph
from hf_attn.interchange.onnx_checks import Tensors, largest_difference
from hf_attn.training.checkpoints import whole_directory


def export_openvino(model: Any, output_dir: str | os.PathLike, processor: Any | None = None) -> OnnxExport:
    """Write a model for OpenVINO, checked there against PyTorch at other sizes than it was traced with.

    Args:
        model: a classifier, ViT without a head, or detector of this package, in eval mode, on the CPU and in float32.
        output_dir: not there yet, or empty.
        processor: its tokenizer or image processor, to be saved beside the graphs.

    Raises:
        FileExistsError: if there is something in `output_dir`.
        ImportError: if openvino or onnxscript is not installed.
        ValueError: if it is a translator or another model, or one that cannot be traced, or a graph that OpenVINO
            cannot read or that gives other outputs there; nothing is then written.
    """
    _check_installed()
    output = Path(output_dir)
    check_new_directory(output)
    kind = kind_of(model)
    if model.can_generate():
        raise ValueError(
            f"OpenVINO computes wrong logits for {type(model).__name__}, from the 16th word of a translation on; "
            "export it to onnx or ctranslate2"
        )
    graphs = kind.graphs(model)
    names = [_stored(graph.name) for graph in graphs]
    with whole_directory(output.absolute()) as temporary, TemporaryDirectory() as of_onnx:
        for graph, name in zip(graphs, names, strict=True):
            traced = Path(of_onnx) / graph.name
            write_graph(graph, traced)
            convert_graph(traced, temporary / name)
        difference = check_openvino(model, temporary)
        write_beside(model, processor, temporary)
    return OnnxExport([output / name for name in names], difference)


@torch.no_grad()
def check_openvino(model: Any, directory: str | os.PathLike) -> float:
    """The largest difference between the outputs of a model and those of its graphs, run by OpenVINO in float32.

    Differences are divided by the largest output, where that is above 1.

    Raises:
        ValueError: if it is more than 1e-4.
    """
    compared = kind_of(model).compare(model, CompiledGraphs(Path(directory)).run)
    return largest_difference(compared, "OpenVINO", "openvino and onnxscript")


def _check_installed() -> None:
    try:
        import onnxscript  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise missing_package("OpenVINO", error) from error


def convert_graph(source: Path, target: Path) -> None:
    """A graph of ONNX as .xml and .bin of OpenVINO.

    Raises:
        ValueError: if OpenVINO cannot read it.
    """
    import openvino

    try:  # not by openvino.convert_model, which reports each use to its authors, and writes where `source` lay
        model = openvino.Core().read_model(source)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"{source.name} cannot be read by OpenVINO {openvino.__version__} ({reason}); another release may do "
            "better, or export to onnx"
        ) from error
    _antialias(model)
    openvino.save_model(model, target, compress_to_fp16=False)


def _antialias(model: Any) -> None:
    """Let pictures be resized as in torch: OpenVINO has ONNX's antialiased cubic resizing under the name of Pillow.

    Under ONNX's own name, its CPU device reads `antialias` and does without.
    """
    from openvino import opset11

    for node in model.get_ops():
        if node.get_type_name() != "Interpolate" or not node.get_attributes()["antialias"]:
            continue
        picture, sizes = node.input_value(0), node.input_value(1)  # (1, channels, rows, columns) and four sizes
        rows_and_columns = np.array([2, 3])
        resized = opset11.interpolate(
            picture,
            opset11.gather(sizes, rows_and_columns, np.array(0)),
            "bicubic_pillow",
            "sizes",
            pads_begin=[0] * 4,
            pads_end=[0] * 4,
            cube_coeff=node.get_attributes()["cube_coeff"],
            axes=rows_and_columns,
        )
        node.output(0).replace(resized.output(0))


class CompiledGraphs:
    """Runs the graphs of a directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.compiled: dict[str, Any] = {}

    def run(self, name: str, inputs: Tensors) -> dict[str, np.ndarray]:
        import openvino

        if name not in self.compiled:
            path, exactly = self.directory / _stored(name), {"INFERENCE_PRECISION_HINT": "f32"}
            self.compiled[name] = openvino.Core().compile_model(path, "CPU", exactly)
        graph = self.compiled[name]
        found = graph({name: tensor.numpy() for name, tensor in inputs.items()})
        return {output.any_name: np.array(found[output]) for output in graph.outputs}


def _stored(name: str) -> str:
    """What OpenVINO's file of a graph is called."""
    return str(Path(name).with_suffix(".xml"))
