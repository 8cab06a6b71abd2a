"""Models small enough for tests, with every norm, bias and table randomised: LayerNorm starts as the identity, and
freshly initialised models hide errors."""

import torch

from hf_attn import (
    AttnDetrConfig,
    AttnDetrForObjectDetection,
    AttnTranslatorConfig,
    AttnTranslatorForConditionalGeneration,
    AttnViTConfig,
    AttnViTForImageClassification,
)


def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.2) -> torch.nn.Module:
    """Add noise to every parameter of a model, in place, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return model


def tiny_translator(seed: int = 0, vocab_size: int = 41, **config_overrides) -> AttnTranslatorForConditionalGeneration:
    """A 2 + 2 layer translator of width 16 in eval mode."""
    shape = {
        "hidden_size": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "dropout": 0.0,
    }
    config = AttnTranslatorConfig(vocab_size=vocab_size, **{**shape, **config_overrides})
    torch.manual_seed(seed)
    return randomise(AttnTranslatorForConditionalGeneration(config), seed).eval()


def tiny_vit(seed: int = 0, **config_overrides) -> AttnViTForImageClassification:
    """A 2-layer classifier of width 16 for 3 classes of 32x32 pictures in 16 patches, in eval mode."""
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 3,
    }
    torch.manual_seed(seed)
    return randomise(AttnViTForImageClassification(AttnViTConfig(**{**shape, **config_overrides})), seed).eval()


def tiny_detr(seed: int = 0, **config_overrides) -> AttnDetrForObjectDetection:
    """A 2 + 2 layer detector of width 32, 7 queries and 3 classes on a narrow resnet10t of stride 16, in eval mode."""
    shape = {
        "backbone": "resnet10t",
        "backbone_kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
        "backbone_feature": -2,
        "hidden_size": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_queries": 7,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    names = {} if "id2label" in config_overrides else {"num_labels": 3}
    torch.manual_seed(seed)
    model = AttnDetrForObjectDetection(AttnDetrConfig(**{**shape, **names, **config_overrides}))
    return randomise_statistics(randomise(model, seed), seed).eval()


DETR_VARIANTS = {
    "plain": {},
    "conditional": {"conditional_attention": True},
    "denoising": {"denoising_groups": 2},
    "all": {"conditional_attention": True, "denoising_groups": 2, "class_loss": "focal"},
}
DETR_LABELS = [
    {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.4]])},
    {"class_labels": torch.tensor([], dtype=torch.long), "boxes": torch.zeros(0, 4)},
    {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.1]])},
]


def randomise_statistics(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Randomise what batch norm has seen, in place, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        elif name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model


def padded_pictures(sizes, height: int = 96, width: int = 96, seed: int = 0):
    """Pictures of these sizes, and the same in one batch with their mask; the padding is noise, which none may see."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.randn(3, *size, generator=generator) for size in sizes]
    pixels = torch.randn(len(sizes), 3, height, width, generator=generator)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    for row, (picture, (own_height, own_width)) in enumerate(zip(pictures, sizes, strict=True)):
        pixels[row, :, :own_height, :own_width] = picture
        mask[row, :own_height, :own_width] = 1
    return pictures, pixels, mask
