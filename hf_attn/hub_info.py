"""What a model is, said from its configuration, its card and the headers of its weights: nothing is loaded or run."""

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

from hf_attn.hub_files import ModelFiles, auto_map_places

FAMILIES = {
    "attn_translator": "an encoder-decoder Transformer (Vaswani et al. 2017)",
    "attn_vit": "a Vision Transformer (Dosovitskiy et al. 2021)",
    "attn_detr": "a DETR (Carion et al. 2020)",
}
KINDS = {  # how the name of a class ends: what the model is, and the task that the Hub calls so
    "TranslatorForConditionalGeneration": ("translator", "translation"),
    "MTModel": ("translator", "translation"),
    "ForImageClassification": ("picture classifier", "image-classification"),
    "ForObjectDetection": ("object detector", "object-detection"),
    "ForMaskedImageModeling": ("picture model that fills in masked patches", None),
    "ForSemanticSegmentation": ("picture segmenter", "image-segmentation"),
    "ForCausalLM": ("language model", "text-generation"),
    "LMHeadModel": ("language model", "text-generation"),
    "ForMaskedLM": ("language model that fills in masked words", "fill-mask"),
    "ForSequenceClassification": ("text classifier", "text-classification"),
    "ForTokenClassification": ("word classifier", "token-classification"),
    "ForConditionalGeneration": ("encoder-decoder", None),
    "Backbone": ("backbone for other models", None),
}
COMMANDS = {
    "translation": 'hf-attn translate "a sentence" --model {}',
    "image-classification": "hf-attn classify picture.jpg --model {}",
    "object-detection": "hf-attn detect picture.jpg --model {}",
}
SHAPE = {  # what it is called here, and what configurations call it
    "encoder layers": ("encoder_layers",),
    "decoder layers": ("decoder_layers",),
    "layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "width": ("hidden_size", "d_model", "n_embd"),
    "heads": ("num_attention_heads", "encoder_attention_heads", "n_head"),
    "feed-forward": ("intermediate_size", "encoder_ffn_dim", "n_inner"),
    "vocabulary": ("vocab_size",),
    "backbone": ("backbone",),
    "queries": ("num_queries",),
    "picture": ("image_size",),
    "patch": ("patch_size",),
}
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "position_ids")  # saved, but learned by no gradient
CLASSES_SHOWN, FILES_SHOWN, SCORES_SHOWN = 5, 12, 6


def describe(files: ModelFiles) -> dict[str, Any]:
    """Everything that is known of a model, as `hf-attn info --json` writes it.

    Raises:
        ValueError: if it has no configuration, or a damaged configuration or weights.
    """
    config, warnings = files.config(), []
    try:
        metadata = files.metadata()
        measured = list(scores(metadata))
    except (ValueError, TypeError, AttributeError) as error:
        metadata, measured = {}, []
        warnings.append(str(error) if isinstance(error, ValueError) else "README.md: its model-index has no scores")
    numbers: Counter[str] = Counter()
    for tensor in files.tensors():
        if not tensor.name.endswith(BUFFERS):
            numbers[DTYPES.get(tensor.dtype, tensor.dtype.lower())] += prod(tensor.shape)
    name = class_name(config)
    words, task = kind(name)
    task = task or metadata.get("pipeline_tag")
    code = {"auto_map": auto_map_places(config), "files": [path for path in files.of_model if path.endswith(".py")]}
    if files.pickles:
        warnings.append(f"pickle files, which may run code when they are read: {some(files.pickles, 3)}")
    if not numbers:
        warnings.append("no weights in safetensors that transformers would load")
    if missing := files.missing_code():
        warnings.append(f"config.json names code that is not there: {some(missing, 3)}")
    return {
        "model": files.name,
        "class": name,
        "model_type": config.get("model_type"),
        "kind": words,
        "family": FAMILIES.get(config.get("model_type", "")),
        "library": metadata.get("library_name") or ("transformers" if "model_type" in config else None),
        "task": task,
        "shape": shape(config),
        "classes": class_names(config, name),
        "parameters": sum(numbers.values()),
        "dtypes": dict(numbers),
        "license": metadata.get("license"),
        "scores": measured,
        "code": code,
        "pickles": files.pickles,
        "files": files.of_model,
        "training_files": {path: size for path, size in files.sizes.items() if path not in files.of_model},
        "use": how_to_use(files.name, config, task),
        "warnings": warnings,
    }


def class_name(config: dict[str, Any]) -> str | None:
    """The class of a model; timm writes one name instead of a list."""
    return next(iter(config.get("architectures") or []), config.get("architecture"))


