"""DETR's weights: begun as the authors begin them, saved and loaded bit for bit, also by code that travels."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForObjectDetection

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection, AttnDetrModel, AttnViTConfig
from hf_attn.attention import record_attention
from hf_attn.boxes import grid_of_boxes
from tests.tiny import DETR_LABELS, DETR_VARIANTS, randomise, tiny_detr

PICTURES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
VIT = AttnViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
)
KINDS = {**DETR_VARIANTS, "vit": {"backbone_config": VIT.to_dict()}}
kinds = pytest.mark.parametrize("kind", KINDS)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for name, weight in a.state_dict().items():
        assert weight.dtype == theirs[name].dtype, name
        assert torch.equal(weight, theirs[name]), name


def logits(model: AttnDetrForObjectDetection) -> torch.Tensor:
    with torch.no_grad():
        return model(PICTURES).logits


# --- saving and loading ----------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saved_and_loaded_bit_for_bit(tmp_path, kind, dtype):
    model = tiny_detr(**KINDS[kind]).to(dtype)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is AttnDetrForObjectDetection
    assert not report["missing_keys"] and not report["unexpected_keys"] and not loaded.training
    assert_same_weights(loaded, model)
    assert_close(logits(loaded), logits(model))
    asked = AutoModelForObjectDetection.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in asked.parameters()} == {torch.float32}


@kinds
def test_what_is_stored_is_what_the_model_has_and_that_is_the_statistics_of_batch_norm_too(tmp_path, kind):
    model = tiny_detr(**KINDS[kind])
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in stored.items())
    assert any(name.endswith("running_var") for name in stored) == (kind != "vit")


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}, "auto"], ids=str)
def test_loaded_onto_devices(tmp_path, device_map):
    model = tiny_detr()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path, device_map=device_map)
    assert all(p.device.type == "cpu" for p in loaded.parameters())  # built without memory, then filled
    assert_same_weights(loaded, model)
    assert_close(logits(loaded), logits(model))


def test_saved_in_shards_it_is_the_same(tmp_path):
    model = tiny_detr()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(AutoModelForObjectDetection.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("backbone", "kwargs", "buffer"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (64, 96), "window_size": 4, "depths": (2, 1), "num_heads": (1, 2), "embed_dim": 8},
            "attn_mask",
        ),
        ("resnetblur18", {"channels": [8, 8, 16, 16]}, "filt"),
    ],
)
def test_what_a_network_of_timm_computes_once_and_does_not_store_is_there_after_loading(
    tmp_path, backbone, kwargs, buffer
):
    model = tiny_detr(backbone=backbone, backbone_kwargs=kwargs, backbone_feature=-1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    unstored = dict(model.named_buffers()).keys() - model.state_dict().keys()
    assert any(name.endswith(buffer) for name in unstored)
    assert all(torch.equal(loaded.get_buffer(name), model.get_buffer(name)) for name in unstored)
    assert_close(logits(loaded), logits(model))


def test_a_copy_shares_nothing():
    model = tiny_detr()
    copied = copy.deepcopy(model)
    assert_same_weights(copied, model)
    assert_close(logits(copied), logits(model))
    copied(PICTURES, labels=DETR_LABELS[:2]).loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_the_weights_survive_torch_save(tmp_path):
    model, other = tiny_detr(), tiny_detr(seed=1)
    assert not torch.equal(logits(other), logits(model))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert_same_weights(other, model)
    assert_close(logits(other), logits(model))


def test_a_model_without_memory_takes_a_state_dict():
    model = tiny_detr()
    with torch.device("meta"):
        empty = AttnDetrForObjectDetection(model.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_close(logits(empty.eval()), logits(model))


@kinds
def test_the_body_of_a_detector_has_no_untrained_weight_and_goes_back_into_one(tmp_path, kind):
    model = tiny_detr(**KINDS[kind])
    model.save_pretrained(tmp_path / "detector")
    base, report = AutoModel.from_pretrained(tmp_path / "detector", output_loading_info=True)
    assert type(base) is AttnDetrModel
    assert not report["missing_keys"]
    assert_same_weights(base, model.model)
    base.save_pretrained(tmp_path / "base")
    again, report = AutoModelForObjectDetection.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == {"class_head.weight", "class_head.bias"}
    assert_same_weights(again.model, base)


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_another_number_of_classes_keeps_all_but_what_is_said_of_classes(tmp_path, kind):
    model = tiny_detr(**KINDS[kind])
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForObjectDetection.from_pretrained(tmp_path, num_labels=5)
    loaded, report = AutoModelForObjectDetection.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    of_noise = {"model.class_embedding.weight"} if kind == "all" else set()
    assert mismatched == {"class_head.weight", "class_head.bias"} | of_noise
    for name, weight in loaded.state_dict().items():
        assert name in mismatched or torch.equal(weight, model.state_dict()[name]), name
    assert loaded(PICTURES).scores.shape == (2, 7, 5)
    assert_begun(loaded, mismatched)


# --- the beginning ---------------------------------------------------------------------------------------------------

LARGE = {
    "backbone": "resnet10t",
    "backbone_kwargs": {"channels": [8, 8, 16, 64], "stem_width": 8},
    "hidden_size": 128,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_queries": 150,
    "num_labels": 80,
}
ALL = {**LARGE, **DETR_VARIANTS["all"]}


def is_uniform(weight: torch.Tensor, bound: float) -> bool:
    """Fills (-bound, bound) evenly."""
    near = 1 - 8 / weight.numel()  # how near the outermost of so many come to the bound, surely enough
    spread = weight.std() * math.sqrt(3) / bound
    return near * bound <= weight.abs().max() <= bound * (1 + 1e-6) and abs(spread - 1) < 6 / math.sqrt(weight.numel())


def begins_as_the_authors(name: str, module: nn.Module, weight: torch.Tensor, config: AttnDetrConfig) -> bool:
    """The rules that the parameters of the transformer and of the heads begin by."""
    part, _, last = name.rpartition(".")
    d, number = config.hidden_size, weight.numel()
    if isinstance(module, nn.LayerNorm):
        return bool((weight == (last == "weight")).all())
    if isinstance(module, nn.Embedding):  # N(0, 1)
        return abs(weight.std() - 1) < 3 / math.sqrt(number) and abs(weight.mean()) < 4 / math.sqrt(number)
    if last == "anchors":
        return torch.allclose(weight.sigmoid(), grid_of_boxes(config.num_queries, 0.25))
    if "attention" in name and last == "bias":
        return not weight.any()
    if part.endswith("position_proj"):  # the same for queries and keys: the waves, dealt out to the heads
        gain = weight.norm(dim=-1)
        return torch.equal(weight.T @ weight, gain[0] ** 2 * torch.eye(d)) and torch.equal(gain, gain[:1].expand(d))
    if part.endswith(("q_proj", "k_proj", "v_proj")):  # one matrix (3d, d) with the authors
        return is_uniform(weight, math.sqrt(6 / (4 * d)))
    if ("attention" in name or "feed_forward" in name) and last == "weight":  # Xavier
        return is_uniform(weight, math.sqrt(6 / sum(weight.shape)))
    if name == "class_head.bias" and config.class_loss == "focal":
        return torch.allclose(weight.sigmoid(), torch.tensor(0.01))
    if name.endswith("reach.layers.1.bias"):
        return bool((weight == 1).all())
    if part.endswith("box_head.layers.2") and config.conditional_attention:  # boxes begin at their anchors
        return not weight.any()
    return is_uniform(weight, 1 / math.sqrt(module.weight[0].numel()))  # torch's own


def assert_begun(model: nn.Module, begun: set[str] | None = None) -> None:
    for name, parameter in model.named_parameters():
        if (begun is None and ".backbone." not in name) or (begun is not None and name in begun):
            module = model.get_submodule(name.rpartition(".")[0])
            assert begins_as_the_authors(name, module, parameter.detach(), model.config), name


@pytest.mark.parametrize("shape", [LARGE, ALL], ids=["plain", "all"])
def test_every_weight_begins_as_the_authors(shape):
    assert_begun(AttnDetrForObjectDetection(AttnDetrConfig(**shape)))


def test_attention_begins_as_the_authors_reset_parameters_begins_torch_s():
    torch.manual_seed(0)
    authors = nn.MultiheadAttention(128, 4)
    for parameter in authors.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    ours = AttnDetrForObjectDetection(AttnDetrConfig(**LARGE)).model.encoder.layers[0].self_attention
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    stacked = torch.cat([projection.weight for projection in projections])
    assert_close(stacked.std(), authors.in_proj_weight.std(), rtol=0.02, atol=0)
    assert_close(stacked.abs().max(), authors.in_proj_weight.abs().max(), rtol=0.001, atol=0)
    assert_close(ours.out_proj.weight.abs().max(), authors.out_proj.weight.abs().max(), rtol=0.001, atol=0)
    assert not authors.in_proj_bias.any() and not any(projection.bias.any() for projection in projections)
    assert not authors.out_proj.bias.any() and not ours.out_proj.bias.any()


@pytest.mark.parametrize(("width", "heads"), [(128, 4), (128, 8), (60, 3), (60, 6)])
def test_queries_begin_by_reading_around_their_anchors(width, heads):
    # by Glorot's rule a query reads all places alike, and a box cannot move towards what is in it
    shape = {"hidden_size": width, "num_attention_heads": heads, "position_temperature": 20, "position_scale": 25}
    model = AttnDetrForObjectDetection(AttnDetrConfig(**{**ALL, **shape, "num_queries": 49})).eval()
    anchors = model.model.anchors.detach().sigmoid()
    rows, columns = model.model.feature_grid(320, 384)
    with record_attention(model, "cross_attention") as record, torch.no_grad():
        model(torch.randn(1, 3, 320, 384))
    ((weights,),) = record.maps.values()
    y, x = (torch.arange(number) / number for number in (rows, columns))
    near = (
        (anchors[:, 1, None] - 1 / rows - y).abs() < 1.5 / rows,
        (anchors[:, 0, None] - 1 / columns - x).abs() < 1.5 / columns,
    )
    around = (near[0][:, :, None] & near[1][:, None, :]).flatten(1)
    shares = (weights[0] * around).sum(-1)  # of each head and query
    assert (rows, columns) == (10, 12) and around.float().mean() < 0.08
    assert shares.mean() > 0.5 and shares.min() > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boxes_begin_at_their_anchors(dtype):
    model = AttnDetrForObjectDetection(AttnDetrConfig(**ALL)).to(dtype).eval()
    with torch.no_grad():
        boxes = model(PICTURES.to(dtype)).pred_boxes
    assert_close(boxes[0], model.model.anchors.float().sigmoid(), rtol=0, atol=0.003)


def test_under_focal_loss_no_class_is_likely_at_first():
    scores = AttnDetrForObjectDetection(AttnDetrConfig(**ALL)).eval()(PICTURES).scores
    assert 0.001 < scores.mean() < 0.05


def test_the_seed_decides_the_beginning():
    def begin(seed: int) -> AttnDetrForObjectDetection:
        torch.manual_seed(seed)
        return AttnDetrForObjectDetection(AttnDetrConfig(**ALL))

    assert_same_weights(begin(3), begin(3))
    assert not torch.equal(begin(3).class_head.weight, begin(4).class_head.weight)


MISSING = {
    "a_layer": lambda name: ".encoder.layers.0." in name or ".decoder.layers.0." in name,
    "queries": lambda name: name.endswith(("query_embedding.weight", "anchors", "class_embedding.weight")),
    "heads": lambda name: "class_head" in name or "box_head" in name,
    "projection": lambda name: "input_projection" in name,
    "biases": lambda name: name.endswith("bias") and "backbone" not in name,
    "norms": lambda name: "norm" in name and "backbone" not in name,
}


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("shape", [LARGE, ALL], ids=["plain", "all"])
def test_weights_missing_from_a_checkpoint_begin_by_their_rule_and_the_others_are_loaded(tmp_path, missing, shape):
    # a model is built without memory before it is loaded: what nobody fills in would be whatever lay there before
    model = randomise(AttnDetrForObjectDetection(AttnDetrConfig(**shape)))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not MISSING[missing](name)}
    assert 0 < len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert_begun(loaded, weights.keys() - kept.keys())
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in kept.items())


def test_a_backbone_for_other_pictures_begins_its_first_layer_anew(tmp_path):
    model = tiny_detr()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForObjectDetection.from_pretrained(
        tmp_path, num_channels=1, ignore_mismatched_sizes=True, output_loading_info=True
    )
    ((name, *_),) = report["mismatched_keys"]
    first = loaded.get_parameter(name)
    assert name.endswith("conv1.0.weight") and first.shape == (6, 1, 3, 3)
    assert 0.05 < first.std() < 1 and first.abs().max() <= 1 / 3  # torch's own: within 1/√9
    assert loaded(PICTURES[:, :1]).logits.isfinite().all()
