"""Tensors that all formats have to change, there and back; and names of classes."""

import pytest
import torch
from timm.data import ImageNetInfo
from torch.testing import assert_close

from hf_attn import AttnViTBackbone, AttnViTConfig, AttnViTForImageClassification
from hf_attn.interchange.names import Names
from hf_attn.interchange.vit_shared import (
    MEAN_OF_BIASES,
    MEAN_OF_HEADS,
    imagenet_labels,
    label_fields,
    model_tensors,
    positions,
    side_or_pair,
    with_bias_left_out,
)
from tests.tiny import tiny_vit

SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "image_size": [8, 12], "patch_size": 4}  # 2 x 3 patches


@pytest.mark.parametrize(
    ("class_token", "registers", "length"),
    [
        (True, 0, 7),
        (True, 0, 6),
        (False, 0, 6),
        (True, 2, 9),
        (True, 2, 7),
        (True, 2, 6),
        (False, 2, 8),
        (False, 2, 0),
    ],
)
def test_positions_go_there_and_back(class_token, registers, length):
    """All tokens with a position, or the class token and the patches, or the patches alone, or none."""
    config = AttnViTConfig(**SHAPE, class_token=class_token, num_register_tokens=registers, pooling="mean")
    table = Names(positions(config, "places", "registers", registers, length))
    theirs = {"registers": torch.randn(1, registers, 16)} if registers else {}
    theirs |= {"places": torch.randn(1, length, 16)} if length else {}
    ours = table.take(theirs)
    if length:
        assert_close(ours["model.embeddings.positions"], theirs["places"][0, -6:].unflatten(0, (2, 3)))
    again = table.take(table.give(ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    sums = registers and length == 6 + registers + int(class_token)
    expected = theirs["registers"][0] + theirs["places"][0, -6 - registers : -6] if sums else None
    if sums:
        assert_close(ours["model.embeddings.register_tokens"], expected)


def test_positions_of_another_grid_are_refused():
    config = AttnViTConfig(**SHAPE)
    with pytest.raises(ValueError, match="it has 9 positions, which do not fit a grid of 2 rows and 3 columns"):
        positions(config, "places", "", 0, 9)


def test_two_heads_are_one_on_both_tokens():
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    (both,) = MEAN_OF_HEADS.take(one, other)
    tokens = torch.randn(2, 4)
    assert_close(both @ tokens.flatten(), (one @ tokens[0] + other @ tokens[1]) / 2)
    assert_close(MEAN_OF_HEADS.give([both]), (one, other))
    biases = MEAN_OF_BIASES.take(one[0], other[0])
    assert_close(MEAN_OF_BIASES.take(*MEAN_OF_BIASES.give(biases)), biases)


def test_a_bias_left_out_is_zero_and_has_to_be():
    table = Names([with_bias_left_out("qkv", ["q", "k", "v"])])
    ours = table.take({"qkv.weight": torch.randn(12, 4)})
    assert ours["k.weight"].shape == (4, 4) and not ours["k.bias"].any()
    assert table.give(ours)["qkv.weight"].shape == (12, 4)
    with pytest.raises(ValueError, match="qkv has no bias in this format, but the model's is not zero"):
        table.give({**ours, "v.bias": torch.ones(4)})


def test_labels_are_imagenets_where_there_are_as_many():
    assert imagenet_labels(1000)["id2label"][1] == ImageNetInfo().index_to_description(1)
    assert len(imagenet_labels(21843)["id2label"]) == 21843
    assert "label2id" not in imagenet_labels(1000)  # two kinds of cranes
    assert imagenet_labels(3) == label_fields(["LABEL_0", "LABEL_1", "LABEL_2"])
    assert label_fields(["a", "b"])["label2id"] == {"a": 0, "b": 1}


def test_sizes_and_tensors_are_named_as_in_a_model_with_a_head():
    assert side_or_pair(4, 4) == 4 and side_or_pair(4, 8) == [4, 8]
    model = tiny_vit()
    assert model_tensors(model).keys() == model.state_dict().keys()
    assert model_tensors(model.model).keys() < model_tensors(model).keys()
    with pytest.raises(ValueError, match="a AttnViTBackbone cannot be exported"):
        model_tensors(AttnViTBackbone(model.config))
    assert isinstance(model, AttnViTForImageClassification)
