"""A card written from files says what they say, passes its own check, and names no path of this machine."""

import json

import pytest

from hf_attn.hub_card import card_problems
from hf_attn.hub_files import LocalFiles
from hf_attn.training.plain_card import plain_card
from tests.tiny import tiny_detr, tiny_translator, tiny_vit

SCORES = {
    "attn_translator": {"bleu": 12.3, "chrf": 34.5, "bleu_signature": "b", "chrf_signature": "c"},
    "attn_vit": {"accuracy": 0.75, "top_5_accuracy": 1.0},
    "attn_detr": {"ap": 0.5, "ap50": 0.75, "ap75": None},
}
TRAINING = {"steps": 900, "minutes": 4.59, "precision": "float32", "stopped": "all steps taken"}


@pytest.mark.parametrize("model", [tiny_translator, tiny_vit, tiny_detr])
@pytest.mark.parametrize("trained", [True, False])
def test_the_card_says_what_is_known(tmp_path, model, trained):
    network = model()
    network.save_pretrained(tmp_path)
    kind = network.config.model_type
    if trained:
        settings = {"base_model": "/home/me/secret", "data_name": "Animals", "seed": 7, "bf16": None, "license": "mit"}
        languages = {"source_language": "de", "target_language": "en"} if kind == "attn_translator" else {}
        record = {"settings": {**settings, **languages}, "data": {}}
        (tmp_path / "training_settings.json").write_text(json.dumps(record))
        (tmp_path / "metrics.json").write_text(
            json.dumps({"training": TRAINING, "parameters": 1, "test": SCORES[kind]})
        )
    card = plain_card(LocalFiles(tmp_path), None if trained else "apache-2.0")
    (tmp_path / "README.md").write_text(str(card))
    assert card_problems(LocalFiles(tmp_path)) == []
    assert f"of {network.num_parameters():,} parameters" in card.text
    assert ("| Animals | test |" in card.text) == trained == ("| seed | 7 |" in card.text)
    assert card.data.license == ("mit" if trained else "apache-2.0")
    assert (card.data.language == ["de", "en"]) == (trained and kind == "attn_translator")
    assert "secret" not in str(card) and "None" not in str(card)
    assert ("900 optimizer steps in 4.6 minutes (float32); all steps taken." in card.text) == trained
    assert ("Nothing is known of it" in card.text) != trained


def test_a_model_without_a_task_and_without_licence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    card = plain_card(LocalFiles(tmp_path))
    assert 'AutoModel.from_pretrained("' in card.text and "import hf_attn" not in card.text
    assert "No licence was given" in card.text and card.data.tags is None
