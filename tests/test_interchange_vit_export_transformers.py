"""What transformers makes of a model exported for it is what ours is."""

import json

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    pipeline,
)

from hf_attn import (
    AttnViTBackbone,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTImageProcessor,
)
from hf_attn.interchange.vit_export_transformers import export_transformers
from tests.tiny import randomise, tiny_vit
from tests.twins_vit import difference, picture, pictures

DINO = {"layer_scale_init": 0.5, "antialias_positions": False}
CLASSIFIERS = {
    "vit": (ViTForImageClassification, {"id2label": {0: "a", 1: "b", 2: "c"}, "layer_norm_eps": 1e-12}),
    "vit in a rectangle": (ViTForImageClassification, {"image_size": [16, 24], "patch_size": [4, 8]}),
    "dinov2": (Dinov2ForImageClassification, {**DINO, "pooling": "class_token_and_mean"}),
    "dinov2, class token": (Dinov2ForImageClassification, DINO),
    "dinov2, mean": (Dinov2ForImageClassification, {"pooling": "mean", "antialias_positions": False}),
    "registers": (Dinov2WithRegistersForImageClassification, {"layer_scale_init": 0.5, "num_register_tokens": 2}),
}


def read_back(model_class, directory, **arguments):
    """Read by transformers without a tensor missing or too many."""
    model, report = model_class.from_pretrained(directory, output_loading_info=True, **arguments)
    assert not any(report.values())
    return model.eval()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_same_logits_there_and_back(name, tmp_path):
    their_class, fields = CLASSIFIERS[name]
    ours = tiny_vit(**fields)
    assert export_transformers(ours, tmp_path / "out").architectures == [their_class.__name__]
    theirs = read_back(their_class, tmp_path / "out")
    x = pictures(*ours.config.image_shape)
    assert difference(theirs(x).logits, ours(x).logits) < 1e-5
    assert theirs.config.id2label == ours.config.id2label
    again = AttnViTForImageClassification.from_pretrained(tmp_path / "out")
    assert difference(again(x).logits, ours(x).logits) < 1e-5
    if name.startswith(("dinov2", "registers")):
        assert difference(theirs(pictures(40, 40)).logits, ours(pictures(40, 40)).logits) < 1e-5


def test_encoders_give_the_same_features(tmp_path):
    ours = tiny_vit().model
    export_transformers(ours, tmp_path)
    theirs = read_back(ViTModel, tmp_path, add_pooling_layer=False)
    assert difference(theirs(pictures()).last_hidden_state, ours(pictures()).last_hidden_state) < 1e-5
    ours = tiny_vit(**DINO).model
    export_transformers(ours, tmp_path)
    theirs = read_back(Dinov2Model, tmp_path)
    assert difference(theirs(pictures()).pooler_output, ours(pictures()).pooler_output) < 1e-5


def test_masked_patches_are_predicted_alike(tmp_path):
    ours = randomise(AttnViTForMaskedImageModeling(tiny_vit().config)).eval()
    export_transformers(ours, tmp_path)
    theirs = read_back(ViTForMaskedImageModeling, tmp_path)
    masked = (torch.arange(16) % 3 == 0).expand(2, -1)
    expected, made = ours(pictures(), bool_masked_pos=masked), theirs(pictures(), bool_masked_pos=masked)
    assert difference(made.reconstruction, expected.reconstruction) < 1e-5


def test_half_the_precision_stays(tmp_path):
    assert export_transformers(tiny_vit().bfloat16(), tmp_path).dtype == torch.bfloat16
    theirs = read_back(ViTForImageClassification, tmp_path)
    assert torch.equal(theirs.classifier.weight, tiny_vit().bfloat16().classifier.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding": "sinusoids"}, "ViT lacks position_embedding 'sinusoids'"),
        ({"class_token": False, "pooling": "mean"}, "Dinov2 lacks models without a class token"),
        ({"position_on_class_token": False}, "a class token without a position"),
        (
            {"query_key_norm": True, "pad_to_patch": True},
            r"norms of queries and keys \(query_key_norm\), pad_to_patch",
        ),
        ({"final_norm": "after_pooling", "pooling": "mean"}, "final_norm 'after_pooling'"),
        ({"pooling": "attention"}, "pooling 'attention'"),
        ({**DINO, "intermediate_size": 40}, r"an intermediate_size \(40\) that is no multiple of hidden_size"),
    ],
)
def test_what_the_formats_lack_is_named_and_nothing_written(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_transformers(tiny_vit(**fields), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_models_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a AttnViTBackbone cannot be exported"):
        export_transformers(AttnViTBackbone(tiny_vit().config), tmp_path / "out")
    model = AttnViTForMaskedImageModeling(tiny_vit(num_register_tokens=1, **DINO).config)
    with pytest.raises(ValueError, match="ViT lacks LayerScale, registers"):
        export_transformers(model, tmp_path / "out")


def test_another_way_to_resample_is_said(tmp_path, caplog):
    export_transformers(tiny_vit(layer_scale_init=0.5), tmp_path)
    assert "Dinov2 resamples positions in another way" in caplog.text


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "ViT"),
        ({"crop_pct": 0.5, "crop_offset": "floor", "do_normalize": False}, "DeiT"),
        ({"resize_mode": "shortest_edge", "crop_pct": 0.875, "crop_offset": "floor", "resample": "bicubic"}, "Bit"),
        ({"do_resize": False, "background": [255, 255, 255]}, "ViT"),
    ],
)
def test_pictures_are_prepared_alike(settings, kind, tmp_path):
    ours = AttnViTImageProcessor(**{"size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": 0.4, **settings})
    export_transformers(tiny_vit(), tmp_path, ours)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert said["image_processor_type"] == f"{kind}ImageProcessor"
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    again = AttnViTImageProcessor.from_pretrained(tmp_path)
    with picture() as flower:
        made, *others = (each(flower, return_tensors="pt").pixel_values for each in (ours, theirs, again))
    assert difference([made, made], others) < 1e-5


def test_a_pipeline_of_transformers_answers_alike(tmp_path):
    ours, processor = tiny_vit(), AttnViTImageProcessor(size=32)
    export_transformers(ours, tmp_path, processor)
    with picture() as flower:
        expected = pipeline("image-classification", model=ours, image_processor=processor)(flower)
        found = pipeline("image-classification", model=str(tmp_path))(flower)
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert abs(one["score"] - other["score"]) < 2e-3  # transformers may resize by torchvision


def test_settings_that_transformers_lacks_are_named(tmp_path, caplog):
    for settings, message in {
        "num_channels 1: transformers' processors give RGB": {"num_channels": 1},
        "background": {"background": [0, 0, 0]},
        "resize_mode 'longest_edge' to 32x32": {"resize_mode": "longest_edge"},
        "resize_mode 'shortest_edge' to 32x24": {"resize_mode": "shortest_edge", "size": (32, 24)},
    }.items():
        with pytest.raises(ValueError, match=settings):
            export_transformers(tiny_vit(), tmp_path / "out", AttnViTImageProcessor(**{"size": 32, **message}))
    assert not any(tmp_path.iterdir())
    export_transformers(tiny_vit(), tmp_path / "out", AttnViTImageProcessor(size=32, crop_pct=0.9))
    assert "transformers crops up and left" in caplog.text
