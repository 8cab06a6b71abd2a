"""What transformers' ViT, DeiT, DINOv2 and MAE compute, ours compute of the same files."""

import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_attn import (
    AttnViTBackbone,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTModel,
)
from tests.twins_vit import SMALL, difference, of_transformers, pictures, save_weights, weights

WIDE = {**SMALL, "intermediate_size": 48}
DINO = {**SMALL, "mlp_ratio": 2}
MAE = {**WIDE, "mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
MAE |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
MASK = (torch.arange(16) % 3 == 0).expand(2, -1)

CLASSIFIERS = {
    "vit": (ViTForImageClassification, ViTConfig(**WIDE, id2label=dict(enumerate("abcde")))),
    "vit in a rectangle": (ViTForImageClassification, ViTConfig(**{**WIDE, "image_size": [16, 32]})),
    "vit without biases": (ViTForImageClassification, ViTConfig(**WIDE, qkv_bias=False, hidden_act="gelu_new")),
    "deit": (DeiTForImageClassification, DeiTConfig(**WIDE)),
    "deit, distilled": (DeiTForImageClassificationWithTeacher, DeiTConfig(**WIDE)),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config(**DINO)),
    "registers": (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig(**DINO)),
}
MODELS = {
    "vit": (ViTModel, ViTConfig(**WIDE)),
    "deit": (DeiTModel, DeiTConfig(**WIDE)),
    "dinov2": (Dinov2Model, Dinov2Config(**DINO)),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**DINO)),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_same_logits_by_names_on_disk_and_in_memory(name, tmp_path):
    model_class, config = CLASSIFIERS[name]
    for in_memory in (False, True):
        theirs = of_transformers(model_class, config, tmp_path, in_memory)
        ours = AttnViTForImageClassification.from_pretrained(tmp_path)
        x = pictures(*ours.config.image_shape)
        assert difference(ours(x).logits, theirs(x).logits) < 1e-5
        assert ours.config.id2label == theirs.config.id2label


def test_names_on_disk_are_those_of_the_hub(tmp_path):
    of_transformers(*CLASSIFIERS["vit"], tmp_path)
    assert "vit.encoder.layer.1.attention.attention.query.weight" in weights(tmp_path)
    of_transformers(*CLASSIFIERS["vit"], tmp_path, in_memory=True)
    assert "vit.layers.1.attention.q_proj.weight" in weights(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_encoders_give_the_same_features(name, tmp_path, caplog):
    theirs = of_transformers(*MODELS[name], tmp_path)
    ours = AttnViTModel.from_pretrained(tmp_path)
    assert difference(ours(pictures()).last_hidden_state, theirs(pictures()).last_hidden_state) < 1e-5
    if name in ("vit", "deit"):
        assert "The pooler is left aside" in caplog.text
    else:
        assert difference(ours(pictures()).pooler_output, theirs(pictures()).pooler_output) < 1e-5


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Dinov2Backbone, Dinov2Config(**DINO, out_features=["stem", "stage2"])),
        (Dinov2WithRegistersBackbone, Dinov2WithRegistersConfig(**DINO, out_indices=[1, 2], apply_layernorm=False)),
    ],
)
def test_backbones_give_the_same_feature_maps_at_any_size(model_class, config, tmp_path):
    """Each resamples its positions in its own way: DINOv2 without antialiasing, its successor with it."""
    theirs = of_transformers(model_class, config, tmp_path)
    ours = AttnViTBackbone.from_pretrained(tmp_path)
    for size in ((32, 32), (16, 24), (48, 40)):
        assert difference(ours(pictures(*size)).feature_maps, theirs(pictures(*size)).feature_maps) < 1e-5


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (ViTForMaskedImageModeling, ViTConfig(**WIDE, encoder_stride=8)),
        (DeiTForMaskedImageModeling, DeiTConfig(**WIDE, encoder_stride=8)),
    ],
)
def test_masked_patches_are_predicted_alike(model_class, config, tmp_path):
    theirs = of_transformers(model_class, config, tmp_path)
    ours = AttnViTForMaskedImageModeling.from_pretrained(tmp_path)
    expected, made = theirs(pictures(), bool_masked_pos=MASK), ours(pictures(), bool_masked_pos=MASK)
    assert difference(made.reconstruction, expected.reconstruction) < 1e-5
    assert difference(made.loss, expected.loss) < 1e-5


