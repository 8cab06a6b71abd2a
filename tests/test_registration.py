"""With the package imported, transformers' own ways of loading find our models for the checkpoints of others."""

import json

import pytest
from transformers import AutoModelForSeq2SeqLM, MarianMTModel, T5Config, T5ForConditionalGeneration, pipeline

from hf_attn import AttnTranslatorForConditionalGeneration, TranslationPipeline
from hf_attn.registration import AutoTranslator
from hf_attn.tokenization_opus import OpusTokenizer
from tests.opus import GERMAN, marian_tokenizer, save_marian
from tests.test_cli import run


@pytest.fixture(scope="module")
def opus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("opus")
    return directory, save_marian(directory)


def test_a_translation_pipeline_of_an_opus_directory(opus, tmp_path):
    directory, theirs = opus
    translate = pipeline("translation", model=str(directory))
    assert type(translate) is TranslationPipeline
    assert type(translate.model) is AttnTranslatorForConditionalGeneration
    assert type(translate.tokenizer) is OpusTokenizer
    tokenizer = marian_tokenizer(directory)
    for sentence in (GERMAN[i] for i in (0, 1, 3, 6, 7)):  # each one sentence to the pipeline, too
        generated = theirs.generate(**tokenizer(sentence, return_tensors="pt"))
        [record] = translate(sentence)
        assert record["translation_text"] == tokenizer.decode(generated[0], skip_special_tokens=True)
    translate.save_pretrained(tmp_path)
    again = pipeline("translation", model=str(tmp_path), trust_remote_code=False)
    assert again(list(GERMAN)) == translate(list(GERMAN))


def test_automatic_classes_give_what_transformers_has(opus):
    assert type(AutoModelForSeq2SeqLM.from_pretrained(opus[0])) is MarianMTModel


def test_other_translators_stay_what_they_are(tmp_path):
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 12}
    T5ForConditionalGeneration(T5Config(**shape)).save_pretrained(tmp_path)
    assert type(AutoTranslator.from_pretrained(tmp_path, _from_pipeline="translation")) is T5ForConditionalGeneration


def test_what_ours_cannot_be_is_told(opus, tmp_path, caplog):
    save_marian(tmp_path, decoder_ffn_dim=32)
    loaded = AutoTranslator.from_pretrained(tmp_path)
    assert type(loaded) is MarianMTModel
    assert "transformers' own model is taken in place of ours" in caplog.text
    assert "encoder_ffn_dim is 24 and decoder_ffn_dim 32" in caplog.text


def test_the_command_translates(opus):
    done = run("translate", GERMAN[0], "--model", str(opus[0]), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["source"] == GERMAN[0]
