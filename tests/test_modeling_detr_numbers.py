"""The same weights give the numbers of transformers' DETR, and of the papers written down with torch's attention."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_attn import AttnDetrForObjectDetection
from hf_attn.loss_detr import detr_loss
from tests.tiny import DETR_LABELS, padded_pictures, tiny_detr
from tests.twins_detr import twins

SIZES = [(96, 128), (128, 64)]

# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "stride", "kernel"),
    [
        ("resnet18", None, "sdpa"),
        ("resnet18", 16, "eager"),
        ("resnet50", None, "eager"),
        ("resnet50", 16, "sdpa"),
    ],
    ids=["R18-sdpa", "R18-DC5-eager", "R50-eager", "R50-DC5-sdpa"],
)
@torch.no_grad()
def test_logits_and_boxes_equal_those_of_transformers(backbone, stride, kernel):
    ours, theirs = twins(backbone, stride, kernel)
    pictures, pixels, mask = padded_pictures(SIZES, 128, 128)
    together = ours(pixels, mask)
    for row, picture in enumerate(pictures):  # alone: padding pixels, as transformers does, changes what it says
        alone = theirs(picture[None])
        assert_close(together.logits[row], alone.logits[0], rtol=0, atol=5e-6)
        assert_close(together.pred_boxes[row], alone.pred_boxes[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_attention_maps_equal_those_of_transformers():
    ours, theirs = twins(kernel="eager")
    picture = torch.randn(1, 3, 96, 128)
    found, expected = (model(picture, output_attentions=True) for model in (ours, theirs))
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)


@torch.no_grad()
def test_float64_differs_by_rounding_alone():
    """Positions are float32 here, as in the authors' code."""
    ours, theirs = (model.double() for model in twins())
    pixels = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    assert_close(ours(pixels).logits, theirs(pixels).logits, rtol=0, atol=2e-6)


# --- the papers, written down independently --------------------------------------------------------------------------


