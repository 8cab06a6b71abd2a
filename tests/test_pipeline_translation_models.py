"""The translation pipeline around its models: which it takes, how it is saved, and by which names it is found."""

import json
import math

import pytest
import torch
import transformers
from transformers import AutoTokenizer, MarianConfig, MarianMTModel, pipeline

from hf_attn import AttnTranslatorForConditionalGeneration
from hf_attn.pipeline_translation import TranslationPipeline, register_translation_pipeline
from tests.test_pipeline_translation import TEXTS, TOKENIZER, tiny_pipeline
from tests.tiny import tiny_translator

# --- models ----------------------------------------------------------------------------------------------------------


def marian(**options) -> MarianMTModel:
    shape = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 1}
    config = MarianConfig(
        vocab_size=len(TOKENIZER), d_model=16, **shape, **ids, max_position_embeddings=24, init_std=0.5, **options
    )
    return MarianMTModel(config).eval()


def test_models_of_transformers_translate_too():
    translate = pipeline("translation", model=marian(), tokenizer=TOKENIZER)
    text = "Der alte Mann, der im Garten sitzt, sieht die Kinder, die spielen. Die Kinder!"
    records = translate(text, n_best=2, num_beams=2, return_token_scores=True)
    for record in records:  # split for its 24 positions, and given more than the 20 tokens of transformers
        assert math.isfinite(record["score"])
        assert sum(token == "</s>" for token, _ in record["token_scores"]) <= 6
    encoded = TOKENIZER("Die Kinder!", return_tensors="pt")
    ids = translate.model.generate(**encoded, max_new_tokens=23)
    assert (
        translate("Die Kinder!")[0]["translation_text"] == TOKENIZER.decode(ids[0], skip_special_tokens=True).strip()
    )
    with pytest.raises(ValueError, match="MarianMTModel shows no cross-attention"):
        translate(text, return_alignments=True)


def test_a_model_in_training_translates_without_dropout():
    model = tiny_translator(vocab_size=len(TOKENIZER), dropout=0.5)
    translate = pipeline("translation", model=model, tokenizer=TOKENIZER, max_new_tokens=12)
    expected, aligned = translate(TEXTS), translate.align("Der Mann", "The man").weights
    model.train()
    assert translate(TEXTS) == expected
    assert torch.equal(translate.align("Der Mann", "The man").weights, aligned)
    assert model.training


def test_what_cannot_translate_is_refused():
    gpt = transformers.GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=2)
    with pytest.raises(ValueError, match="GPT2LMHeadModel is no encoder-decoder"):
        pipeline("translation", model=transformers.GPT2LMHeadModel(gpt), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        TranslationPipeline(model=tiny_translator())


# --- saving, loading, registering ------------------------------------------------------------------------------------


def test_a_saved_model_is_found_by_task_and_directory(tmp_path):
    translate = tiny_pipeline()
    expected = translate(TEXTS)
    translate.model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = pipeline("translation", model=str(tmp_path), max_new_tokens=12)
    assert type(loaded) is TranslationPipeline
    assert type(loaded.model) is AttnTranslatorForConditionalGeneration
    assert loaded(TEXTS) == expected


def test_a_saved_pipeline_is_loaded_whole(tmp_path):
    translate = tiny_pipeline(return_alignments=True)
    translate.tokenizer = AutoTokenizer.from_pretrained(saved(TOKENIZER, tmp_path / "tokenizer"))
    translate.save_pretrained(tmp_path / "pipeline")
    config = json.loads((tmp_path / "pipeline" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 knows
    for trust in (None, True):  # the package's own code serves, whatever the directory has
        options = {"max_new_tokens": 12, "return_alignments": True}
        loaded = pipeline("translation", model=str(tmp_path / "pipeline"), trust_remote_code=trust, **options)
        assert type(loaded) is TranslationPipeline
        assert loaded(TEXTS) == translate(TEXTS)


def saved(tokenizer, directory) -> str:
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_registering_again_changes_nothing(caplog):
    tasks = dict(transformers.pipelines.PIPELINE_REGISTRY.supported_tasks)
    register_translation_pipeline()
    assert transformers.pipelines.PIPELINE_REGISTRY.supported_tasks == tasks
    assert not caplog.records


def test_other_removed_tasks_stay_removed():
    with pytest.raises(KeyError, match="has been removed"):
        pipeline("summarization", model=tiny_translator(), tokenizer=TOKENIZER)
    with pytest.raises(KeyError, match=r"Unknown task translation_de_to_en.*'translation'"):
        pipeline("translation_de_to_en", model=tiny_translator(), tokenizer=TOKENIZER)