@pytest.mark.parametrize("model_class", [ViTMAEModel, ViTMAEForPreTraining])
def test_the_encoder_of_mae_gives_the_same_features(model_class, tmp_path):
    theirs = of_transformers(model_class, ViTMAEConfig(**MAE), tmp_path)
    encoder = theirs.vit if model_class is ViTMAEForPreTraining else theirs
    in_order = torch.arange(16.0).expand(2, -1)
    ours = AttnViTModel.from_pretrained(tmp_path)
    expected = encoder(pictures(), noise=in_order).last_hidden_state
    assert difference(ours(pictures()).last_hidden_state, expected) < 1e-5


def test_dinov2s_mask_token_is_read_where_it_is_asked_for(tmp_path):
    theirs = of_transformers(*MODELS["dinov2"], tmp_path)
    ours = AttnViTModel.from_pretrained(tmp_path, mask_token=True)
    expected = theirs(pictures(), bool_masked_pos=MASK).last_hidden_state
    assert difference(ours(pictures(), bool_masked_pos=MASK).last_hidden_state, expected) < 1e-5


def test_a_head_begins_anew_only_where_that_is_asked_for(tmp_path, caplog):
    of_transformers(*CLASSIFIERS["deit, distilled"], tmp_path)
    with pytest.raises(ValueError, match=r"other sizes than the model: .*ignore_mismatched_sizes=True"):
        AttnViTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    ours = AttnViTForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert ours(pictures()).logits.shape == (2, 3)
    assert "classifier.bias, classifier.weight begin anew" in caplog.text
    of_transformers(*MODELS["vit"], tmp_path)
    with pytest.raises(ValueError, match=r"lacks 3 tensors: decoder\.bias, .*, model\.embeddings\.mask_token"):
        AttnViTForMaskedImageModeling.from_pretrained(tmp_path)
    AttnViTForMaskedImageModeling.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_another_picture_or_patch_resamples(tmp_path):
    """At the size of loading as at the sizes seen later, and patches as their pictures."""
    theirs = of_transformers(Dinov2Model, Dinov2Config(**DINO), tmp_path)
    ours = AttnViTModel.from_pretrained(tmp_path, image_size=[16, 40])
    x = pictures(16, 40)
    assert ours.embeddings.positions.shape == (2, 5, 32)
    assert difference(ours(x).last_hidden_state, theirs(x).last_hidden_state) < 1e-5
    assert AttnViTModel.from_pretrained(tmp_path, patch_size=4).embeddings.positions.shape == (8, 8, 32)


def test_what_cannot_be_expressed_is_named(tmp_path):
    refused = {
        "use_swiglu_ffn is true": (Dinov2Model, Dinov2Config(**DINO, use_swiglu_ffn=True)),
        "reshape_hidden_states is false": (Dinov2Backbone, Dinov2Config(**DINO, reshape_hidden_states=False)),
        "encoder_stride 16 is not patch_size 8": (ViTForMaskedImageModeling, ViTConfig(**WIDE)),
    }
    for message, (model_class, config) in refused.items():
        of_transformers(model_class, config, tmp_path)
        with pytest.raises(ValueError, match=message):
            AttnViTModel.from_pretrained(tmp_path)


def test_missing_and_unexpected_tensors_are_listed(tmp_path):
    of_transformers(*CLASSIFIERS["deit, distilled"], tmp_path)
    whole = weights(tmp_path)
    for gone, message in {
        "deit.embeddings.position_embeddings": "lacks deit.embeddings.position_embeddings",
        "distillation_classifier.weight": "there is cls_classifier.weight, but not distillation_classifier.weight",
        "deit.layernorm.bias": "lacks 1 tensor: model.final_norm.bias",
    }.items():
        save_weights({name: tensor for name, tensor in whole.items() if name != gone}, tmp_path)
        with pytest.raises(ValueError, match=message):
            AttnViTForImageClassification.from_pretrained(tmp_path)
    save_weights({**whole, "deit.gate": torch.ones(1)}, tmp_path)
    with pytest.raises(ValueError, match=r"1 tensor that no such model has: deit.gate"):
        AttnViTForImageClassification.from_pretrained(tmp_path)
