"""The weights, made once and written for every side: random, but such that outputs can be compared.

`vit`, `detr`: our models, and the same weights for timm and transformers (`hf-attn export`), and as graphs of a fixed
batch by torch.onnx from timm's ViT and our DETR, for ONNX Runtime and OpenVINO.

`copier`: a translator that says its source once more, see copier.py; `translator`: the same, but says other words.
Both for transformers' Marian and for CTranslate2.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from copier import make_copier
from rows import SOURCE_TOKENS
from sides_pictures import random_pictures
from torch import nn


def prepare_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """`directory`, made by `make` unless it is there from an earlier run, whole or not at all."""
    from hf_attn.training.checkpoints import whole_directory

    if not directory.exists():
        with whole_directory(directory) as unfinished:
            make(unfinished)
    return directory


# --- pictures ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Weights of one scale, also where a new model has zeros; norms near one, so that numbers stay in range."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "backbone" in name and parameter.ndim == 4:
            continue  # convolutions begin with variance that keeps its size
        if parameter.ndim > 1:
            parameter.copy_(0.02 * noise)
        elif name.endswith("weight"):
            parameter.copy_((0.5 if "backbone" in name else 1.0) + 0.1 * noise)
        else:
            parameter.copy_(0.05 * noise)
    return model.eval()


def prepare_vit(files: Path, shape: dict[str, Any], batches: list[int]) -> None:
    from hf_attn import AttnViTConfig, AttnViTForImageClassification
    from hf_attn.interchange.exporting import export_model

    torch.manual_seed(0)

    def make(directory: Path) -> None:
        randomise(AttnViTForImageClassification(AttnViTConfig(**shape))).save_pretrained(directory)

    ours = prepare_once(files / "vit", make)
    for library in ("timm", "transformers"):
        if not (files / f"vit-{library}").exists():
            export_model(ours, library, files / f"vit-{library}")
    for batch in batches:
        from sides_vit import timm_model

        pictures = random_pictures(batch, shape["image_size"], shape["image_size"])
        write_graph(lambda: timm_model(files), pictures, ["logits"], files / f"vit-{batch}.onnx")


class BothHeads(nn.Module):
    """A detector with the outputs that a graph has: logits and boxes."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.detector(pictures)
        return output.logits, output.pred_boxes


def prepare_detr(files: Path, shape: dict[str, Any], picture: tuple[int, int], batches: list[int]) -> float:
    """Returns the operations of one picture, as torch counts them in our model."""
    from torch.utils.flop_counter import FlopCounterMode

    from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection
    from hf_attn.interchange.exporting import export_model

    torch.manual_seed(0)

    def make(directory: Path) -> None:
        config = AttnDetrConfig(**shape, frozen_batch_norm=True, frozen_stride=4)
        randomise(AttnDetrForObjectDetection(config)).save_pretrained(directory)

    ours = prepare_once(files / "detr", make)
    if not (files / "detr-transformers").exists():
        export_model(ours, "transformers", files / "detr-transformers")

    def load() -> nn.Module:
        return BothHeads(AttnDetrForObjectDetection.from_pretrained(ours).eval().requires_grad_(False))

    for batch in batches:
        write_graph(load, random_pictures(batch, *picture), ["logits", "pred_boxes"], files / f"detr-{batch}.onnx")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        load()(random_pictures(1, *picture))
    return counter.get_total_flops()


def write_graph(load: Callable[[], nn.Module], pictures: torch.Tensor, names: list[str], path: Path) -> None:
    """A graph for pictures of exactly this shape."""
    if path.exists():
        return
    with torch.inference_mode():
        program = torch.onnx.export(
            load().eval(), (pictures,), dynamo=True, input_names=["pictures"], output_names=names, verbose=False
        )
    unfinished = path.with_name(f"unfinished-{path.name}")
    program.save(unfinished)
    unfinished.rename(path)


# --- sentences -----------------------------------------------------------------------------------------------------


def prepare_translators(files: Path, shape: dict[str, Any], texts: list[str], mixed: int) -> int:
    """Returns the tokens of the mixed sentences.

    Args:
        texts: to train the tokenizer on and to choose sentences from.
        mixed: how many of mixed lengths are wanted.
    """
    from transformers import AutoTokenizer

    from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration, train_tokenizer
    from hf_attn.interchange.exporting import export_model
    from hf_attn.tokenization_translator import save_tokenizer

    def write_tokenizer(directory: Path) -> None:
        tokenizer = train_tokenizer(texts, shape["vocab_size"])
        tokenizer.save_pretrained(directory)
        save_tokenizer(tokenizer, directory)

    tokenizer = AutoTokenizer.from_pretrained(prepare_once(files / "tokenizer", write_tokenizer))
    kinds: dict[str, Callable[[Any], Any]] = {"translator": partial(make_copier, shuffled=True), "copier": make_copier}
    for name, change in kinds.items():

        def make(directory: Path, change: Callable[[Any], Any] = change) -> None:
            torch.manual_seed(0)
            config = AttnTranslatorConfig(**shape, position_layout="halves", dropout=0.0)
            change(AttnTranslatorForConditionalGeneration(config)).eval().save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            save_tokenizer(tokenizer, directory)

        ours = prepare_once(files / name, make)
        for library in ("transformers", "ctranslate2"):
            if not (files / f"{name}-{library}").exists():
                export_model(ours, library, files / f"{name}-{library}")
    return choose_sources(tokenizer, texts, mixed, files / "sources.json")


EQUAL = 64  # sentences of one length that the largest row needs


def choose_sources(tokenizer: Any, texts: list[str], mixed: int, path: Path) -> int:
    """Write sentences of one length and sentences as they come; returns the tokens of the latter."""
    from hf_attn.pipeline_segmentation import split_sentences

    single = [text for text in texts if len(split_sentences(text)[1]) == 1 and text.strip() == text]
    encoded = tokenizer(single)["input_ids"]
    equal = [
        {"text": text, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
        for text, ids in zip(single, encoded, strict=True)
        if len(ids) == SOURCE_TOKENS
    ]
    if len(equal) < EQUAL or len(single) < mixed:
        raise ValueError(
            f"{len(equal)} sentences have {SOURCE_TOKENS} tokens and {len(single)} are single ones, but {EQUAL} and "
            f"{mixed} are needed; give more text by --sentences"
        )
    chosen = {"equal": equal[:EQUAL], "mixed": single[:mixed]}
    path.write_text(json.dumps(chosen, ensure_ascii=False), encoding="utf-8")
    return sum(map(len, encoded[:mixed]))
