"""What goes wrong with transformers 5.24's own DETR, in silence or with a crash, goes right here: one test a defect.

Each test's comment says what happens there; where it is cheap, the test shows it.
"""

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch.testing import assert_close
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessorPil
from transformers.loss import loss_for_object_detection
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection, AttnDetrImageProcessor, AttnDetrModel, record_attention
from hf_attn.loss_detr import detr_loss, match
from tests.tiny import DETR_LABELS, padded_pictures, tiny_detr
from tests.twins_detr import transformers_detr, twins

LABELS = DETR_LABELS[:2]
BOX = {"bbox": [100, 100, 200, 200], "category_id": 0, "area": 40_000, "iscrowd": 0}


def pictures(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def predictions(layers: int, batch: int, queries: int = 20):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, batch, queries, 4, generator=generator)
    return logits, torch.rand(layers, batch, queries, 4, generator=generator) * 0.4 + 0.3


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "channels"), [("resnet50", 2048), ("resnet101", 2048), ("resnet34", 512)])
def test_the_last_stage_has_the_channels_that_it_has(backbone, channels):
    # sketches say 1024 for ResNet-50, which is the stage before
    with torch.device("meta"):
        model = AttnDetrModel(AttnDetrConfig(backbone=backbone)).eval()
        assert model.backbone(torch.empty(1, 3, 800, 1200)).shape == (1, channels, 25, 38)
        assert model.tokens(torch.empty(1, 3, 800, 1200)).features.shape == (1, 950, 256)


@torch.no_grad()
def test_auxiliary_losses_do_not_change_the_network():
    # there: each layer is given the normed copy of the one before, which the authors keep for the heads alone
    ours, theirs = twins()
    assert ours.config.auxiliary_loss
    plain = theirs(pictures()).logits
    assert_close(ours(pictures()).logits, plain, rtol=0, atol=5e-6)
    ours.config.auxiliary_loss = False
    assert_close(ours(pictures()).logits, plain, rtol=0, atol=5e-6)
    theirs.config.auxiliary_loss = theirs.model.decoder.config.auxiliary_loss = True
    assert (theirs(pictures()).logits - plain).abs().max() > 0.1


@torch.no_grad()
def test_queries_differ_from_the_first_step():
    # there: all of N(0, 0.02), so that all queries say nearly the same and learn the same
    def spread(model) -> float:
        return model.eval()(pictures()).pred_boxes.std(dim=1).max().item()

    torch.manual_seed(0)
    theirs = transformers_detr(encoder_layers=6, decoder_layers=6)
    ours = AttnDetrForObjectDetection(AttnDetrConfig(backbone="resnet18"))
    assert theirs.model.query_position_embeddings.weight.std() < 0.03
    assert abs(ours.model.query_embedding.weight.std() - 1) < 0.02
    assert spread(ours) > 1e-5 > spread(theirs)


def test_the_encoder_is_given_the_features_as_they_are():
    # there: dropout on them, in training
    model = tiny_detr(dropout=0.5, frozen_batch_norm=True).train()
    given = []
    model.model.encoder.layers[0].register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    model(pictures())
    assert torch.equal(given[0], model.model.tokens(pictures()).features)
    theirs = transformers_detr(dropout=0.5).train()
    theirs.model.encoder.layers[0].register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    theirs(pictures())
    assert given[1].eq(0).float().mean() > 0.4


@torch.no_grad()
def test_padding_changes_nothing():
    # there, as with the authors: convolutions see the padding, whatever the mask says
    ours, theirs = twins()
    alone, pixels, mask = padded_pictures([(64, 96), (96, 64)])
    pixels = pixels * mask.unsqueeze(1)  # even where it is zero
    for model, is_same in ((ours, True), (theirs, False)):
        together = model(pixels, mask).pred_boxes[0]
        expected = model(alone[0][None]).pred_boxes[0]
        assert torch.allclose(together, expected, rtol=0, atol=1e-5) == is_same


@torch.no_grad()
def test_frozen_batch_norm_leaves_bfloat16_to_the_convolutions():
    # there: written out with buffers of float32, so that all that follows is float32, and half as fast
    ours, theirs = twins()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.model.backbone(pictures()).dtype == torch.bfloat16
        mask = torch.ones(2, 64, 96)
        assert theirs.model.backbone(pictures(), mask)[-1][0].dtype == torch.float32


