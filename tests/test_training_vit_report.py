"""The curves show what was logged, the confusion matrix what was taken for what, the card what was measured."""

from itertools import pairwise

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib import image
from matplotlib.figure import Figure

from hf_attn.training import report, vit_report
from hf_attn.training.vit_report import plot_confusion, plot_learning_curve, write_vit_card

LOG = [
    {"step": 10, "loss": 2.0, "pictures": 1000},
    {"step": 10, "eval_loss": 1.5, "eval_accuracy": 0.5, "eval_top_5_accuracy": 0.75},
    {"step": 20, "loss": 1.0, "pictures": 2000},
    {"step": 20, "eval_loss": 0.5, "eval_accuracy": 0.625, "eval_top_5_accuracy": 1.0},
]
SCORES = {
    "accuracy": 0.9123,
    "top_5_accuracy": 0.99876,
    "balanced_accuracy": 0.9,
    "loss": 0.23456,
    "pictures": 10_000,
    "class_accuracy": {"T-shirt": 0.875, "shirt|blouse": None},
}


def card(tmp_path, **changes) -> ModelCard:
    facts = {
        "model_name": "clothes",
        "config": {"hidden_size": 64, "pooling": "mean"},
        "parameters": 203_000,
        "recipe": {"preset": "tiny", "source": "somewhere"},
        "settings": {"batch_size": 128, "max_steps": None},
        "pictures": {"train": 60_000, "test": 10_000},
        "training_pictures": {"T-shirt": 59_000, "shirt|blouse": 1_000},
        "data_name": "Clothes",
        "data_license": "mit",
        "scores": {"test": SCORES},
        "confusion": np.array([[70, 10], [0, 0]]),
        "training": {
            "steps": 1500,
            "pictures": 192_000,
            "minutes": 9.87,
            "pictures_per_second": 1234.5,
            "precision": "float32",
            "hardware": "an abacus",
            "stopped": "all steps taken",
        },
        "license": "apache-2.0",
    }
    return ModelCard.load(write_vit_card(tmp_path, **{**facts, **changes}))


# Pictures


def test_the_curve_is_drawn_over_the_steps(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report, "_draw", lambda axis, label, curves: drawn.update({label: curves}))
    plot_learning_curve(LOG, tmp_path / "curve.png")
    assert drawn == {
        "loss (nats per picture)": {
            "training, on changed pictures": ([10, 20], [2.0, 1.0]),
            "validation": ([10, 20], [1.5, 0.5]),
        },
        "validation score (%)": {
            "top-1": ([10, 20], [50.0, 62.5]),
            "top-5": ([10, 20], [75.0, 100.0]),
            "mean average precision": ([], []),
        },
    }


@pytest.mark.parametrize(("log", "panels"), [(LOG, 2), ([LOG[0], LOG[2]], 1)])
def test_the_curve_is_a_picture(tmp_path, log, panels):
    picture = image.imread(plot_learning_curve(log, tmp_path / "curve.png"))
    assert picture.shape[:2] == (480 * panels, 1050)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_an_empty_log_has_no_curve(tmp_path):
    with pytest.raises(ValueError, match="neither losses nor scores"):
        plot_learning_curve([{"step": 1, "train_runtime": 2.0}], tmp_path / "curve.png")


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved = []
    monkeypatch.setattr(vit_report, "write_png", lambda figure, output: saved.append(figure))
    return saved


def test_the_confusion_matrix_shows_shares_of_a_row_and_numbers(figures):
    plot_confusion(np.array([[3, 1], [0, 0]]), ["cat", "dog"], "unused.png")
    axis = figures[0].axes[0]
    assert axis.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert {text.get_position(): text.get_text() for text in axis.texts} == {(0, 0): "3", (1, 0): "1"}
    assert axis.get_title() == "75.0% of 4 pictures are right"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog"]
    assert axis.get_ylabel() == "the picture shows"


