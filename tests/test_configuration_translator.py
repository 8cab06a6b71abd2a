"""The default is the base model of the paper; a configuration survives saving; what cannot be built is refused."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration
from tests.tiny import tiny_translator


def parameters_by_formula(config: AttnTranslatorConfig) -> int:
    """Counted from table 3 of the paper and its formulas, not from any module."""
    d, inner = config.hidden_size, config.intermediate_size
    attention = 4 * (d * d + d)  # W^Q, W^K, W^V, W^O of all heads
    feed_forward = (d * inner + inner) + (inner * d + d)
    norm = 2 * d
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    words = config.vocab_size * d  # one table for source, target and output
    return words + config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer


def test_the_default_is_the_base_model_of_the_paper():
    config = AttnTranslatorConfig()
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (512, 2048, 8)
    assert (config.dropout, config.label_smoothing) == (0.1, 0.1)
    assert (config.norm_position, config.position_layout) == ("post", "interleaved")
    assert config.activation_function == "relu"
    with torch.device("meta"):
        model = AttnTranslatorForConditionalGeneration(config)
    assert model.num_parameters() == parameters_by_formula(config) == 63_082_496  # the paper rounds to 65 million


def test_the_formula_counts_a_small_model_too():
    config = AttnTranslatorConfig(
        vocab_size=50, hidden_size=8, encoder_layers=1, decoder_layers=3, num_attention_heads=2, intermediate_size=12
    )
    assert AttnTranslatorForConditionalGeneration(config).num_parameters() == parameters_by_formula(config)


def test_special_tokens_do_not_collide():
    config = AttnTranslatorConfig()
    ids = [config.bos_token_id, config.pad_token_id, config.eos_token_id, config.unk_token_id]
    assert ids == [0, 1, 2, 3]  # padding is not 0, which beam search would take for </s>
    assert config.decoder_start_token_id == config.bos_token_id


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"vocab_size": 58101, "pad_token_id": 58100, "decoder_start_token_id": 58100, "eos_token_id": 0},
        {"norm_position": "pre", "dropout": 0, "label_smoothing": 0.2, "logits_bias": True},
        {"share_embeddings": False, "decoder_vocab_size": 500, "eos_token_id": [2, 5], "pad_token_id": None},
    ],
)
def test_saved_and_loaded_it_is_the_same(tmp_path, overrides):
    config = AttnTranslatorConfig(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AttnTranslatorConfig
    assert loaded.to_json_string() == config.to_json_string()
    for name, value in overrides.items():
        assert getattr(loaded, name) == value
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "attn_translator"


def test_the_target_vocabulary_is_the_source_s_unless_it_is_given():
    assert AttnTranslatorConfig(vocab_size=99).decoder_vocab_size == 99
    assert AttnTranslatorConfig(vocab_size=99, decoder_vocab_size=50, share_embeddings=False).decoder_vocab_size == 50


def test_num_hidden_layers_is_the_encoder_s():
    assert AttnTranslatorConfig(encoder_layers=3, decoder_layers=1).num_hidden_layers == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 510}, "hidden_size 510 is not a multiple of num_attention_heads 8"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not at least 1"),
        ({"hidden_size": -512}, "hidden_size -512 is not at least 1"),
        ({"encoder_layers": 0}, "encoder_layers 0 is not at least 1"),
        ({"decoder_layers": -1}, "decoder_layers -1 is not at least 1"),
        ({"intermediate_size": 0}, "intermediate_size 0 is not at least 1"),
        ({"vocab_size": 0}, "vocab_size 0 is not at least 1"),
        ({"norm_position": "middle"}, "norm_position 'middle' is unknown; use 'post' or 'pre'"),
        ({"first_position": -1}, "first_position -1 is negative; the first place is 0, or later"),
        (
            {"position_layout": "learned"},
            "position_layout 'learned' is unknown; use 'interleaved', 'halves', 'fairseq'",
        ),
        ({"activation_function": "rleu"}, "activation_function 'rleu' is unknown; use one of .*'relu'"),
        ({"dropout": 1}, r"dropout 1 is not in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"attention_dropout -0.1 is not in \[0, 1\)"),
        ({"activation_dropout": 1.5}, r"activation_dropout 1.5 is not in \[0, 1\)"),
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 is not in \[0, 1\)"),
        ({"label_smoothing": math.nan}, r"label_smoothing nan is not in \[0, 1\)"),
        ({"decoder_vocab_size": 500}, "500 cannot share one embedding; set share_embeddings=False"),
        ({"vocab_size": 10, "pad_token_id": 10}, "pad_token_id 10 is outside the vocabulary of 10"),
        ({"pad_token_id": -1}, "pad_token_id -1 is outside the vocabulary of 37000"),
        ({"decoder_start_token_id": 37000}, "decoder_start_token_id 37000 is outside the vocabulary of 37000"),
    ],
)
def test_what_cannot_be_built_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        AttnTranslatorConfig(**overrides)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", "512"), ("hidden_size", 512.0), ("dropout", "0.1"), ("norm_position", None)]
)
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        AttnTranslatorConfig(**{field: value})
    config = AttnTranslatorConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        setattr(config, field, value)


def test_generation_settings_stay_out_of_it(tmp_path):
    model = tiny_translator()
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path)
    assert "num_beams" not in json.loads((tmp_path / "config.json").read_text())
    assert json.loads((tmp_path / "generation_config.json").read_text())["num_beams"] == 3
