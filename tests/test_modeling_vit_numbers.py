"""With the same weights the ViT computes the numbers of transformers' ViT, MIM head and DINOv2, and of timm's ViTs.

timm's one class stands for the families: the original and AugReg, DeiT III, DINOv2 with registers, big_vision and
SigLIP, and timm's own "sbb". Every parameter is randomised, norms, biases and layer scales included.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
)

from hf_attn import (
    AttnViTBackbone,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTModel,
)
from tests.tiny import randomise

Weights = dict[str, torch.Tensor]

LAYER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def pixels(height: int = 32, width: int = 32, channels: int = 3, batch: int = 2) -> torch.Tensor:
    """(batch, channels, height, width) of normalised noise, float64."""
    return torch.randn(batch, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# --- their names in ours ---------------------------------------------------------------------------------------------

FROM_TIMM = {
    r"^patch_embed\.proj": "model.embeddings.patch_embedding",
    r"^blocks\.(\d+)\.norm1": r"model.layers.\1.attention_norm",
    r"^blocks\.(\d+)\.norm2": r"model.layers.\1.feed_forward_norm",
    r"^blocks\.(\d+)\.attn\.proj": r"model.layers.\1.attention.out_proj",
    r"^blocks\.(\d+)\.attn": r"model.layers.\1.attention",
    r"^blocks\.(\d+)\.mlp\.fc1": r"model.layers.\1.feed_forward.up_proj",
    r"^blocks\.(\d+)\.mlp\.fc2": r"model.layers.\1.feed_forward.down_proj",
    r"^blocks\.(\d+)\.ls1\.gamma": r"model.layers.\1.attention_scale.weight",
    r"^blocks\.(\d+)\.ls2\.gamma": r"model.layers.\1.feed_forward_scale.weight",
    r"^(fc_)?norm\.": "model.final_norm.",
    r"^attn_pool\.latent": "model.attention_pooling.query",
    r"^attn_pool\.proj": "model.attention_pooling.attention.out_proj",
    r"^attn_pool\.(q|kv)\.": r"model.attention_pooling.attention.\1.",
    r"^attn_pool\.norm": "model.attention_pooling.feed_forward_norm",
    r"^attn_pool\.mlp\.fc1": "model.attention_pooling.feed_forward.up_proj",
    r"^attn_pool\.mlp\.fc2": "model.attention_pooling.feed_forward.down_proj",
    r"^head\.": "classifier.",
}

FROM_TRANSFORMERS = {
    r"^vit\.": "model.",
    r"\bencoder\.layer\.": "layers.",
    r"embeddings\.patch_embeddings\.projection": "embeddings.patch_embedding",
    r"\.(layernorm_before|norm1)\.": ".attention_norm.",
    r"\.(layernorm_after|norm2)\.": ".feed_forward_norm.",
    r"attention\.o_proj": "attention.out_proj",
    r"mlp\.fc1": "feed_forward.up_proj",
    r"mlp\.fc2": "feed_forward.down_proj",
    r"layer_scale1\.lambda1": "attention_scale.weight",
    r"layer_scale2\.lambda1": "feed_forward_scale.weight",
    r"(^|\.)layernorm\.": r"\1final_norm.",
    r"^decoder\.0": "decoder",
}


def renamed(name: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        name = re.sub(theirs, ours, name)
    return name


def split_projections(weights: Weights) -> Weights:
    """timm keeps the projections of queries, keys and values in one matrix."""
    split = {}
    for name, weight in weights.items():
        fused = re.search(r"attention\.(qkv|kv|q)\.", name)
        if fused is None:
            split[name] = weight
            continue
        for letter, part in zip(fused[1], weight.chunk(len(fused[1])), strict=True):
            split[name.replace(f".{fused[1]}.", f".{letter}_proj.")] = part
    return split


def split_positions(positions: torch.Tensor, config: AttnViTConfig) -> Weights:
    """(1, prefix + patches, hidden) as all others keep it → the grid, and what is added to the tokens before it."""
    rows, columns = config.grid_shape
    prefix, grid = positions[0].split([positions.shape[1] - rows * columns, rows * columns])
    split = {"positions": grid.unflatten(0, (rows, columns))}
    if config.class_token and len(prefix):
        split["class_position"] = prefix[0]
    elif len(prefix):
        split["register_positions"] = prefix
    return split


def from_timm(weights: Weights, config: AttnViTConfig) -> Weights:
    """timm's weights, or their gradients, under our names."""
    ours = split_projections({renamed(name, FROM_TIMM): weight for name, weight in weights.items()})
    embeddings = {name: ours.pop(name) for name in ("cls_token", "reg_token", "pos_embed") if name in ours}
    return ours | {f"model.embeddings.{name}": weight for name, weight in embedded(embeddings, config).items()}