@pytest.mark.parametrize(("classes", "numbers", "names"), [(25, True, 25), (26, False, 26), (300, False, 20)])
def test_a_confusion_matrix_of_many_classes_leaves_out_what_has_no_room(figures, classes, numbers, names):
    plot_confusion(np.eye(classes, dtype=int), [f"class {number}" for number in range(classes)], "unused.png")
    axis = figures[0].axes[0]
    assert bool(axis.texts) == numbers and len(axis.get_xticklabels()) == names


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_names_do_not_touch_each_other_nor_leave_the_picture(figures, classes):
    names = [f"a $name$ that is rather_long_{number}" for number in range(classes)]
    plot_confusion(np.eye(classes, dtype=int), names, "unused.png")
    figure = figures[0]
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert all(len(label.get_text()) == 24 for label in labels)
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert figure.get_tightbbox().width > 0


def test_the_confusion_matrix_is_a_picture(tmp_path):
    picture = image.imread(plot_confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"], tmp_path / "matrix.png"))
    assert picture[..., :3].min() < 0.5 < picture[..., :3].max()
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.png"]


# Model card


def test_the_card_says_what_was_measured(tmp_path):
    written = card(tmp_path)
    data = written.data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-classification"
    assert "hf_attn" in data.tags and data.license == "apache-2.0"
    results = {result.metric_type: result for result in data.eval_results}
    assert results["accuracy"].metric_value == 0.9123 and results["top_5_accuracy"].metric_value == 0.9988
    assert results["accuracy"].dataset_name == "Clothes" and results["accuracy"].dataset_split == "test"
    for text in (
        "| test | 10,000 | 91.2% | 99.9% | 0.235 |",
        "90.7% to 91.8% (95 % confidence)",
        "| T-shirt | 59,000 | 87.5% |",
        "| shirt\\|blouse | 1,000 | – |",
        "- *T-shirt* taken for *shirt\\|blouse*: 10",
        "| train | 60,000 |",
        "Clothes. Licence of the data: mit.",
        "| pooling | mean |",
        "203.0 k parameters, trained from scratch",
        "1,500 optimizer steps over 192,000 pictures in 9.9 minutes, 1,234 pictures a second, on an abacus (float32)",
        "Recipe `tiny`: somewhere.",
        "confusion_matrix.png",
        "learning_curve.png",
    ):
        assert text in written.text, text
    assert "max_steps" not in written.text


def test_the_interval_of_a_perfect_score_is_not_a_point(tmp_path):
    assert "96.3% to 100.0%" in card(tmp_path, scores={"test": {**SCORES, "accuracy": 1.0, "pictures": 100}}).text


def test_the_snippets_of_the_card_are_python(tmp_path):
    own, carried = [part.split("```")[0] for part in card(tmp_path).text.split("```python\n")[1:]]
    for snippet in (own, carried):
        compile(snippet, "snippet", "exec")
        assert 'pipeline("image-classification", model="clothes"' in snippet
    assert "import hf_attn\n" in own and "trust_remote_code=True" in carried


def test_a_card_without_a_licence_claims_none(tmp_path):
    written = card(tmp_path, license=None, data_license=None)
    assert "license" not in written.data.to_dict() and "No licence was given" in written.text
    assert "Licence of the data: not stated" in written.text


def test_a_card_names_the_model_it_goes_on_from(tmp_path):
    recipe = {"preset": "small", "source": "somewhere", "goes_on_from": "someone/vit", "base_model": "someone/vit"}
    written = card(tmp_path, recipe=recipe)
    assert written.data.base_model == "someone/vit" and "trained from `someone/vit` on" in written.text
    # The Hub refuses a base model that is no id of its own
    local = card(tmp_path, recipe={"preset": "small", "source": "somewhere", "goes_on_from": "probe"})
    assert local.data.base_model is None and "trained from `probe` on" in local.text


def test_a_card_without_scores_says_so(tmp_path):
    written = card(tmp_path, scores={}, confusion=None)
    assert written.data.eval_results is None and "Not measured" in written.text
    assert "confusion_matrix.png" not in written.text