@torch.no_grad()
def test_positions_of_half_precision_are_rounded_once():
    # there: computed in the precision of the pixels
    exact, half = (tiny_detr().model.tokens.to(dtype) for dtype in (torch.float32, torch.bfloat16))
    wide = pictures(160, 1200, batch=1)
    expected = exact(wide).positions
    error = (half(wide).positions.float() - expected).abs().max()
    theirs = DetrSinePositionEmbedding(16, normalize=True)((1, 0, 10, 75), "cpu", torch.bfloat16).flatten(2)
    assert error < 0.003 < 0.015 < (theirs.transpose(1, 2).float() - expected).abs().max()


@torch.no_grad()
def test_attention_asked_for_under_sdpa_is_there():
    # there: empty tuples and a warning
    model = tiny_detr()
    assert model.config._attn_implementation == "sdpa"
    outputs = model(pictures(), output_attentions=True)
    assert [weights.shape for weights in outputs.cross_attentions] == [(2, 4, 7, 24)] * 2
    with record_attention(model, "cross_attention", layers=[-1], heads=[2], queries=[5]) as record:
        model(pictures())
    ((row,),) = record.maps.values()
    assert_close(row, outputs.cross_attentions[-1][:, 2:3, 5:6])


# --- the backbone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list[bool]:
    """Whether timm was asked for pretrained weights, of each network; it gives none."""
    make, asked = timm.create_model, []

    def not_fetched(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return make(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", not_fetched)
    return asked


def test_stem_and_first_stage_are_frozen(asked):
    # there: only if the name of the backbone's kind contains "resnet", which that of timm's networks does not
    ours = AttnDetrForObjectDetection(AttnDetrConfig(backbone="resnet18", use_pretrained_backbone=True, num_labels=5))
    theirs = transformers_detr()
    for model, body, is_frozen in (
        (ours, ours.model.backbone.body, True),
        (theirs, theirs.model.backbone.model, False),
    ):
        model.train()(pictures(), labels=LABELS).loss.backward()
        for layer, learns in (("conv1", False), ("layer1.1.conv2", False), ("layer2.0.conv1", True)):
            gradient = body.get_submodule(layer).weight.grad
            assert (gradient is not None) == (learns or not is_frozen)


def test_a_pretrained_backbone_can_be_asked_for(asked):
    # there: the field is stored as False, and only an argument that no configuration passes would count
    AttnDetrModel(AttnDetrConfig(backbone="resnet18", use_pretrained_backbone=True, encoder_layers=1))
    assert asked == [True]
    theirs = DetrConfig(backbone="resnet18", use_pretrained_backbone=True, encoder_layers=1, decoder_layers=1)
    DetrForObjectDetection(theirs)
    assert asked == [True, False]


# --- labels and loss -------------------------------------------------------------------------------------------------


def test_boxes_are_fractions_of_the_picture_and_not_of_its_padding():
    # there: fractions of the padded batch in training, read as fractions of the picture in inference
    batch = [np.zeros((400, 600, 3), np.uint8), np.zeros((600, 400, 3), np.uint8)]
    annotations = [{"image_id": i, "annotations": [BOX]} for i in range(2)]
    decoded = {}
    for kind in (AttnDetrImageProcessor, DetrImageProcessorPil):
        processor = kind(size={"longest_edge": 600, "shortest_edge": 400})
        labels = processor(batch, annotations=annotations, return_tensors="pt")["labels"]
        boxes = torch.stack([label["boxes"] for label in labels])
        perfect = {"pred_boxes": boxes, "logits": torch.tensor([[[9.0, 0.0]]] * 2)}
        outputs = type("Outputs", (), perfect)()
        found = processor.post_process_object_detection(outputs, 0.5, [(400, 600), (600, 400)])
        decoded[kind] = [one["boxes"][0] for one in found]
    expected = torch.tensor([100.0, 100.0, 300.0, 300.0])
    for box in decoded[AttnDetrImageProcessor]:
        assert_close(box, expected, rtol=0, atol=1e-3)
    assert_close(decoded[DetrImageProcessorPil][0], torch.tensor([100.0, 66.7, 300.0, 200.0]), rtol=0, atol=0.1)


def test_the_loss_of_two_processes_is_that_of_one(monkeypatch):
    # there: the number of boxes is averaged over processes and then divided by their number once more
    logits, boxes = predictions(1, 2)
    config = AttnDetrConfig(num_labels=3)
    alone = detr_loss(logits, boxes, LABELS, config)[1]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda numbers: numbers.mul_(2))  # the other has as many
    assert_close(detr_loss(logits, boxes, LABELS, config)[1], alone)

    class TwoProcesses:
        _shared_state = {"initialised": True}
        num_processes = 2

    theirs_alone = loss_of_transformers(logits, boxes)
    assert_close(theirs_alone["loss_bbox"], alone["loss_bbox"])
    monkeypatch.setattr(loss_for_object_detection, "PartialState", TwoProcesses)
    monkeypatch.setattr(loss_for_object_detection, "reduce", lambda number: number)  # the mean is what each has
    assert_close(loss_of_transformers(logits, boxes)["loss_bbox"], 2 * alone["loss_bbox"])


def loss_of_transformers(logits, boxes, labels=LABELS) -> dict[str, torch.Tensor]:
    arguments = {"logits": logits[-1], "pred_boxes": boxes[-1], "labels": labels, "device": torch.device("cpu")}
    return loss_for_object_detection.ForObjectDetectionLoss(config=DetrConfig(num_labels=3), **arguments)[1]


def test_a_box_is_compared_with_the_queries_of_its_own_picture(monkeypatch):
    # there: with those of all pictures, of which the blocks on the diagonal are used; layer by layer
    layers, batch, number = 6, 8, 5
    logits, boxes = predictions(layers, batch)
    generator = torch.Generator().manual_seed(1)
    labels = [
        {
            "class_labels": torch.randint(3, (number,), generator=generator),
            "boxes": torch.rand(number, 4, generator=generator) * 0.3 + 0.3,
        }
        for _ in range(batch)
    ]
    compared, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *sides, **how: (compared.append(cdist(*sides, **how)), compared[-1])[1])
    found = match(logits, boxes, labels, AttnDetrConfig(num_labels=3))
    assert [distances.shape for distances in compared] == [(layers, batch, 20, number)]
    compared.clear()
    matcher = loss_for_object_detection.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    for layer in range(layers):
        theirs = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, labels)
        for (queries, targets), (their_queries, their_targets) in zip(found, theirs, strict=True):
            assert torch.equal(queries[layer], their_queries) and torch.equal(targets[layer], their_targets)
    assert [distances.shape for distances in compared] == [(batch * 20, batch * number)] * layers


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"class_labels": torch.tensor([3])}, 'class label 3 .*3 means "no object"'),
        ({"boxes": torch.tensor([[120.0, 80.0, 40.0, 30.0]])}, "is in pixels; boxes are fractions of the picture"),
        ({"boxes": torch.tensor([[0.5, 0.5, 0.9, 0.9]]) + 0.1}, "convert them by boxes.xyxy_to_cxcywh"),
    ],
)
def test_labels_that_are_wrong_are_refused(label, message):
    # there: learned from
    label = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), **label}
    with pytest.raises(ValueError, match=message):
        tiny_detr()(pictures(batch=1), labels=[label])
    logits, boxes = predictions(1, 1)
    assert all(term.isfinite() for term in loss_of_transformers(logits, boxes, [label]).values())


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, NotImplementedError), (torch.float64, RuntimeError)])
def test_predictions_of_any_precision_learn(dtype, error):
    # there: bfloat16 has no cdist on a CPU, and float64 none with labels of float32
    logits, boxes = (value.to(dtype) for value in predictions(1, 2))
    assert detr_loss(logits, boxes, LABELS, AttnDetrConfig(num_labels=3))[0].isfinite()
    with pytest.raises(error):
        loss_of_transformers(logits, boxes)


@pytest.mark.parametrize("field", ["class_cost", "box_cost", "giou_cost", "eos_coefficient"])
def test_a_weight_may_be_any_number(field):
    # there: whole numbers alone for costs, and none for eos_coefficient
    for value in (1, 2.5):
        assert getattr(AttnDetrConfig(**{field: value}), field) == value
    with pytest.raises(StrictDataclassFieldValidationError):
        DetrConfig(**{field.replace("box_", "bbox_"): 1 if field == "eos_coefficient" else 2.5})