class Paper(nn.Module):
    """Carion et al. 2020, section 3.2 and figure 10, with torch.nn.MultiheadAttention."""

    def __init__(self, ours: AttnDetrForObjectDetection):
        super().__init__()
        self.ours = ours

    def attend(self, module, query, key, value):
        width, heads = module.q_proj.in_features, module.config.num_attention_heads
        attention = nn.MultiheadAttention(width, heads, batch_first=True).to(query.dtype)
        weights = {
            "in_proj_weight": torch.cat([module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]),
            "in_proj_bias": torch.cat([module.q_proj.bias, module.k_proj.bias, module.v_proj.bias]),
            "out_proj.weight": module.out_proj.weight,
            "out_proj.bias": module.out_proj.bias,
        }
        return torch.func.functional_call(attention, weights, (query, key, value), {"need_weights": False})[0]

    def waves(self, places: list[torch.Tensor], width: int) -> torch.Tensor:
        """For each place between 0 and 1 sine, cosine, sine, ... one after the other."""
        temperature, scale, waves = self.ours.config.position_temperature, self.ours.config.position_scale, []
        for place in places:
            for i in range(width):
                angle = scale * place / temperature ** (2 * (i // 2) / width)
                waves.append(angle.cos() if i % 2 else angle.sin())
        return torch.stack(waves)

    def positions(self, rows: int, columns: int, width: int) -> torch.Tensor:
        """The authors' PositionEmbeddingSine(width / 2, normalize=True), loop by loop."""
        ys = [torch.tensor((y + 1) / (rows + 1e-6), dtype=torch.float64) for y in range(rows)]
        xs = [torch.tensor((x + 1) / (columns + 1e-6), dtype=torch.float64) for x in range(columns)]
        return torch.stack([self.waves([y, x], width // 2) for y in ys for x in xs])

    def feed_forward(self, module, x):
        return module.down_proj(torch.relu(module.up_proj(x)))

    def box_logits(self, x):
        first, second, third = self.ours.model.decoder.box_head.layers
        return third(torch.relu(second(torch.relu(first(x)))))

    def encode(self, pixels):
        model = self.ours.model
        features = model.tokens.input_projection(model.backbone.body(pixels)[-1])
        positions = self.positions(*features.shape[-2:], features.shape[1])
        x = features.flatten(2).transpose(1, 2)
        for layer in model.encoder.layers:
            x = layer.self_attention_norm(x + self.attend(layer.self_attention, x + positions, x + positions, x))
            x = layer.feed_forward_norm(x + self.feed_forward(layer.feed_forward, x))
        return x, positions

    def decode(self, memory, positions):
        model = self.ours.model
        queries = model.query_embedding.weight.expand(len(memory), -1, -1)
        y = torch.zeros_like(queries)
        for layer in model.decoder.layers:
            y = layer.self_attention_norm(y + self.attend(layer.self_attention, y + queries, y + queries, y))
            read = self.attend(layer.cross_attention, y + queries, memory + positions, memory)
            y = layer.cross_attention_norm(y + read)
            y = layer.feed_forward_norm(y + self.feed_forward(layer.feed_forward, y))
            normed = model.decoder.final_norm(y)
            yield self.ours.class_head(normed), self.box_logits(normed).sigmoid()

    def forward(self, pixels):
        logits, boxes = zip(*self.decode(*self.encode(pixels)), strict=True)
        return torch.stack(logits), torch.stack(boxes)


class ConditionalPaper(Paper):
    """Its decoder with conditional cross-attention (Meng et al. 2021, sections 3.2 and 3.3) around anchors that each
    layer moves (Liu et al. 2022, equations 3 to 8), one query, head and token after another."""

    def of_box(self, box):
        """The waves of a box: of the row, of the column, of the height and of the width."""
        x, y, width, height = box
        return self.waves([y, x, height, width], self.ours.config.hidden_size // 2)

    def mlp(self, module, x):
        first, second = module.layers
        return second(torch.relu(first(x)))

    def read(self, module, content, place, memory, positions):
        """Of one query: for each head the mean of the values, weighted by how content and place match."""
        size = module.head_dim
        of_content, of_place = module.q_proj(content), module.q_position_proj(place)
        read = []
        for start in range(0, len(content), size):
            own = slice(start, start + size)
            scores, values = [], []
            for token, position in zip(memory, positions, strict=True):
                content_match = of_content[own] @ module.k_proj(token)[own]
                place_match = of_place[own] @ module.k_position_proj(position)[own]
                scores.append((content_match + place_match) / math.sqrt(2 * size))
                values.append(module.v_proj(token)[own])
            read.append(torch.stack(scores).softmax(dim=0) @ torch.stack(values))
        return module.out_proj(torch.cat(read))

    def decode(self, memory, positions):
        model = self.ours.model
        boxes = model.anchors.sigmoid().expand(len(memory), -1, -1)
        y = memory.new_zeros(*boxes.shape[:2], memory.shape[-1])
        for layer in model.decoder.layers:
            waves = torch.stack([torch.stack([self.of_box(box) for box in one]) for one in boxes])
            queries = self.mlp(model.decoder.query_of_box, waves)
            y = layer.self_attention_norm(y + self.attend(layer.self_attention, y + queries, y + queries, y))
            places = waves[..., : y.shape[-1]] * self.mlp(layer.reach, y)  # of the centre alone
            read = [
                torch.stack(
                    [self.read(layer.cross_attention, *each, own, positions) for each in zip(*one, strict=True)]
                )
                for own, *one in zip(memory, y, places, strict=True)
            ]
            y = layer.cross_attention_norm(y + torch.stack(read))
            y = layer.feed_forward_norm(y + self.feed_forward(layer.feed_forward, y))
            normed = model.decoder.final_norm(y)
            found = (self.box_logits(normed) + torch.log(boxes / (1 - boxes))).sigmoid()
            yield self.ours.class_head(normed), found
            boxes = found.detach()


PAPERS = {
    "plain": (Paper, {"decoder_layers": 6}),
    "conditional": (
        ConditionalPaper,
        {"conditional_attention": True, "position_temperature": 20, "position_scale": 20.0},
    ),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_every_layer_equals_the_paper_written_down_also_in_training(paper):
    """transformers feeds the normed copy to the next layer where auxiliary losses are on: another network."""
    written, fields = PAPERS[paper]
    model = tiny_detr(**fields, frozen_batch_norm=True).double().train()
    pictures, pixels, mask = padded_pictures([(64, 96), (48, 64)])
    outputs = model(pixels.double(), mask)
    layers = [*outputs.auxiliary_outputs, {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}]
    assert len(layers) == model.config.decoder_layers
    for row, picture in enumerate(pictures):
        logits, boxes = written(model)(picture[None].double())
        for found, expected_logits, expected_boxes in zip(layers, logits, boxes, strict=True):
            assert_close(found["logits"][row], expected_logits[0], rtol=0, atol=1e-6)
            assert_close(found["pred_boxes"][row], expected_boxes[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_gradients_of_training_equal_those_of_the_paper_written_down(paper):
    written, fields = PAPERS[paper]
    fields = {**fields, "decoder_layers": 2, "num_queries": 4}
    model = tiny_detr(**fields, frozen_batch_norm=True).double().train()
    pixels = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    model(pixels, labels=DETR_LABELS[:2]).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    logits, boxes = written(model)(pixels)
    detr_loss(logits, boxes, DETR_LABELS[:2], model.config)[0].backward()
    for name, gradient in ours.items():
        assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5, msg=name)
