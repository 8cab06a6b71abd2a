"""CTranslate2 translates as the model does that it was made of."""

import sys

import ctranslate2
import pytest
import torch
from transformers import AutoTokenizer

from hf_attn import AttnTranslatorForConditionalGeneration as Translator
from hf_attn import train_tokenizer
from hf_attn.interchange.ctranslate2 import export_ctranslate2
from hf_attn.interchange.exporting import export_model
from hf_attn.tokenization_opus import OpusTokenizer
from tests.opus import ENGLISH, GERMAN, save_marian, sentences
from tests.tiny import tiny_translator

LIMIT = 24
PRE = {"norm_position": "pre"}
HALVES = {"position_layout": "halves", "activation_function": "swish", "logits_bias": True}
FAIRSEQ = {**PRE, "position_layout": "fairseq", "first_position": 2, "scale_embedding": False}
VARIANTS = {
    "the paper's": {},
    "OPUS-MT's": HALVES,
    "fairseq's": FAIRSEQ,
    "pre-norm, interleaved, with a bias": {**PRE, "logits_bias": True, "activation_function": "gelu"},
    "post-norm, halves, untied": {**HALVES, "share_embeddings": False, "tie_word_embeddings": False},
    "pre-norm, output layer apart": {**PRE, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*GERMAN, *ENGLISH] * 3, 400)


@torch.no_grad()
def talkative(model: Translator) -> Translator:
    """What it says depends on the source, unlike what most random models say."""
    model.model.encoder.embed_tokens.weight.mul_(3)
    for layer in model.model.decoder.layers:
        layer.cross_attention.q_proj.weight.mul_(4)
        layer.cross_attention.out_proj.weight.mul_(8)
        layer.feed_forward_add_norm.norm.bias.mul_(0.1)
    return model


def translator(tokenizer, **config) -> Translator:
    return talkative(tiny_translator(2, vocab_size=len(tokenizer), encoder_layers=3, **config))


def assert_same(model, tokenizer, directory, beams: int = 1) -> None:
    """200 translations are equal, and not all alike."""
    theirs = ctranslate2.Translator(str(directory), compute_type="float32", intra_threads=1)
    texts = sentences(GERMAN, 200, seed=1)
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]
    results = theirs.translate_batch(tokens, beam_size=beams, max_decoding_length=LIMIT, min_decoding_length=0)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    end = model.generation_config.eos_token_id
    said = set()
    for result, ids in zip(
        results, model.generate(**batch, num_beams=beams, max_new_tokens=LIMIT).tolist(), strict=True
    ):
        ids = ids[1 : 1 + LIMIT]
        words = tokenizer.convert_ids_to_tokens(ids[: ids.index(end)] if end in ids else ids)
        assert result.hypotheses[0] == words
        said.add(tuple(words))
    assert len(said) > 50


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_hundred_greedy_translations(variant, tokenizer, tmp_path):
    model = translator(tokenizer, **VARIANTS[variant])
    export_ctranslate2(model, tmp_path / "model", tokenizer)
    assert_same(model, tokenizer, tmp_path / "model")


def test_beams(tokenizer, tmp_path):
    model = translator(tokenizer, **HALVES)
    export_ctranslate2(model, tmp_path / "model", tokenizer)
    assert_same(model, tokenizer, tmp_path / "model", beams=4)


def test_an_opus_model_by_the_command(tmp_path):
    save_marian(tmp_path / "opus", std=0.2, encoder_layers=3, decoder_layers=2)
    tokenizer = OpusTokenizer.from_pretrained(tmp_path / "opus")
    model = talkative(Translator.from_pretrained(tmp_path / "opus").eval())
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    export_model(tmp_path / "ours", "ctranslate2", tmp_path / "theirs")
    settings = model.generation_config  # of which CTranslate2 is told with each call, if it has them
    settings.forced_eos_token_id, settings.no_repeat_ngram_size = None, 0
    assert_same(model, tokenizer, tmp_path / "theirs")
    beside = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert beside(GERMAN[0])["input_ids"] == tokenizer(GERMAN[0])["input_ids"]


def test_what_is_banned_is_never_said(tokenizer, tmp_path):
    model = translator(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[7] *= 9
    model.generation_config.bad_words_ids = [[7], [3, 4]]
    export_ctranslate2(model, tmp_path / "model", tokenizer, quantization="int8")
    theirs = ctranslate2.Translator(str(tmp_path / "model"))
    word = tokenizer.convert_ids_to_tokens(7)
    results = theirs.translate_batch(
        [["</s>"]] * 3, max_decoding_length=9, sampling_topk=0, num_hypotheses=1, beam_size=1
    )
    assert all(word not in result.hypotheses[0] for result in results)


def test_what_cannot_be_is_refused(tokenizer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="activation_function is 'relu6'; CTranslate2 has relu, gelu"):
        export_ctranslate2(tiny_translator(activation_function="relu6"), tmp_path / "no", tokenizer)
    with pytest.raises(ValueError, match="give the tokenizer that belongs to the model"):
        export_ctranslate2(tiny_translator(), tmp_path / "no")
    with pytest.raises(
        ValueError, match=f"ids up to {len(tokenizer) - 1}, the model 41 words; give the one it belongs to"
    ):
        export_ctranslate2(tiny_translator(), tmp_path / "no", tokenizer)
    for end in (None, [2, 5]):
        model = translator(tokenizer, eos_token_id=end)
        with pytest.raises(ValueError, match="a model of CTranslate2 has one; leave one there, and give others"):
            export_ctranslate2(model, tmp_path / "no", tokenizer)
    monkeypatch.setitem(sys.modules, "ctranslate2.specs", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-attn\[interchange\]'"):
        export_ctranslate2(tiny_translator(), tmp_path / "no", tokenizer)
    assert not (tmp_path / "no").exists()
