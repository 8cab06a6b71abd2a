"""What timm's Vision Transformers compute, ours compute of the same directories and files."""

import json

import pytest
import timm
import torch
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import save_for_hf
from transformers import pipeline

from hf_attn import (
    AttnDetrImageProcessor,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTImageProcessor,
    AttnViTModel,
)
from hf_attn.interchange.importing import import_checkpoint
from hf_attn.interchange.vit_timm import TIMM_FILE, heads_of, processor_settings_of_file
from tests.test_cli import refuse, run
from tests.tiny import randomise
from tests.twins_vit import difference, picture, pictures, save_weights

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 5}
MODELS = {  # architecture, and what makes it small
    "original": ("vit_base_patch16_224", SMALL),
    "a rectangle": ("vit_base_patch16_224", {**SMALL, "img_size": (16, 40), "patch_size": (8, 4)}),
    "in21k, grey": ("vit_small_patch16_224", {**SMALL, "in_chans": 1}),
    "deit": ("deit_tiny_patch16_224", SMALL),
    "deit, distilled": ("deit_base_distilled_patch16_224", SMALL),
    "deit3": ("deit3_base_patch16_224", SMALL),
    "dinov2": ("vit_small_patch14_reg4_dinov2", SMALL),
    "gap": ("vit_base_patch16_gap_224", SMALL),
    "gap without biases": ("vit_medium_patch16_gap_256", SMALL),
    "mae's, fc_norm": ("eva_large_patch14_196", SMALL),
    "sbb": ("vit_little_patch16_reg1_gap_256", SMALL),
    "sbb, four registers": ("vit_betwixt_patch16_reg4_gap_256", SMALL),
    "registers in places": ("vit_so150m_patch16_reg4_gap_256", SMALL),
    "map": ("vit_so150m_patch16_reg4_map_256", SMALL),
    "siglip": ("vit_base_patch16_siglip_224", SMALL),
    "tanh": ("vit_base_patch32_siglip_gap_256", SMALL),
    "norms of queries and keys": ("vit_base_patch16_224", {**SMALL, "qk_norm": True}),
    "no positions": ("vit_base_patch16_224", {**SMALL, "pos_embed": "none", "reg_tokens": 2}),
    "one of timm's tests": ("test_vit2", {"num_classes": 5}),
}


def of_timm(name: str, directory, std: float = 0.2, **arguments):
    """A randomised model of timm, saved as timm saves for the Hub."""
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **arguments), std=std).eval()
    save_for_hf(model, directory, safe_serialization=True)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_same_logits(name, tmp_path):
    architecture, arguments = MODELS[name]
    theirs = of_timm(architecture, tmp_path, **arguments)
    ours = AttnViTForImageClassification.from_pretrained(tmp_path)
    x = torch.randn(2, ours.config.num_channels, *ours.config.image_shape, generator=torch.Generator().manual_seed(1))
    assert difference(ours(x).logits, theirs(x)) < 1e-5


@pytest.mark.parametrize("name", ["original", "deit3", "sbb", "gap", "map", "deit, distilled", "registers in places"])
def test_a_file_alone_is_the_same_model(name):
    """Where the number of heads keeps to the rule: 64 dimensions each."""
    architecture, arguments = MODELS[name]
    theirs = randomise(timm.create_model(architecture, **{**arguments, "num_heads": 1, "mlp_ratio": 3})).eval()
    tensors = theirs.state_dict()
    assert TIMM_FILE.recognise(tensors)
    ours = AttnViTForImageClassification(AttnViTConfig(**TIMM_FILE.configure(tensors))).eval()
    ours.load_state_dict(TIMM_FILE.table(ours.config, tensors).take(tensors))
    assert difference(ours(pictures()).logits, theirs(pictures())) < 1e-5


def test_the_rule_for_heads_is_that_of_timms_models():
    widths = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
    widths |= {"giant": (1408, 16), "gigantic": (1664, 16), "so400m": (1152, 16), "betwixt": (640, 10)}
    assert all(heads_of(width) == heads for width, heads in widths.values())
    assert heads_of(100) is None


def test_where_the_rule_gives_no_heads_they_have_to_be_said(tmp_path):
    shape = {**SMALL, "embed_dim": 40, "num_heads": 5, "num_classes": 3}
    theirs = randomise(timm.create_model("vit_base_patch16_224", **shape)).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    said = refuse("import", tmp_path / "vit.pth", tmp_path / "ours")
    assert "a width of 40 has none by rule: give it, as by --config num_attention_heads=12" in said
    five = ("--config", "num_attention_heads=5", "--config", 'id2label={"0": "cat", "1": "dog", "2": "owl"}')
    result = run("import", tmp_path / "vit.pth", tmp_path / "ours", *five)
    assert result.exit_code == 0, result.stderr
    ours = AttnViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert difference(ours(pictures()).logits, theirs(pictures())) < 1e-5
    assert ours.config.label2id == {"cat": 0, "dog": 1, "owl": 2}


def test_a_file_of_a_rectangle_is_refused():
    tensors = timm.create_model("vit_base_patch16_224", **{**SMALL, "img_size": (16, 40)}).state_dict()
    with pytest.raises(ValueError, match="11 positions are no square of patches, with or without 1 tokens"):
        TIMM_FILE.configure(tensors)


