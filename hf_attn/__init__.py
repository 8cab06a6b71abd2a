"""The three attention classics for the Hugging Face libraries. Importing this package registers its models."""

from hf_attn.environment import check_torchvision, started_as_command

__version__ = "0.1.0"

__all__ = [
    "AttnDetrConfig",
    "AttnDetrForObjectDetection",
    "AttnDetrImageProcessor",
    "AttnDetrModel",
    "AttnTranslatorConfig",
    "AttnTranslatorForConditionalGeneration",
    "AttnTranslatorModel",
    "AttnViTBackbone",
    "AttnViTConfig",
    "AttnViTForImageClassification",
    "AttnViTForMaskedImageModeling",
    "AttnViTImageProcessor",
    "AttnViTModel",
    "DetectionPipeline",
    "MultiHeadAttention",
    "NonLocalBlock",
    "TranslationPipeline",
    "eager_attention",
    "paper_generation_config",
    "record_attention",
    "train_tokenizer",
]

if not started_as_command():  # the command line answers --help at once, and does this when it has work
    check_torchvision()  # before transformers, whose message about a broken one misleads

    from hf_attn.attention import MultiHeadAttention, NonLocalBlock, eager_attention, record_attention
    from hf_attn.configuration_detr import AttnDetrConfig
    from hf_attn.configuration_translator import AttnTranslatorConfig
    from hf_attn.configuration_vit import AttnViTConfig
    from hf_attn.generation_translator import paper_generation_config
    from hf_attn.image_processing_detr import AttnDetrImageProcessor
    from hf_attn.image_processing_vit import AttnViTImageProcessor
    from hf_attn.modeling_detr import AttnDetrForObjectDetection, AttnDetrModel
    from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration, AttnTranslatorModel
    from hf_attn.modeling_vit import (
        AttnViTBackbone,
        AttnViTForImageClassification,
        AttnViTForMaskedImageModeling,
        AttnViTModel,
    )
    from hf_attn.pipeline_detection import DetectionPipeline
    from hf_attn.pipeline_translation import TranslationPipeline
    from hf_attn.registration import register_all
    from hf_attn.tokenization_translator import train_tokenizer

    register_all()