def kind(class_name: str | None) -> tuple[str, str | None]:
    """What a model of this class is in words, and its task."""
    return next((kind for ending, kind in KINDS.items() if (class_name or "").endswith(ending)), ("model", None))


def shape(config: dict[str, Any]) -> dict[str, Any]:
    fields = {**(config.get("text_config") or {}), **config}
    known = {
        name: value
        for name, names in SHAPE.items()
        if (value := next((fields[other] for other in names if fields.get(other) is not None), None)) is not None
    }
    if "encoder layers" in known:
        known.pop("layers", None)
    return {name: "x".join(map(str, value)) if isinstance(value, list) else value for name, value in known.items()}


def class_names(config: dict[str, Any], class_name: str | None) -> list[str]:
    """The names of the classes; configurations leave out the usual two."""
    if config.get("id2label"):
        return list(map(str, config["id2label"].values()))
    number = config.get("num_labels", config.get("num_classes"))
    if number is None:
        number = 2 if (class_name or "").endswith(("Classification", "ObjectDetection")) else 0
    return [f"LABEL_{label}" for label in range(number)]


def scores(metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The scores of a card's model-index: `dataset`, `split`, `metric` and `value`."""
    for model in metadata.get("model-index") or []:
        for result in model.get("results") or []:
            data = result.get("dataset") or {}
            for metric in result.get("metrics") or []:
                title = metric.get("name") or metric.get("type")
                yield {
                    "dataset": data.get("name"),
                    "split": data.get("split"),
                    "metric": title,
                    "value": metric.get("value"),
                }


def how_to_use(model: str, config: dict[str, Any], task: str | None) -> str:
    """One line that uses the model."""
    if "model_type" not in config:
        return "with the library that made it, see README.md"
    if task in COMMANDS:
        return COMMANDS[task].format(model)
    ours = config["model_type"] in FAMILIES
    trust = ", trust_remote_code=True" if config.get("auto_map") and not ours else ""
    call = f'pipeline("{task}", model="{model}"{trust})' if task else f'AutoModel.from_pretrained("{model}"{trust})'
    return f"import hf_attn; {call}" if ours else call


# --- in words --------------------------------------------------------------------------------------------------------


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """What `describe` found, on one screen."""
    of_type = f"({facts['model_type']})" if facts["model_type"] else ""
    known_as = " ".join(filter(None, [facts["class"] or "of unknown class", of_type]))
    yield f"{facts['model']}: {facts['kind']}{', ' + facts['family'] if facts['family'] else ''}"
    yield from (f"{name:<12}{text}" for name, text in details(facts, known_as) if text)
    yield from (f"warning     {warning}" for warning in facts["warnings"])


def details(facts: dict[str, Any], known_as: str) -> Iterator[tuple[str, str]]:
    yield "class", f"{known_as}, library {facts['library'] or 'unknown'}, task {facts['task'] or 'unknown'}"
    yield "shape", ", ".join(f"{name} {grouped(value)}" for name, value in facts["shape"].items())
    number = len(facts["classes"])
    yield "classes", f"{number:,}: {some(facts['classes'], CLASSES_SHOWN)}" if number else ""
    types = facts["dtypes"]
    each = ", ".join(f"{count:,} in {name}" if len(types) > 1 else name for name, count in types.items())
    yield "parameters", f"{facts['parameters']:,} ({each})" if types else "unknown"
    yield "licence", str(facts["license"] or "not stated")
    for score in facts["scores"][:SCORES_SHOWN]:
        yield (
            "score",
            f"{score['metric']} {score['value']} on {score['dataset']} ({score['split'] or 'unknown split'})",
        )
    where, code = facts["code"]["auto_map"], facts["code"]["files"]
    asked = f"; config.json asks for {some(where, 3)}, which runs only with trust_remote_code=True" if where else ""
    yield "code", (some(code, 5) or "none") + asked
    largest = sorted(facts["files"].items(), key=lambda file: -file[1])
    yield "files", f"{len(largest)}, {in_bytes(sum(facts['files'].values()))}"
    for path, size in largest[:FILES_SHOWN]:
        yield "", f"{in_bytes(size):>9}  {path}"
    if rest := largest[FILES_SHOWN:]:
        yield "", f"{in_bytes(sum(size for _, size in rest)):>9}  in {len(rest)} more"
    if training := facts["training_files"]:
        yield "training", f"{in_bytes(sum(training.values()))} in {len(training)} more files, which `push` leaves out"
    yield "use", facts["use"]


def grouped(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def some(names: list[str], number: int) -> str:
    """The first of some names, and how many there are more."""
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(names[:number]) + more


def in_bytes(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} B"
