"""Classes are matched by name, whatever their numbers, and what the model cannot know is named."""

import datasets
import pytest

from hf_attn.training.vit_labels import LabelledPictures, check_columns, class_names, count_labels, is_multi_label
from tests.shapes import SHAPES, pictures, pictures_of_several

LABEL2ID = {"cross": 0, "triangle": 1, "disc": 2, "square": 3}


def test_labels_become_the_models_numbers():
    rows = LabelledPictures(pictures(4), "test", LABEL2ID)
    assert rows.labels == [2, 3, 0, 2] and len(rows) == 4
    several = LabelledPictures(pictures_of_several(7), "test", LABEL2ID)
    assert several.labels == [[], [2], [3], [0], [2, 3], [3, 0], [2, 0]]


def test_rows_are_alike_one_by_one_and_many_at_a_time():
    rows = LabelledPictures(pictures(6).select([5, 0, 3]), "test", LABEL2ID)
    together = rows.__getitems__([2, 0])
    assert [each["index"] for each in together] == [3, 5]
    for alone, other in zip([rows[2], rows[0]], together, strict=True):
        assert alone["image"].tobytes() == other["image"].tobytes()
        assert (alone["label"], alone["index"]) == (other["label"], other["index"])


def test_rows_without_a_number_are_counted():
    rows = LabelledPictures(pictures(6).remove_columns("index").select([5, 0]), "test", LABEL2ID)
    assert [rows[0]["index"], rows[1]["index"]] == [0, 1]


def test_classes_are_counted_by_name():
    assert count_labels(pictures(4)) == {"disc": 2, "square": 1, "cross": 1}
    assert count_labels(pictures_of_several(7)) == {"disc": 3, "square": 3, "cross": 3}
    assert class_names(pictures_of_several(7)) == class_names(pictures(3)) == list(SHAPES)
    assert is_multi_label(pictures_of_several(7)) and not is_multi_label(pictures(3))


def test_unknown_labels_are_named_with_the_number_of_their_pictures():
    with pytest.raises(
        ValueError, match=r"the validation split .* does not know: 'square' \(2\), 'cross' \(1\); it kno"
    ):
        LabelledPictures(pictures(5), "validation", {"disc": 0})


def test_unknown_classes_without_pictures_are_no_matter():
    assert LabelledPictures(pictures(2), "test", {"disc": 1, "square": 0}).labels == [1, 0]


def test_pictures_without_a_label_are_counted():
    data = pictures(5).remove_columns("label")
    data = data.add_column("label", [0, -1, None, 1, -1], feature=datasets.ClassLabel(names=list(SHAPES)))
    with pytest.raises(ValueError, match="3 of 5 pictures of the test split have no label; leave them out"):
        LabelledPictures(data, "test", LABEL2ID)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pictures(2).rename_column("image", "img"), "the test split has no column 'image', only img, label, index"),
        (
            pictures(2).cast_column("label", datasets.Value("int64")),
            "the column 'label' of the test split holds .* not classes with names; encode it",
        ),
        (
            datasets.Dataset.from_dict({"image": ["a.png"], "label": [0]}),
            "the column 'image' of the test split holds .* not pictures; cast it",
        ),
    ],
)
def test_columns_of_another_kind_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        check_columns(data, "test")
