"""What is measured: the rows of the table, their shapes, and what each side's package is called in pip."""

from dataclasses import dataclass
from typing import Any

OURS = "hf_attn"
PREPARED = "hf_attn prepared"
TWO = "hf_attn, workers"
PACKAGES = {
    OURS: "hf_attn",
    PREPARED: "hf_attn",
    TWO: "hf_attn",
    "timm": "timm",
    "transformers": "transformers",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
    "CTranslate2": "ctranslate2",
    "CTranslate2, workers": "ctranslate2",
}
FAMILIES = ("vit", "detr", "translator", "corpus")


@dataclass(frozen=True)
class Row:
    """One comparison of several sides at the same work."""

    family: str  # of FAMILIES
    name: str
    dtype: str  # "fp32", "bf16", "int8"
    batch: int  # pictures or sentences
    sides: tuple[str, ...]
    unit: str  # of which a call makes `units`
    units: float
    operations: float = 0.0  # of a call, two for each multiply-add; 0 where not known
    bytes: float = 0.0  # of weights that a call must read
    trains: bool = False
    beams: int = 1
    weight: float = 1.0  # share of the time


# --- shapes --------------------------------------------------------------------------------------------------------

VIT: dict[str, Any] = {"image_size": 224, "patch_size": 16, "num_labels": 1000}
VIT_QUICK: dict[str, Any] = {
    **{"image_size": 32, "patch_size": 8, "num_labels": 10, "hidden_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 256},
}
DETR: dict[str, Any] = {"backbone": "resnet50", "num_labels": 91}
DETR_QUICK: dict[str, Any] = {
    **{"backbone": "resnet18", "num_labels": 7, "hidden_size": 32, "encoder_layers": 1, "decoder_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 64, "num_queries": 7},
}
PICTURE, PICTURE_QUICK = (800, 1200), (64, 96)  # height, width
TRANSLATOR: dict[str, Any] = {"vocab_size": 37_000}  # the rest are the defaults: Vaswani's base
TRANSLATOR_QUICK: dict[str, Any] = {
    **{"vocab_size": 500, "hidden_size": 128, "encoder_layers": 1, "decoder_layers": 2},
    **{"num_attention_heads": 4, "intermediate_size": 128},
}
SOURCE_TOKENS, TARGET_TOKENS = 28, 24  # `</s>` counted


# --- counting ------------------------------------------------------------------------------------------------------


def vit_operations(shape: dict[str, Any]) -> float:
    """Of one picture's way through the model."""
    width, layers = shape.get("hidden_size", 768), shape.get("num_hidden_layers", 12)
    inner = shape.get("intermediate_size", 3072)
    patches = (shape["image_size"] // shape["patch_size"]) ** 2
    tokens = patches + 1
    layer = tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width
    return 2 * (layers * layer + patches * 3 * shape["patch_size"] ** 2 * width + width * shape["num_labels"])


@dataclass(frozen=True)
class Translator:
    """Weights of a translator, biases and norms left out."""

    shape: dict[str, Any]

    @property
    def encoder(self) -> int:
        width, inner = self.shape.get("hidden_size", 512), self.shape.get("intermediate_size", 2048)
        return self.shape.get("encoder_layers", 6) * (4 * width**2 + 2 * width * inner)

    @property
    def decoder_step(self) -> int:
        """That each new word needs: keys and values of the source are computed once."""
        width, inner = self.shape.get("hidden_size", 512), self.shape.get("intermediate_size", 2048)
        layers = self.shape.get("decoder_layers", 6)
        return layers * (6 * width**2 + 2 * width * inner) + width * self.shape["vocab_size"]

    def operations(self, sentences: int, source: float, target: float, beams: int) -> float:
        width = self.shape.get("hidden_size", 512)
        memory = self.shape.get("decoder_layers", 6) * 2 * width**2
        return 2 * sentences * (source * (self.encoder + memory) + target * beams * self.decoder_step)

    def bytes(self, steps: float, dtype: str) -> float:
        """Of weights, each step of a batch reading all of the decoder's once."""
        return {"fp32": 4, "bf16": 2, "int8": 1}[dtype] * (self.encoder + steps * self.decoder_step)


# --- the rows ------------------------------------------------------------------------------------------------------


def vit_rows(full: bool, shape: dict[str, Any]) -> list[Row]:
    operations = vit_operations(shape)
    rows = []
    for dtype in ("fp32", "bf16"):
        sides = [OURS, PREPARED, "timm", "transformers", "OpenVINO"]
        if dtype == "fp32":  # on CPUs ONNX Runtime has no bfloat16
            sides.insert(4, "ONNX Runtime")
        for batch in (1, 8, 32) if full else (1, 8):
            name = f"ViT, {dtype}, batch {batch}"
            rows.append(Row("vit", name, dtype, batch, tuple(sides), "pictures", batch, batch * operations))
    for dtype in ("fp32", "bf16"):
        name = f"ViT training step, {dtype}, batch 8"
        rows.append(
            Row(
                *("vit", name, dtype, 8, (OURS, "timm", "transformers"), "pictures", 8),
                operations=3 * 8 * operations,
                trains=True,
            )
        )
    return rows


def detr_rows(full: bool, operations: float) -> list[Row]:
    """The rows of DETR; what a picture's way through the model takes was counted by torch."""
    rows = []
    for dtype in ("fp32", "bf16"):
        sides = [OURS, PREPARED, "transformers", "OpenVINO"]
        if dtype == "fp32":
            sides.insert(3, "ONNX Runtime")
        for batch in (1, 4) if full else (1,):
            name = f"DETR, {dtype}, batch {batch}"
            rows.append(Row("detr", name, dtype, batch, tuple(sides), "pictures", batch, batch * operations))
    for dtype in ("fp32", "bf16") if full else ("fp32",):
        rows.append(
            Row(
                *("detr", f"DETR training step, {dtype}, batch 1", dtype, 1, (OURS, "transformers"), "pictures", 1),
                operations=3 * operations,
                trains=True,
            )
        )
    return rows


def translator_rows(full: bool, shape: dict[str, Any], threads: int) -> list[Row]:
    counted = Translator(shape)
    shapes = [(1, 1), (8, 1), (32, 1), (8, 4)]
    if full:
        shapes += [(64, 1), (32, 4)]
    rows = []
    for batch, beams in shapes:
        for dtype in ("fp32", "bf16", "int8"):
            search = f"beam {beams}" if beams > 1 else "greedy"
            rows.append(
                Row(
                    *("translator", f"translator, {search}, {dtype}, batch {batch}", dtype, batch),
                    sides=_translating_sides(dtype, spread=batch > 1 and threads > 1),
                    unit="tokens",
                    units=batch * TARGET_TOKENS,
                    operations=counted.operations(batch, SOURCE_TOKENS, TARGET_TOKENS, beams),
                    bytes=counted.bytes(TARGET_TOKENS, dtype),
                    beams=beams,
                )
            )
    return rows


def corpus_rows(full: bool, shape: dict[str, Any], sentences: int, tokens: int, threads: int) -> list[Row]:
    """Real sentences of mixed lengths through `pipeline("translation")`.

    Args:
        tokens: of all sentences; translations have as many.
    """
    counted = Translator(shape)
    rows = []
    for dtype in ("fp32", "bf16", "int8"):
        rows.append(
            Row(
                *("corpus", f"{sentences:,} sentences, {dtype}", dtype, sentences),
                sides=_translating_sides(dtype, spread=threads > 1),
                unit="tokens",
                units=tokens,
                operations=counted.operations(sentences, tokens / sentences, tokens / sentences, 1),
                weight=3.0,
            )
        )
    return rows


def _translating_sides(dtype: str, spread: bool) -> tuple[str, ...]:
    """Those that have the number format, where `spread` also with several workers of one thread."""
    sides = [OURS, TWO] if spread else [OURS]
    if dtype != "int8":
        sides.append("transformers")
    if dtype != "bf16":
        sides += ["CTranslate2", "CTranslate2, workers"] if spread else ["CTranslate2"]
    return tuple(sides)
