"""Our models as ONNX, for onnxruntime and whatever else reads it, each checked against PyTorch before it is kept.

    translator  encoder.onnx, decoder.onnx: one token with cache (examples/translate_onnx.py translates with the two)
    ViT         model.onnx: pixel_values → logits, or last_hidden_state and pooler_output of a model without a head
    DETR        model.onnx: pixel_values and pixel_mask → logits and pred_boxes, pictures of one size in a batch

All are for any batch and any size that the model itself takes, in float32, with ids and masks in int64. DETR looks at
each picture in its own size, so pictures of different sizes come one by one, not padded to a batch; of a picture with
zeros in its mask all outputs are NaN. Beside the graphs lie the configuration, the settings of `generate`, and the
files of the tokenizer or image processor.
"""

import copy
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.onnx.errors import OnnxExporterError
from transformers import PreTrainedTokenizerBase

from hf_attn.interchange.early_checks import check_new_directory
from hf_attn.interchange.onnx_checks import (
    Compared,
    Run,
    Sessions,
    compare_detr,
    compare_translator,
    compare_vit,
    largest_difference,
)
from hf_attn.interchange.onnx_graphs import Graph, detr_graphs, translator_graphs, vit_graphs
from hf_attn.tokenization_translator import save_tokenizer
from hf_attn.training.checkpoints import whole_directory

LARGEST_FILE = 2**31 - 2**24  # bytes of weights; one file of protobuf may have 2 GiB, graph included
OPSET = 20  # the first with Gelu
KERNELS = ("eager", "sdpa")  # that can be traced


class OnnxExport(NamedTuple):
    """files: of the graphs. difference: the largest of their outputs from the model's, see `check_onnx`."""

    files: list[Path]
    difference: float


def export_onnx(model: Any, output_dir: str | os.PathLike, processor: Any | None = None) -> OnnxExport:
    """Write a model as ONNX, checked in onnxruntime against PyTorch at other sizes than it was traced with.

    Args:
        model: a translator, classifier, ViT without a head, or detector of this package, in eval mode, on the CPU and
            in float32.
        output_dir: not there yet, or empty. Weights of 2 GB and more lie beside their graph, in a file with `.data`
            after its name.
        processor: its tokenizer or image processor, to be saved beside the graphs.

    Raises:
        FileExistsError: if there is something in `output_dir`.
        ImportError: if onnxruntime or onnxscript is not installed.
        ValueError: if it is another model, or one that cannot be traced, or the graphs' outputs are not the model's;
            nothing is then written.
    """
    _check_installed()
    output = Path(output_dir)
    check_new_directory(output)
    kind = kind_of(model)
    with whole_directory(output.absolute()) as temporary:
        graphs = kind.graphs(model)
        for graph in graphs:
            write_graph(graph, temporary / graph.name)
        difference = check_onnx(model, temporary)
        write_beside(model, processor, temporary)
    return OnnxExport([output / graph.name for graph in graphs], difference)


@torch.no_grad()
def check_onnx(model: Any, directory: str | os.PathLike) -> float:
    """The largest difference between the outputs of a model and those of its graphs, run by onnxruntime on a CPU.

    Differences are divided by the largest output, where that is above 1.

    Raises:
        ValueError: if it is more than 1e-4.
    """
    return largest_difference(kind_of(model).compare(model, Sessions(Path(directory)).run))


# --- the model -------------------------------------------------------------------------------------------------------


def kind_of(model: Any) -> "Kind":
    """How the graphs of a model are made and compared.

    Raises:
        ValueError: if it is another model, or one that cannot be traced as it is.
    """
    name = type(model).__name__  # not the class, which is another where the model's code came from the Hub
    if name not in KINDS:
        raise ValueError(f"the model is of class {name}, which has no graph in ONNX; these have: {', '.join(KINDS)}")
    if model.training:
        raise ValueError("the model is in training mode, where it drops at random what it reads; call model.eval()")
    wrong = next((p for p in model.parameters() if p.dtype != torch.float32 or p.device.type != "cpu"), None)
    if wrong is not None:
        raise ValueError(
            f"the model is {wrong.dtype} on {wrong.device}; graphs are float32 and traced on the CPU: load it with "
            "dtype=torch.float32, or use model.float().cpu()"
        )
    if model.config._attn_implementation not in KERNELS:
        raise ValueError(
            f"attn_implementation {model.config._attn_implementation!r} cannot be traced; call "
            'model.set_attn_implementation("sdpa")'
        )
    return KINDS[name]


def _check_installed() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_package("ONNX", error) from error


def missing_package(target: str, error: ImportError) -> ImportError:
    return ImportError(
        f"export to {target} needs a package that cannot be imported ({error}): pip install {error.name}, or "
        "pip install 'hf-attn[interchange]' for all that exports need"
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a graph, and write it with its weights.

    Raises:
        ValueError: if it cannot be traced for every size.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # on one name for the same size in several inputs, which is meant
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                graph.inputs,
                input_names=graph.input_names,
                output_names=graph.output_names,
                dynamic_shapes=graph.sizes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"{graph.name} cannot be traced for inputs of every size: {reason}") from error
    assert program is not None  # as it is without dynamo
    _forget_origin(program.model)
    size = sum(weight.numel() * weight.element_size() for weight in graph.module.parameters())
    program.save(path, external_data=size >= LARGEST_FILE)


def _forget_origin(model: Any) -> None:
    """Leave out which line of which file on this machine made each node: most of the file, for a small model."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def write_beside(model: Any, processor: Any | None, directory: Path) -> None:
    """Write the configuration of a model, the settings of `generate`, and its tokenizer or image processor."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    for name in ("auto_map", "custom_pipelines"):  # they name code, which is not here
        if hasattr(config, name):
            delattr(config, name)
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    if isinstance(processor, PreTrainedTokenizerBase):
        save_tokenizer(processor, directory)
    elif processor is not None:
        processor.save_pretrained(directory)


# --- which models have graphs ----------------------------------------------------------------------------------------


class Kind(NamedTuple):
    graphs: Callable[[Any], list[Graph]]
    compare: Callable[[Any, Run], Compared]


KINDS = {
    "AttnTranslatorForConditionalGeneration": Kind(translator_graphs, compare_translator),
    "AttnViTForImageClassification": Kind(vit_graphs, compare_vit),
    "AttnViTModel": Kind(vit_graphs, compare_vit),
    "AttnDetrForObjectDetection": Kind(detr_graphs, compare_detr),
}