def from_transformers(weights: Weights, config: AttnViTConfig) -> Weights:
    """transformers' weights, or their gradients, under our names."""
    ours = {renamed(name, FROM_TRANSFORMERS): weight for name, weight in weights.items()}
    base = "model." if "model.embeddings.cls_token" in ours else ""
    names = ("cls_token", "mask_token", "register_tokens", "position_embeddings")
    embeddings = {name: ours.pop(f"{base}embeddings.{name}") for name in names if f"{base}embeddings.{name}" in ours}
    return ours | {f"{base}embeddings.{name}": weight for name, weight in embedded(embeddings, config).items()}


def embedded(theirs: Weights, config: AttnViTConfig) -> Weights:
    """The tokens and positions that both keep with batch dimensions."""
    names = {
        "cls_token": "class_token",
        "mask_token": "mask_token",
        "reg_token": "register_tokens",
        "register_tokens": "register_tokens",
    }
    ours = {names[name]: weight for name, weight in theirs.items() if name in names}
    positions = theirs.get("pos_embed", theirs.get("position_embeddings"))
    return ours if positions is None else ours | split_positions(positions, config)


def load(model: nn.Module, weights: Weights) -> None:
    """Load all of a model's weights, which others keep with dimensions of one, and some registers with positions."""
    weights = dict(weights)
    positions = weights.pop("model.embeddings.register_positions", 0)
    for name, parameter in model.named_parameters():
        if name.endswith("register_tokens"):
            weights[name] = weights[name] + positions
        assert weights[name].squeeze().shape == parameter.squeeze().shape, name
        weights[name] = weights[name].reshape(parameter.shape)
    model.load_state_dict(weights)


# --- what they compute -----------------------------------------------------------------------------------------------


def outputs_of(modules: list[nn.Module], call: Callable[[], object]) -> list[torch.Tensor]:
    """What each of the modules returns while `call` runs."""
    found: list[torch.Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, output: found.append(output)) for module in modules]
    call()
    for handle in handles:
        handle.remove()
    return found


