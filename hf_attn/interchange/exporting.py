"""`hf-attn export`: a model of ours becomes what another library loads."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import IMAGE_PROCESSOR_NAME

from hf_attn.interchange.companions import companion
from hf_attn.interchange.early_checks import check_known, check_new_directory
from hf_attn.interchange.names import counted, listed
from hf_attn.training.checkpoints import no_progress_bars

# By target and `model_type`, the function of this package that writes a model, with its processor or tokenizer
EXPORTS = {
    "transformers": {
        "attn_translator": "marian.export_transformers",
        "attn_vit": "vit_export_transformers.export_transformers",
        "attn_detr": "detr_transformers.export_transformers",
    },
    "timm": {"attn_vit": "vit_export_timm.export_timm"},
    "ctranslate2": {"attn_translator": "ctranslate2.export_ctranslate2"},
    "onnx": dict.fromkeys(("attn_translator", "attn_vit", "attn_detr"), "onnx.export_onnx"),
    "openvino": dict.fromkeys(("attn_translator", "attn_vit", "attn_detr"), "openvino.export_openvino"),
}
COMPANIONS = {
    "input_ids": (AutoTokenizer, TOKENIZER_CONFIG_FILE),
    "pixel_values": (AutoImageProcessor, IMAGE_PROCESSOR_NAME),
}


def export_model(source: str | Path, to: str, output_dir: str | Path) -> Path:
    """Write a model for another library, with what prepares its input, whole or not at all.

    Args:
        source: a directory that holds a model of ours, or a name on the Hub.
        to: "transformers", "timm", "ctranslate2", "onnx" or "openvino".
        output_dir: not there yet, or empty.

    Raises:
        FileExistsError: if there is something in `output_dir`.
        FileNotFoundError: if there is no such model.
        ImportError: if the other library is needed and not installed.
        ValueError: if that library has no such model, or a file is damaged; the message names what it lacks.
    """
    source, output_dir = str(source), Path(output_dir)
    check_known("--to", to, EXPORTS)
    check_new_directory(output_dir)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no model: it has no config.json; give what save_pretrained wrote")
    config = AutoConfig.from_pretrained(source)
    known = {model_type for functions in EXPORTS.values() for model_type in functions}
    if config.model_type not in known:
        raise ValueError(
            f"{source} is a model of type {config.model_type!r}, not ours; `hf-attn import` makes it one if it can"
        )
    if config.model_type not in EXPORTS[to]:
        kinds = ", ".join(sorted(EXPORTS[to]))
        raise ValueError(f"{to} has no model of type {config.model_type!r}; what it can be given is of type {kinds}")
    module, name = EXPORTS[to][config.model_type].split(".")
    write: Callable[..., Any] = getattr(import_module(f"hf_attn.interchange.{module}"), name)
    with no_progress_bars():
        model = _load(source, config)
        auto_class, file = COMPANIONS[model.main_input_name]
        write(model, output_dir, companion(auto_class, source, (file,), {}))
    return output_dir


def _load(source: str, config: Any) -> Any:
    """Raises a ValueError where tensors are not there, or of another size: transformers would make random ones up."""
    modeling = import_module(type(config).__module__.replace("configuration_", "modeling_"))
    name = next(iter(config.architectures or []), "")
    model_class = getattr(modeling, name, None)
    if model_class is None:
        raise ValueError(
            f"{source} is of class {name!r} by its config.json, and none of ours has that name; write into "
            "architectures which one it is"
        )
    try:
        model, report = model_class.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(f"{source}: the weights are damaged ({error}); copy or download them again") from error
    lacking = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if lacking:
        raise ValueError(
            f"{source} lacks {counted(lacking, 'tensor')} of {name}, or has them in other sizes: {listed(lacking)}; "
            "copy or download it again"
        )
    return model
