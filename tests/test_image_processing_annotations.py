"""Annotations that would teach nonsense are refused by the picture's number; what does not count is left out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hf_attn.boxes import cxcywh_to_xyxy
from hf_attn.image_processing_annotations import fractions_of_boxes, read_annotations

SIZE = (40, 60)  # height, width


def annotation(image_id=7, **entry):
    return {"image_id": image_id, "annotations": [{"bbox": [1, 2, 3, 4], "category_id": 0, **entry}]}


PIXELS = st.floats(-100, 100, width=32)
LENGTHS = st.floats(0, 100, width=32)


@given(st.lists(st.tuples(PIXELS, PIXELS, LENGTHS, LENGTHS)))
def test_boxes_end_at_the_edge_and_those_outside_are_dropped(boxes):
    entries = [{"bbox": box, "category_id": number} for number, box in enumerate(boxes)]
    (label,) = read_annotations({"image_id": 1, "annotations": entries}, [SIZE])
    left, top, right, bottom = label["boxes"].unbind(-1)
    assert ((left >= 0) & (left < right) & (right <= 60)).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= 40)).all()
    assert_close(label["area"], ((right - left) * (bottom - top)).float())
    for number, edges in zip(label["class_labels"].tolist(), label["boxes"].tolist(), strict=True):
        x, y, width, height = boxes[number]
        inside = [max(x, 0), max(y, 0), min(x + width, 60), min(y + height, 40)]
        assert edges == pytest.approx(inside)
    dropped = set(range(len(boxes))) - set(label["class_labels"].tolist())
    for x, y, width, height in (boxes[number] for number in dropped):
        assert min(x + width, 60) <= max(x, 0) or min(y + height, 40) <= max(y, 0)


@pytest.mark.parametrize("size", [(40, 60), (80, 30), (1, 1000)])
def test_fractions_are_those_of_the_original_picture(size):
    (label,) = read_annotations(annotation(bbox=[15, 10, 30, 20], area=50.0), [SIZE])
    found = fractions_of_boxes(label, SIZE, size)
    assert_close(cxcywh_to_xyxy(found["boxes"]), torch.tensor([[0.25, 0.25, 0.75, 0.75]]))
    assert found["area"].item() == pytest.approx(50 * size[0] * size[1] / 2400)
    assert (found["size"].tolist(), found["orig_size"].tolist()) == (list(size), [40, 60])


def test_crowds_are_left_out_and_an_area_that_is_missing_is_that_of_the_box():
    entries = [
        {"bbox": [1, 2, 3, 4], "category_id": 5, "iscrowd": 1},
        {"bbox": [50, 2, 30, 4], "category_id": 6, "iscrowd": False, "area": None},
        {"bbox": np.array([1.0, 2, 3, 4]), "category_id": np.int32(7), "area": 2.5},
    ]
    (label,) = read_annotations([{"image_id": np.int64(3), "annotations": entries}], [SIZE])
    assert label["class_labels"].tolist() == [6, 7]
    assert label["area"].tolist() == [40, 2.5]
    assert label["iscrowd"].tolist() == [0, 0]
    assert (label["image_id"].tolist(), label["image_id"].dtype) == ([3], torch.int64)


@pytest.mark.parametrize(
    ("given_annotations", "named"),
    [
        ([annotation()] * 2, "there are annotations of 2 pictures for 1 pictures; give as many"),
        ([], "there are annotations of 0 pictures for 1 pictures"),
        ([7], r"an annotation must be \{\"image_id\": ..., \"annotations\": \[...\]\}, and one is of type int"),
        ({"image_id": 7, "boxes": []}, r"and one is \{image_id, boxes\}"),
        (annotation("cat.png"), "image_id 'cat.png' is no whole number; number the pictures"),
        ({"image_id": 7, "annotations": [[1, 2, 3, 4]]}, "an object of image_id 7 is of type list; it must have bbox"),
        (
            {"image_id": 7, "annotations": [{"bbox": [1, 2, 3, 4], "category": 1}]},
            r"an object of image_id 7 is \{bbox, category\}; it must have bbox and category_id",
        ),
        (annotation(category_id="cat"), "category_id 'cat' of image_id 7 is no whole number from 0; number the class"),
        (annotation(category_id=1.0), "category_id 1.0 of image_id 7 is no whole number"),
        (annotation(category_id=True), "category_id True of image_id 7"),
        (annotation(category_id=-1), "category_id -1 of image_id 7"),
        (annotation(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\] of image_id 7 is not four finite numbers; give x, y, width"),
        (annotation(bbox=[1, 2, 3, float("nan")]), "nan.* of image_id 7 is not four finite numbers"),
        (annotation(bbox=[1, 2, 3, float("inf")]), "inf.* of image_id 7 is not four finite numbers"),
        (annotation(bbox=None), "bbox None of image_id 7 is not four finite numbers"),
        (annotation(bbox="1 2 3 4"), "bbox 1 2 3 4 of image_id 7 is not four"),
        (annotation(bbox=[9, 9, -3, 4]), r"bbox \[9, 9, -3, 4\] of image_id 7 has a negative .* not two corners"),
        (annotation(area=float("nan")), "area nan of an object of image_id 7 is no number from 0"),
        (annotation(area=-1), "area -1 of an object of image_id 7 is no number from 0"),
    ],
)
def test_what_would_teach_nonsense_is_refused_with_the_number_of_the_picture(given_annotations, named):
    with pytest.raises(ValueError, match=named):
        read_annotations(given_annotations, [SIZE])