def assert_same_gradients(ours: nn.Module, expected: Weights, tolerance: float) -> None:
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() - {"model.embeddings.register_positions"}
    for name, gradient in found.items():
        assert_close(
            gradient,
            expected[name].reshape(gradient.shape),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# --- transformers' ViT -----------------------------------------------------------------------------------------------


def vit_twin(
    dtype: torch.dtype, std: float = 0.2, image_size: int = 32, patch_size: int = 8, **shape
) -> tuple[AttnViTForImageClassification, ViTForImageClassification]:
    shape = {**LAYER, **shape, "image_size": image_size, "patch_size": patch_size, "num_labels": 3}
    shape["layer_norm_eps"] = 1e-12  # in every checkpoint of google/vit-*
    torch.manual_seed(0)
    theirs = randomise(ViTForImageClassification(ViTConfig(**shape)), std=std).to(dtype).eval()
    ours = AttnViTForImageClassification(AttnViTConfig(**shape)).to(dtype).eval()
    load(ours, from_transformers(theirs.state_dict(), ours.config))
    return ours, theirs


@PRECISIONS
@torch.no_grad()
def test_same_weights_same_numbers_as_transformers(dtype, tolerance):
    ours, theirs = vit_twin(dtype)
    pictures = pixels().to(dtype)
    found, expected = ours(pictures, output_hidden_states=True), theirs(pictures, output_hidden_states=True)
    assert found.logits.dtype == dtype
    assert expected.logits.std() > 0.1
    assert_close(found.logits, expected.logits, rtol=tolerance, atol=tolerance)
    assert len(found.hidden_states) == 3
    assert_close(found.hidden_states, expected.hidden_states, rtol=tolerance, atol=tolerance)
    base = theirs.vit(pictures).last_hidden_state
    assert_close(ours.model(pictures).last_hidden_state, base, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_same_weights_same_attention_as_transformers():
    ours, theirs = vit_twin(torch.float32)
    theirs.set_attn_implementation("eager")  # no other kernel shows its attention there
    expected = theirs(pixels().float(), output_attentions=True).attentions
    assert len(expected) == 2
    assert_close(ours(pixels().float(), output_attentions=True).attentions, expected, rtol=1e-5, atol=1e-6)


@PRECISIONS
def test_same_weights_same_gradients_as_transformers(dtype, tolerance):
    ours, theirs = vit_twin(dtype)
    labels = torch.tensor([2, 0])
    losses = [model(pixels().to(dtype), labels=labels).loss for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert_same_gradients(ours, from_transformers(gradients, ours.config), tolerance)


@torch.no_grad()
def test_a_vit_base_of_google_s_shape_computes_the_same():
    shape = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 3072}
    ours, theirs = vit_twin(torch.float32, 0.02, image_size=224, patch_size=16, **shape)
    picture = pixels(224, 224, batch=1).float()
    expected = theirs(picture, output_hidden_states=True)
    found = ours(picture, output_hidden_states=True)
    assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert_close(found.hidden_states, expected.hidden_states, rtol=1e-5, atol=1e-5)


@PRECISIONS
def test_masked_image_modelling_is_simmim_as_in_transformers(dtype, tolerance):
    shape = {**LAYER, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-12}
    theirs = randomise(ViTForMaskedImageModeling(ViTConfig(**shape, encoder_stride=8))).to(dtype).eval()
    ours = AttnViTForMaskedImageModeling(AttnViTConfig(**shape)).to(dtype).eval()
    load(ours, from_transformers(theirs.state_dict(), ours.config))
    masked = torch.rand(2, 16) < 0.5
    expected = theirs(pixels().to(dtype), bool_masked_pos=masked)
    found = ours(pixels().to(dtype), bool_masked_pos=masked)
    assert_close(found.reconstruction, expected.reconstruction, rtol=tolerance, atol=tolerance)
    # they divide by one hundred-thousandth more than the number of masked pixels
    assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    expected.loss.backward()
    found.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert_same_gradients(ours, from_transformers(gradients, ours.config), 1e-5)


# --- transformers' DINOv2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 3])
@PRECISIONS
@torch.no_grad()
def test_same_weights_same_numbers_as_dinov2(registers, dtype, tolerance):
    shape = {**LAYER, "image_size": 28, "patch_size": 7}
    if registers:
        config = Dinov2WithRegistersConfig(**shape, mlp_ratio=2, num_register_tokens=registers)
        theirs = Dinov2WithRegistersModel(config)
    else:
        theirs = Dinov2Model(Dinov2Config(**shape, mlp_ratio=2))
    randomise(theirs).to(dtype).eval()
    config = AttnViTConfig(**shape, layer_scale_init=1.0, num_register_tokens=registers)
    ours = AttnViTModel(config).to(dtype).eval()
    weights = from_transformers(theirs.state_dict(), config)
    weights.pop("embeddings.mask_token")
    load(ours, weights)
    if registers:
        theirs.embeddings.patch_embeddings.patch_size = (7, 7)  # unpacked there at another resolution
    for size in ((28, 28), (21, 42)) if registers else ((28, 28),):  # without, they resample without antialiasing
        expected = theirs(pixels(*size).to(dtype), output_hidden_states=True)
        found = ours(pixels(*size).to(dtype), output_hidden_states=True)
        # positions are resampled in float32, whatever the weights are
        near = tolerance if size == (28, 28) else 1e-5
        assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=near, atol=near)
        assert_close(found.pooler_output, expected.pooler_output, rtol=near, atol=near)
        assert_close(found.hidden_states, expected.hidden_states, rtol=near, atol=near)


# --- timm ------------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[dict, dict]] = {  # timm's arguments, our fields
    "original, AugReg": ({}, {}),
    "DeiT III": (
        {"no_embed_class": True, "init_values": 1e-6},
        {"position_on_class_token": False, "layer_scale_init": 1e-6},
    ),
    "DINOv2 with registers": (
        {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
        {"layer_scale_init": 1e-5, "num_register_tokens": 4, "position_on_class_token": False},
    ),
    "sbb, mean of patches": (
        {"class_token": False, "no_embed_class": True, "reg_tokens": 1, "global_pool": "avg", "init_values": 1e-5},
        {
            "class_token": False,
            "num_register_tokens": 1,
            "pooling": "mean",
            "final_norm": "after_pooling",
            "layer_scale_init": 1e-5,
        },
    ),
    "sbb, norm before the mean": (
        {"class_token": False, "no_embed_class": True, "reg_tokens": 4, "global_pool": "avg", "fc_norm": False},
        {"class_token": False, "num_register_tokens": 4, "pooling": "mean"},
    ),
    "sbb, attention pooling": (
        {"class_token": False, "no_embed_class": True, "reg_tokens": 4, "global_pool": "map"},
        {"class_token": False, "num_register_tokens": 4, "pooling": "attention"},
    ),
    "sbb, registers with positions": (
        {"class_token": False, "reg_tokens": 4, "global_pool": "map"},
        {"class_token": False, "num_register_tokens": 4, "pooling": "attention"},
    ),
    "SigLIP": (
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
        {"class_token": False, "pooling": "attention", "activation_function": "gelu_pytorch_tanh"},
    ),
    "mean of patches beside a class token": (
        {"global_pool": "avg"},
        {"pooling": "mean", "final_norm": "after_pooling"},
    ),
    "class token normalised after": ({"fc_norm": True}, {"final_norm": "after_pooling"}),
    "queries and keys normalised": ({"qk_norm": True}, {"query_key_norm": True}),
    "no positions": ({"pos_embed": "none"}, {"position_embedding": "none"}),
    "another epsilon": ({"norm_layer": partial(nn.LayerNorm, eps=1e-3)}, {"layer_norm_eps": 1e-3}),
    "one channel": ({"in_chans": 1}, {"num_channels": 1}),
    "rectangular": ({"img_size": (32, 48), "patch_size": (8, 6)}, {"image_size": (32, 48), "patch_size": (8, 6)}),
}
families = pytest.mark.parametrize("family", FAMILIES)


def timm_twin(
    family: str, dtype: torch.dtype, dynamic_img_size: bool = False
) -> tuple[AttnViTForImageClassification, VisionTransformer]:
    timms, fields = FAMILIES[family]
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    theirs = VisionTransformer(**{**arguments, **timms}, num_classes=3, dynamic_img_size=dynamic_img_size)
    randomise(theirs).to(dtype).eval()
    config = AttnViTConfig(**{**LAYER, "image_size": 32, "patch_size": 8, "num_labels": 3, **fields})
    ours = AttnViTForImageClassification(config).to(dtype).eval()
    load(ours, from_timm(theirs.state_dict(), ours.config))
    return ours, theirs


def native_pixels(config: AttnViTConfig, dtype: torch.dtype) -> torch.Tensor:
    return pixels(*config.image_shape, channels=config.num_channels).to(dtype)


@families
@PRECISIONS
@torch.no_grad()
def test_same_weights_same_numbers_as_timm(family, dtype, tolerance):
    ours, theirs = timm_twin(family, dtype)
    pictures = native_pixels(ours.config, dtype)
    for block in theirs.blocks:
        block.attn.fused_attn = False  # written out, where the dropout sees the weights
    states = outputs_of(list(theirs.blocks), lambda: theirs(pictures))
    maps = outputs_of([block.attn.attn_drop for block in theirs.blocks], lambda: theirs(pictures))
    found = ours(pictures, output_hidden_states=True, output_attentions=True)
    assert found.logits.std() > 0.1
    assert_close(found.logits, theirs(pictures), rtol=tolerance, atol=tolerance)
    assert_close(list(found.hidden_states[1:]), states, rtol=tolerance, atol=tolerance)
    assert_close(list(found.attentions[:2]), maps, rtol=tolerance, atol=tolerance)


@families
@PRECISIONS
def test_same_weights_same_gradients_as_timm(family, dtype, tolerance):
    ours, theirs = timm_twin(family, dtype)
    pictures, labels = native_pixels(ours.config, dtype), torch.tensor([2, 0])
    cross_entropy(theirs(pictures), labels).backward()
    ours(pictures, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert_same_gradients(ours, from_timm(gradients, ours.config), tolerance)


@pytest.mark.parametrize("family", ["original, AugReg", "DeiT III", "sbb, mean of patches", "rectangular"])
@pytest.mark.parametrize("size", [(48, 48), (24, 72), (16, 24)], ids=str)
@torch.no_grad()
def test_same_numbers_as_timm_at_another_resolution(family, size):
    ours, theirs = timm_twin(family, torch.float32, dynamic_img_size=True)
    pictures = pixels(*size).float()
    assert_close(ours(pictures).logits, theirs(pictures), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_feature_maps_are_timm_s_intermediates():
    ours, theirs = timm_twin("DINOv2 with registers", torch.float32)
    config = deepcopy(ours.config)
    config.out_indices = [1, 2]
    backbone = AttnViTBackbone(config).eval()
    backbone.load_state_dict(ours.model.state_dict())
    expected = theirs.forward_intermediates(pixels().float(), intermediates_only=True, norm=True)
    assert_close(list(backbone(pixels().float()).feature_maps), expected, rtol=1e-5, atol=1e-5)


# --- released shapes -------------------------------------------------------------------------------------------------

RELEASED = {
    "vit_small_patch16_224": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "vit_little_patch16_reg1_gap_256": {
        "hidden_size": 320,
        "num_attention_heads": 5,
        "intermediate_size": 1792,
        "image_size": 256,
        "class_token": False,
        "num_register_tokens": 1,
        "pooling": "mean",
        "final_norm": "after_pooling",
        "layer_scale_init": 1e-5,
    },
}


@pytest.mark.parametrize(
    ("name", "depth"), [("vit_small_patch16_224", 12), ("vit_little_patch16_reg1_gap_256", 3)], ids=str
)
def test_a_released_shape_computes_timm_s_numbers_and_gradients(name, depth):
    torch.manual_seed(0)
    theirs = randomise(create_model(name, num_classes=10, depth=depth, weight_init="reset"), std=0.02).eval()
    config = AttnViTConfig(**RELEASED[name], num_hidden_layers=depth, num_labels=10)
    ours = AttnViTForImageClassification(config).eval()
    load(ours, from_timm(theirs.state_dict(), ours.config))
    picture, label = pixels(*config.image_shape, batch=1).float(), torch.tensor([7])
    expected, found = theirs(picture), ours(picture, labels=label)
    assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)
    cross_entropy(expected, label).backward()
    found.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert_same_gradients(ours, from_timm(gradients, ours.config), 1e-5)
