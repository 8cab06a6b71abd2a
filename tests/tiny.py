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
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        elif name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model.eval()
