"""The learning curve is a picture of what was logged, the model card says what was measured."""

import pytest
from huggingface_hub import ModelCard
from matplotlib import image

from hf_attn.training import report
from hf_attn.training.report import plot_learning_curve, write_translator_card

LOG = [
    {"step": 10, "loss": 7.0, "target_tokens": 1000},
    {"step": 10, "eval_loss": 6.5, "eval_bleu": 1.0, "eval_chrf": 12.0},
    {"step": 20, "loss": 6.0, "target_tokens": 2000},
    {"step": 20, "eval_loss": 5.5, "eval_bleu": 2.0, "eval_chrf": 15.0},
    {"step": 20, "train_runtime": 3.0},
]
SCORES = {
    "bleu": 12.345,
    "chrf": 34.567,
    "loss": 2.3456,
    "sentences": 1234,
    "num_beams": 4,
    "gnmt_alpha": 0.6,
    "bleu_signature": "nrefs:1|tok:13a",
    "chrf_signature": "nrefs:1|nc:6",
}


def card(tmp_path, **changes) -> ModelCard:
    facts = {
        "source_language": "de",
        "target_language": "en",
        "model_name": "de-en-tiny",
        "config": {"hidden_size": 256},
        "parameters": 7_578_624,
        "sentence_pairs": {"train": 77000, "test": 1234},
        "data_name": "Help pages",
        "data_license": "MPL-2.0",
        "snippet": 'Das ist "gut".',
        "examples": [{"source": "Guten\nTag", "reference": "Good day", "translation": "Good | day"}],
        "settings": {"seed": 7, "max_steps": None},
        "scores": {"test": SCORES},
        "training": {
            "steps": 1500,
            "target_tokens": 2_500_000,
            "minutes": 9.87,
            "target_tokens_per_second": 4221.6,
            "hardware": "an abacus",
            "precision": "float32",
            "stopped": "x",
        },
        "license": "apache-2.0",
    }
    return ModelCard.load(write_translator_card(tmp_path, **{**facts, **changes}))


def test_the_curve_is_drawn_over_the_steps(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report, "_draw", lambda axis, label, curves: drawn.update({label: curves}))
    plot_learning_curve(LOG, tmp_path / "curve.png")
    assert drawn == {
        "loss (nats per token)": {
            "training, label-smoothed": ([10, 20], [7.0, 6.0]),
            "validation": ([10, 20], [6.5, 5.5]),
        },
        "validation score": {"BLEU": ([10, 20], [1.0, 2.0]), "chrF": ([10, 20], [12.0, 15.0])},
    }


@pytest.mark.parametrize(("log", "panels"), [(LOG, 2), ([LOG[0], LOG[2]], 1)])
def test_the_curve_is_a_picture(tmp_path, log, panels):
    picture = image.imread(plot_learning_curve(log, tmp_path / "curve.png"))
    assert picture.shape[:2] == (480 * panels, 1050)
    assert picture[..., :3].min() < 0.5 < picture[..., :3].max()
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_an_empty_log_has_no_curve(tmp_path):
    with pytest.raises(ValueError, match="neither losses nor scores"):
        plot_learning_curve([{"step": 1, "train_runtime": 2.0}], tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_was_measured(tmp_path):
    written = card(tmp_path)
    data = written.data
    assert data.language == ["de", "en"] and data.license == "apache-2.0"
    assert data.library_name == "transformers" and data.pipeline_tag == "translation"
    assert data.tags == ["hf_attn", "translation"]
    results = {result.metric_type: result for result in data.eval_results}
    assert results["bleu"].metric_value == 12.35 and results["chrf"].metric_value == 34.57
    assert results["bleu"].metric_args == {"signature": "nrefs:1|tok:13a"}
    assert results["bleu"].dataset_name == "Help pages" and results["bleu"].dataset_split == "test"
    for text in (
        "| test | 1,234 | 12.3 | 34.6 | 2.346 |",
        "| train | 77,000 |",
        "| hidden_size | 256 |",
        "| seed | 7 |",
        "Help pages. Licence of the data: MPL-2.0.",
        "7.6 M parameters",
        "1,500 optimizer steps over 2,500,000 target tokens in 9.9 minutes, 4,222 tokens a second, "
        "on an abacus (float32); x.",
        "> Guten Tag",
        "*translation:* Good | day",
        "learning_curve.png",
    ):
        assert text in written.text, text
    assert "max_steps" not in written.text


def test_the_snippets_of_the_card_are_python(tmp_path):
    own, carried = [part.split("```")[0] for part in card(tmp_path).text.split("```python\n")[1:]]
    for snippet in (own, carried):
        compile(snippet, "snippet", "exec")
        assert 'pipeline("translation", model="de-en-tiny"' in snippet
    assert "import hf_attn\n" in own and "trust_remote_code=True" in carried


def test_a_card_without_a_licence_claims_none(tmp_path):
    written = card(tmp_path, license=None)
    assert "license" not in written.data.to_dict() and "No licence was given" in written.text


def test_a_card_without_scores_says_so(tmp_path):
    written = card(tmp_path, scores={}, examples=[])
    assert written.data.eval_results is None and "Not measured" in written.text
