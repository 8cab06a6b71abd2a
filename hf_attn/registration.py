"""What makes the models known to transformers: `AutoModel.from_pretrained` and `pipeline` find them by name."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration, AttnTranslatorModel
from hf_attn.pipeline_translation import register_translation_pipeline


def register_all() -> None:
    """Register every model and pipeline of this package; a second time changes nothing."""
    AutoConfig.register(AttnTranslatorConfig.model_type, AttnTranslatorConfig, exist_ok=True)
    AutoModel.register(AttnTranslatorConfig, AttnTranslatorModel, exist_ok=True)
    AutoModelForSeq2SeqLM.register(AttnTranslatorConfig, AttnTranslatorForConditionalGeneration, exist_ok=True)
    register_translation_pipeline()
