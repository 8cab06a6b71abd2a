"""A card is complete, or each thing that it lacks is named with its remedy."""

import pytest

from hf_attn.hub_card import card_problems, read_card
from hf_attn.hub_files import LocalFiles
from tests.hub_fake import save_model, write_card


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "vit")


def test_a_complete_card_has_no_problems(model):
    write_card(model)
    assert card_problems(LocalFiles(model)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"license": None}, "no license; without one nobody may use the model"),
        ({"license": "apache2"}, "license apache2 is none that the Hub knows; write it as apache-2.0"),
        ({"license": ["mit"]}, "license ['mit'] is none that the Hub knows"),
        ({"license": "other"}, "license other has no license_name; add it"),
        ({"library_name": None}, "library_name is None; pipelines load only"),
        ({"tags": ["vision"]}, "no tag hf_attn, by which"),
        ({"pipeline_tag": "translation"}, "pipeline_tag is translation, but AttnViTForImageClassification is for"),
    ],
)
def test_what_is_missing_is_named(model, changes, said):
    write_card(model, **changes)
    (problem,) = card_problems(LocalFiles(model))
    assert said in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no README.md; write one with `hf-attn card "),
        ("# x", "has no YAML"),
        ("---\na: [\n---\n", "its YAML cannot be read"),
        ("---\nmodel-index: [{name: x}]\n---\n", "its YAML is not a model card's .*results"),
        ("---\nmodel-index: 3\n---\n", "its YAML is not a model card's"),
    ],
)
def test_a_wrong_card_is_an_error(model, text, said):
    (model / "README.md").unlink(missing_ok=True)
    if text is not None:
        (model / "README.md").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_card(LocalFiles(model))


def test_scores_must_survive_what_the_hub_makes_of_them(model):
    result = "{task: {type: t}, dataset: {name: D, type: d}, metrics: [{type: bleu, value: 1.5}, {type: x, value: 2}]}"
    (model / "README.md").write_text(f"---\nmodel-index: [{{name: x, results: [{result}, {result}]}}]\n---\n")
    read_card(LocalFiles(model))
    two = f"[{{name: x, results: [{result}]}}, {{name: y, results: []}}]"
    (model / "README.md").write_text(f"---\nmodel-index: {two}\n---\n")
    with pytest.raises(ValueError, match="its model-index does not survive reading; give one model"):
        read_card(LocalFiles(model))
