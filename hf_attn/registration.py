"""What makes the models known to transformers: `AutoModel.from_pretrained` and `pipeline` find them by name."""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForSeq2SeqLM,
)

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_detr import IMAGE_PROCESSORS as DETR_IMAGE_PROCESSORS
from hf_attn.image_processing_vit import IMAGE_PROCESSORS
from hf_attn.modeling_detr import AttnDetrForObjectDetection, AttnDetrModel
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration, AttnTranslatorModel
from hf_attn.modeling_vit import (
    AttnViTBackbone,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTModel,
)
from hf_attn.pipeline_detection import register_detection_pipeline
from hf_attn.pipeline_translation import register_translation_pipeline

MODELS: dict[Any, dict[Any, type]] = {
    AttnTranslatorConfig: {
        AutoModel: AttnTranslatorModel,
        AutoModelForSeq2SeqLM: AttnTranslatorForConditionalGeneration,
    },
    AttnViTConfig: {
        AutoModel: AttnViTModel,
        AutoModelForImageClassification: AttnViTForImageClassification,
        AutoModelForMaskedImageModeling: AttnViTForMaskedImageModeling,
        AutoBackbone: AttnViTBackbone,
    },
    AttnDetrConfig: {
        AutoModel: AttnDetrModel,
        AutoModelForObjectDetection: AttnDetrForObjectDetection,
    },
}


def register_all() -> None:
    """Register every model and pipeline of this package; a second time changes nothing."""
    for config, models in MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, model, exist_ok=True)
    AutoImageProcessor.register(AttnViTConfig, image_processor_classes=IMAGE_PROCESSORS, exist_ok=True)
    AutoImageProcessor.register(AttnDetrConfig, image_processor_classes=DETR_IMAGE_PROCESSORS, exist_ok=True)
    register_detection_pipeline()
    register_translation_pipeline()