def test_another_picture_or_patch_resamples_as_timm_does(tmp_path):
    theirs = of_timm(*MODELS["original"][:1], tmp_path, **SMALL)
    ours = AttnViTForImageClassification.from_pretrained(tmp_path, image_size=48)
    expected = resample_abs_pos_embed(theirs.pos_embed, [6, 6])[0, 1:].unflatten(0, (6, 6))
    assert difference(ours.model.embeddings.positions, expected) < 1e-5
    ours = AttnViTForImageClassification.from_pretrained(tmp_path, image_size=24, patch_size=6)
    expected = resample_patch_embed(theirs.patch_embed.proj.weight, [6, 6])
    assert difference(ours.model.embeddings.patch_embedding.weight, expected) < 1e-5


def test_pictures_are_prepared_and_classified_as_by_timm(tmp_path):
    of_timm("vit_base_patch16_224", tmp_path, **SMALL)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(theirs))
    with picture() as flower, torch.no_grad():
        expected = theirs(transform(flower)[None]).softmax(-1)[0]
        classify = pipeline(
            "image-classification",
            model=AttnViTForImageClassification.from_pretrained(tmp_path),
            image_processor=AttnViTImageProcessor.from_pretrained(tmp_path),
        )
        found = classify(flower, top_k=5)
    assert [answer["label"] for answer in found] == [f"LABEL_{index}" for index in expected.argsort(descending=True)]
    torch.testing.assert_close(torch.tensor([answer["score"] for answer in found]), expected.sort().values.flip(0))


def test_the_processor_is_what_config_json_says(tmp_path):
    of_timm("vit_base_patch16_224", tmp_path, **{**SMALL, "img_size": (24, 32)})
    said = json.loads((tmp_path / "config.json").read_text())
    said["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.8, "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    processor = AttnViTImageProcessor.from_pretrained(tmp_path, image_std=0.4)
    assert processor.size == {"height": 24, "width": 32} and processor.crop_pct == 0.8
    assert processor.image_mean == [0.1, 0.2, 0.3] and processor.image_std == [0.4] * 3
    assert processor.resample.name == "BILINEAR"
    with pytest.raises(OSError, match="Can't load image processor"):
        AttnDetrImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="Can't load image processor"):
        AttnViTImageProcessor.from_pretrained(tmp_path / "empty")
    assert processor_settings_of_file(AttnViTConfig(image_size=32))["image_mean"] == [0.5] * 3


def test_labels_are_taken_along(tmp_path):
    names, said = ["n1", "n2", "n3", "n4", "n5"], {"n2": "cat, tomcat"}
    theirs = randomise(timm.create_model("test_vit", num_classes=5)).eval()
    save_for_hf(theirs, tmp_path, {"label_names": names, "label_descriptions": said}, safe_serialization=True)
    config = AttnViTForImageClassification.from_pretrained(tmp_path).config
    assert config.id2label == dict(enumerate(["n1", "cat, tomcat", "n3", "n4", "n5"]))
    assert config.label2id["cat, tomcat"] == 1
    save_for_hf(theirs, tmp_path, {"label_names": {"1": "one", "3": "three"}}, safe_serialization=True)
    config = AttnViTForImageClassification.from_pretrained(tmp_path).config
    assert config.id2label == {0: "LABEL_0", 1: "one", 2: "LABEL_2", 3: "three", 4: "LABEL_4"}
    of_timm("test_vit", tmp_path)
    config = AttnViTForImageClassification.from_pretrained(tmp_path).config
    assert list(config.id2label.values()) == ImageNetInfo().label_descriptions()


def test_without_a_head_it_is_an_encoder(tmp_path):
    theirs = of_timm("test_vit", tmp_path, num_classes=0)
    x = torch.randn(1, 3, 160, 160)
    assert difference(AttnViTModel.from_pretrained(tmp_path)(x).pooler_output, theirs(x)) < 1e-5
    with pytest.raises(ValueError, match=r"lacks 2 tensors: classifier\.bias, classifier\.weight; for a head"):
        AttnViTForImageClassification.from_pretrained(tmp_path)


def test_a_configuration_of_old_is_read(tmp_path):
    """Without a part of its own for what was pre-trained, as on the Hub before 2023."""
    theirs = of_timm("vit_tiny_patch16_384", tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    old = {"architecture": "vit_tiny_patch16_384", "num_features": 192, **said["pretrained_cfg"]}
    (tmp_path / "config.json").write_text(json.dumps(old))
    ours = AttnViTForImageClassification.from_pretrained(tmp_path).double()
    x = pictures(384, 384)[:1].double()
    assert difference(ours(x).logits, theirs.double()(x)) < 1e-10
    assert AttnViTImageProcessor.from_pretrained(tmp_path).size == {"height": 384, "width": 384}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_betwixt_patch16_reg4_gap_256"])
def test_models_of_full_size_give_the_same_logits(name, tmp_path):
    theirs = of_timm(name, tmp_path, std=0.02)
    x = pictures(*theirs.patch_embed.img_size)
    assert difference(AttnViTForImageClassification.from_pretrained(tmp_path)(x).logits, theirs(x)) < 1e-5


def test_a_file_becomes_a_directory_of_ours(tmp_path):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=1000, img_size=32)).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    import_checkpoint(tmp_path / "vit.pth", tmp_path / "ours")
    ours = AttnViTForImageClassification.from_pretrained(tmp_path / "ours")
    assert difference(ours(pictures()).logits, theirs(pictures())) < 1e-5
    assert AttnViTImageProcessor.from_pretrained(tmp_path / "ours").image_mean == [0.5] * 3


def test_a_tensor_too_many_is_named(tmp_path):
    theirs = of_timm("test_vit", tmp_path)
    save_weights({**theirs.state_dict(), "norm_pre.weight": torch.ones(1)}, tmp_path)
    with pytest.raises(ValueError, match=r"1 tensor that no such model has: norm_pre\.weight"):
        AttnViTForImageClassification.from_pretrained(tmp_path)
