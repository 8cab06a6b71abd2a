"""`hf-attn import`: another library's checkpoint becomes a directory of ours, and is tried before it is there."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_attn.configuration_checks import check_unknown
from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.hub_files import LocalFiles
from hf_attn.interchange.checkpoints import read_config
from hf_attn.interchange.early_checks import check_known, check_new_directory, check_place
from hf_attn.interchange.families import FAMILIES, FORMATS
from hf_attn.interchange.files import FileFormat, open_file, read_file
from hf_attn.interchange.loading import Opened, as_model, family_of, open_checkpoint, own_fields
from hf_attn.interchange.names import counted, listed
from hf_attn.modeling_detr import AttnDetrForObjectDetection, AttnDetrModel
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration, AttnTranslatorModel
from hf_attn.modeling_vit import AttnViTForImageClassification, AttnViTModel
from hf_attn.training.checkpoints import no_progress_bars, whole_directory
from hf_attn.training.plain_card import plain_card

# With its head, and without
MODELS: dict[type, tuple[Any, Any]] = {
    AttnTranslatorConfig: (AttnTranslatorForConditionalGeneration, AttnTranslatorModel),
    AttnViTConfig: (AttnViTForImageClassification, AttnViTModel),
    AttnDetrConfig: (AttnDetrForObjectDetection, AttnDetrModel),
}


@dataclass(frozen=True)
class Imported:
    """What was written."""

    output_dir: Path
    title: str  # of what it was
    model_class: str
    parameters: int
    dtype: str
    classes: int | None
    beside: list[str]  # classes of processor or tokenizer

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "output_dir": str(self.output_dir)}

    def __str__(self) -> str:
        classes = "" if self.classes is None else f", {self.classes:,} classes"
        beside = "".join(f", {name}" for name in self.beside) or ", without processor or tokenizer"
        size = f"{self.parameters:,} parameters in {self.dtype}"
        return f"{self.output_dir}: {self.model_class}, {size}{classes}{beside}"


def import_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    *,
    format: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    config: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Imported:
    """Write another library's checkpoint as a model of ours, with its processor or tokenizer and a card.

    Pickled weights are read by torch's `weights_only=True`: tensors, and nothing that could run code. The model runs
    once; a weight or an answer that is no number is an error, and then nothing is written. All of it takes little
    more memory than the checkpoint has bytes.

    Args:
        source: a directory, a file of weights, or a name on the Hub.
        output_dir: not there yet, or empty.
        format: of FORMATS, for a file whose names and sizes leave it open.
        revision: branch, tag or commit, on the Hub.
        dtype: of the weights, instead of the checkpoint's.
        tell: told what is found and done, a line each.
        config: as `fields`, which cannot have the names of these arguments.
        fields: of our configuration, instead of what the checkpoint says, or where it does not say it.

    Raises:
        FileExistsError: if there is something in `output_dir`.
        OSError: if there is no such checkpoint.
        ValueError: for a format or a field that is unknown, a checkpoint that is damaged, or one that no model of ours
            can be.
    """
    output_dir = Path(output_dir)
    check_known("--format", format, FORMATS)
    check_new_directory(output_dir)
    check_place(source, format, revision)
    fields = {**(config or {}), **fields}
    place = {} if revision is None else {"revision": revision}
    opened = _open(source, format, place, fields.get("num_attention_heads"))
    known = own_fields(opened.kind.config_class)
    check_unknown(opened.kind.config_class, sorted(fields.keys() - known), known)
    model_class = MODELS[opened.kind.config_class][not opened.has_head]
    tell(f"{source}: {opened.kind.title}, to become {model_class.__name__}")
    if opened.has_decoder:
        tell(f"{source}: its decoder, which filled in masked patches, is left out")
    with no_progress_bars():
        model = as_model(opened, model_class, **fields, **({} if dtype is None else {"dtype": dtype}))
        _try(model)
        companions = opened.kind.companions(opened, place)
        with whole_directory(output_dir) as temporary:
            model.save_pretrained(temporary)
            for companion in companions:
                companion.save_pretrained(temporary)
            card = plain_card(LocalFiles(temporary), name=output_dir.absolute().name, made_of=_public_name(source))
            (temporary / "README.md").write_text(str(card), encoding="utf-8")
    classes = None if model_class.config_class is AttnTranslatorConfig else model.config.num_labels
    return Imported(
        output_dir,
        opened.kind.title,
        model_class.__name__,
        model.num_parameters(),
        str(model.dtype).removeprefix("torch."),
        classes if opened.has_head else None,
        [type(companion).__name__ for companion in companions],
    )


def _open(source: str | Path, format: str | None, place: dict[str, Any], heads: int | None) -> Opened:
    path = Path(source)
    if path.is_file():
        return open_file(path, _format_of(path), heads) if format is None else _open_as(path, format, heads)
    try:
        theirs = read_config(source, place)
    except OSError:
        theirs = None
    if theirs is None:
        if path.is_dir():
            raise ValueError(f"{source} has no config.json, or a damaged one; give the file of weights itself")
        raise FileNotFoundError(f"{source}: no such file or directory, and no such model could be had from the Hub")
    model_type = theirs.get("model_type")
    if model_type in {config.model_type for config in MODELS}:  # type: ignore[attr-defined]
        raise ValueError(f"{source} is a model of type {model_type!r} already, which from_pretrained reads as it is")
    return open_checkpoint(source, family_of(source, theirs, FAMILIES), theirs, place, safe=False)


def _open_as(path: Path, format: str, heads: int | None) -> Opened:
    try:
        return open_file(path, FORMATS[format], heads)
    except ValueError as error:
        tensors = read_file(path)
        looks = [kind.name for kind in FORMATS.values() if kind.recognise(tensors)]
        if format in looks:
            raise
        like = ", ".join(looks) or f"none of {', '.join(sorted(FORMATS))}"
        raise ValueError(f"{error}. --format {format} does not fit: by its names, the file is {like}") from error


def _format_of(path: Path) -> FileFormat:
    tensors = read_file(path)
    found = [kind for kind in FORMATS.values() if kind.recognise(tensors)]
    if len(found) == 1:
        return found[0]
    names = f"by its {counted(tensors, 'name')} ({listed(tensors)})"
    if not found:
        known = ", ".join(sorted(FORMATS))
        raise ValueError(f"{path} is none of {known} {names}; give the weights of a model, with names as published")
    what = ", ".join(kind.name for kind in found)
    raise ValueError(f"{path} may be {what} {names}; say which by --format")


def _try(model: Any) -> None:
    """Raise a ValueError where weights or answers are no numbers."""
    # aminmax hands on what is no number, and needs no memory, as isfinite of a table of words would
    extremes = {name: torch.stack(weight.aminmax()) for name, weight in model.state_dict().items()}
    wrong = [name for name, both in extremes.items() if not torch.isfinite(both).all()]
    if wrong:
        raise ValueError(f"the checkpoint has infinite weights, or weights that are no numbers: {listed(wrong)}")
    with torch.no_grad():
        answer = model(**_example(model.config, model.dtype))
    first = answer["logits"] if "logits" in answer else answer["last_hidden_state"]
    if not torch.isfinite(first).all():
        raise ValueError("the model answers with infinite numbers, or none; its weights are damaged")


def _example(config: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Something to read for a model with this configuration."""
    if isinstance(config, AttnTranslatorConfig):
        return {"input_ids": torch.arange(4, 8)[None] % config.vocab_size, "decoder_input_ids": torch.tensor([[4, 5]])}
    size = config.image_shape if isinstance(config, AttnViTConfig) else (128, 160)
    numbers = torch.linspace(-1, 1, config.num_channels * size[0] * size[1], dtype=dtype)
    return {"pixel_values": numbers.view(1, config.num_channels, *size)}


def _public_name(source: str | Path) -> str | None:
    """A name on the Hub; a path on this disk is nobody's business."""
    return None if Path(source).exists() else str(source)
