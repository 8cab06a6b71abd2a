"""What makes the models known to transformers: `AutoModel.from_pretrained` and `pipeline` find them by name."""

from functools import partial
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
    AutoTokenizer,
    MarianConfig,
    MarianTokenizer,
)
from transformers.utils import logging

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_detr import IMAGE_PROCESSORS as DETR_IMAGE_PROCESSORS
from hf_attn.image_processing_vit import IMAGE_PROCESSORS as VIT_IMAGE_PROCESSORS
from hf_attn.modeling_detr import AttnDetrForObjectDetection, AttnDetrModel
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration, AttnTranslatorModel
from hf_attn.modeling_vit import (
    AttnViTBackbone,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTModel,
)
from hf_attn.pipeline_detection import DetectionPipeline, register_detection_pipeline
from hf_attn.pipeline_translation import TranslationPipeline, register_translation_pipeline
from hf_attn.tokenization_opus import OpusTokenizer

logger = logging.get_logger(__name__)

MODELS: dict[Any, dict[Any, Any]] = {
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


PROCESSORS: dict[Any, dict[str, Any]] = {AttnViTConfig: VIT_IMAGE_PROCESSORS, AttnDetrConfig: DETR_IMAGE_PROCESSORS}
# Those that take the place of transformers' own: task, class, the automatic class of its model, and what it reads
PIPELINES: dict[Any, tuple[str, type, type, str]] = {
    AttnTranslatorConfig: ("translation", TranslationPipeline, AutoModelForSeq2SeqLM, "text"),
    AttnDetrConfig: ("object-detection", DetectionPipeline, AutoModelForObjectDetection, "multimodal"),
}


OF_AUTO_CLASSES = ("_from_pipeline", "trust_remote_code", "code_revision")  # arguments that models do not know


def register_all() -> None:
    """Register every model, processor and pipeline of this package; a second time changes nothing.

    They are registered to be saved with their code, too, for those who load them without this package.
    """
    for config, models in MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, model, exist_ok=True)
            model.register_for_auto_class(auto_class.__name__)
            model.load_foreign = classmethod(_load_foreign)
            model.auto_map = {"AutoConfig": _reference(config)}
            model.auto_map |= {each.__name__: _reference(one) for each, one in models.items()}
            if config in PIPELINES:
                task, pipeline, of_model, kind = PIPELINES[config]
                said = {"impl": _reference(pipeline), "pt": [of_model.__name__], "type": kind}
                model.custom_pipelines = {task: said}
    for config, processors in PROCESSORS.items():
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
        for processor in processors.values():
            processor.register_for_auto_class("AutoImageProcessor")
            processor.load_foreign = partial(_load_foreign_processor, config)
    OpusTokenizer.register_for_auto_class("AutoTokenizer")
    OpusTokenizer.convert_marian = staticmethod(_convert_marian)
    AutoTokenizer.register(AttnTranslatorConfig, fast_tokenizer_class=OpusTokenizer, exist_ok=True)
    # the fast form of that slow one, with the same ids
    AutoTokenizer.register(
        MarianConfig, slow_tokenizer_class=MarianTokenizer, fast_tokenizer_class=OpusTokenizer, exist_ok=True
    )
    register_detection_pipeline()
    register_translation_pipeline(AutoTranslator)


class AutoTranslator(AutoModelForSeq2SeqLM):
    """For `pipeline("translation")`: ours of the checkpoints that it can be, of all others what transformers makes."""

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        from hf_attn.interchange.families import is_translator
        from hf_attn.interchange.loading import DamagedError

        if is_translator(source, **kwargs):
            options = {name: value for name, value in kwargs.items() if name not in OF_AUTO_CLASSES}
            try:
                return AttnTranslatorForConditionalGeneration.from_pretrained(source, **options)
            except DamagedError:
                raise
            except (OSError, ValueError) as error:
                logger.warning(f"transformers' own model is taken in place of ours: {error}")
        return super().from_pretrained(source, *args, **kwargs)


def _convert_marian(**kwargs: Any) -> dict[str, Any]:
    from hf_attn.interchange.opus_tokenizer import convert_marian

    return convert_marian(**kwargs)


def _load_foreign(model: Any, source: Any, **kwargs: Any) -> Any | None:
    from hf_attn.interchange.families import load  # many tables, for those who need them

    return load(model, source, **kwargs)


def _load_foreign_processor(config_class: Any, source: Any, **kwargs: Any) -> dict[str, Any] | None:
    from hf_attn.interchange.families import load_processor

    return load_processor(config_class, source, **kwargs)


def _reference(named: type) -> str:
    """As transformers names a class of a repository: module.Class, for all files lie side by side there."""
    return f"{named.__module__.rsplit('.', 1)[-1]}.{named.__name__}"
