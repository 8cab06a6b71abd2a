"""The same weights give the numbers of transformers' DETR, and of the paper written down with torch's attention."""

import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection
from tests.tiny import randomise, tiny_detr

SHAPE = {"encoder_layers": 2, "decoder_layers": 3, "num_queries": 9, "num_labels": 5}
NAMES = (  # ours, transformers'
    (r"^model\.tokens\.backbone\.body\.", "model.backbone.model."),
    (r"^model\.tokens\.input_projection", "model.input_projection"),
    (r"^model\.query_embedding", "model.query_position_embeddings"),
    (r"^model\.decoder\.box_head", "bbox_predictor"),
    (r"^class_head", "class_labels_classifier"),
    (r"decoder\.final_norm", "decoder.layernorm"),
    (r"self_attention\.out_proj", "self_attn.o_proj"),
    (r"cross_attention\.out_proj", "encoder_attn.o_proj"),
    (r"self_attention_norm", "self_attn_layer_norm"),
    (r"cross_attention_norm", "encoder_attn_layer_norm"),
    (r"self_attention\.", "self_attn."),
    (r"cross_attention\.", "encoder_attn."),
    (r"feed_forward_norm", "final_layer_norm"),
    (r"feed_forward\.up_proj", "mlp.fc1"),
    (r"feed_forward\.down_proj", "mlp.fc2"),
)


def random_statistics(model: nn.Module) -> None:
    """Randomise what batch norm has seen, as training would."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        elif name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


def both(backbone: str, output_stride: int | None = None, kernel: str = "sdpa", **shape):
    """Our model and transformers', with the same randomised weights and buffers."""
    shape = {**SHAPE, **shape}
    kwargs = {} if output_stride is None else {"output_stride": output_stride}
    config = AttnDetrConfig(
        backbone=backbone, backbone_kwargs=kwargs, frozen_batch_norm=True, attn_implementation=kernel, **shape
    )
    ours = AttnDetrForObjectDetection(config).eval()
    randomise(ours, std=0.02)
    random_statistics(ours)
    theirs_config = DetrConfig(
        backbone_config=TimmBackboneConfig(backbone=backbone, out_indices=[1, 2, 3, 4], **kwargs),
        auxiliary_loss=False,
        attn_implementation=kernel,
        **shape,
    )
    theirs = DetrForObjectDetection(theirs_config).eval()
    wanted = theirs.state_dict()
    found = {}
    for name, value in ours.state_dict().items():
        for ours_name, their_name in NAMES:
            name = re.sub(ours_name, their_name, name)
        if name in wanted:
            found[name] = value
        else:
            assert name.endswith("num_batches_tracked"), name
    theirs.load_state_dict(found)
    return ours, theirs


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("backbone", "stride"), [("resnet18", None), ("resnet18", 16), ("resnet50", None)], ids=["R18", "R18-DC5", "R50"]
)
def test_logits_and_boxes_equal_those_of_transformers(backbone, stride, kernel):
    ours, theirs = both(backbone, stride, kernel)
    sizes = [(96, 128), (128, 64)]
    pictures = [torch.randn(3, *size) for size in sizes]
    pixels, mask = torch.zeros(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.long)
    for row, (picture, (height, width)) in enumerate(zip(pictures, sizes, strict=True)):
        pixels[row, :, :height, :width] = picture
        mask[row, :height, :width] = 1
    with torch.no_grad():
        together = ours(pixels, mask)
        for row, picture in enumerate(pictures):  # alone: padding pixels, as transformers does, changes what it says
            alone = theirs(picture[None])
            assert_close(together.logits[row], alone.logits[0], rtol=0, atol=5e-6)
            assert_close(together.pred_boxes[row], alone.pred_boxes[0], rtol=0, atol=1e-6)


def test_float64_differs_by_rounding_alone():
    """Positions are float32 in both, as in the authors' code."""
    ours, theirs = both("resnet18")
    ours, theirs, pixels = ours.double(), theirs.double(), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert_close(ours(pixels).logits, theirs(pixels).logits, rtol=0, atol=2e-6)


# --- the paper, written down independently ---------------------------------------------------------------------------


class Oracle(nn.Module):
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

    def positions(self, rows, columns, width, dtype):
        """The authors' PositionEmbeddingSine(width / 2, normalize=True), loop by loop."""
        table = torch.zeros(rows, columns, width, dtype=torch.float64)
        half = width // 2
        for y in range(rows):
            for x in range(columns):
                for start, place in ((0, (y + 1) / (rows + 1e-6)), (half, (x + 1) / (columns + 1e-6))):
                    for i in range(half):
                        angle = torch.tensor(2 * torch.pi * place / 10000 ** (2 * (i // 2) / half))
                        table[y, x, start + i] = angle.sin() if i % 2 == 0 else angle.cos()
        return table.flatten(0, 1).to(dtype)

    def forward(self, pixels):
        model = self.ours.model
        features = model.tokens.input_projection(model.backbone.body(pixels)[-1])
        positions = self.positions(*features.shape[-2:], features.shape[1], features.dtype)
        x = features.flatten(2).transpose(1, 2)

        def feed_forward(module, x):
            return module.down_proj(torch.relu(module.up_proj(x)))

        for layer in model.encoder.layers:
            x = layer.self_attention_norm(x + self.attend(layer.self_attention, x + positions, x + positions, x))
            x = layer.feed_forward_norm(x + feed_forward(layer.feed_forward, x))
        memory, queries = x, model.query_embedding.weight.expand(len(x), -1, -1)
        y = torch.zeros_like(queries)
        logits, boxes = [], []
        for layer in model.decoder.layers:
            y = layer.self_attention_norm(y + self.attend(layer.self_attention, y + queries, y + queries, y))
            read = self.attend(layer.cross_attention, y + queries, memory + positions, memory)
            y = layer.cross_attention_norm(y + read)
            y = layer.feed_forward_norm(y + feed_forward(layer.feed_forward, y))
            normed = model.decoder.final_norm(y)
            logits.append(self.ours.class_head(normed))
            hidden = normed
            for linear in model.decoder.box_head.layers[:-1]:
                hidden = torch.relu(linear(hidden))
            boxes.append(model.decoder.box_head.layers[-1](hidden).sigmoid())
        return torch.stack(logits), torch.stack(boxes)


def test_all_layers_equal_the_paper_written_down_also_in_training_mode():
    """transformers feeds the normed copy to the next layer where auxiliary losses are on: another network."""
    model = tiny_detr(decoder_layers=6, frozen_batch_norm=True).double().train()
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    outputs = model(pixels)
    logits, boxes = Oracle(model)(pixels)
    assert outputs.intermediate_hidden_states.shape == (6, 2, 7, 32)
    ours = [*outputs.auxiliary_outputs, {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}]
    assert len(ours) == 6
    for layer, found in enumerate(ours):
        assert_close(found["logits"], logits[layer], rtol=0, atol=1e-6)
        assert_close(found["pred_boxes"], boxes[layer], rtol=0, atol=1e-6)


def test_the_gradients_of_training_equal_those_of_the_paper_written_down():
    from hf_attn.loss_detr import detr_loss

    model = tiny_detr(decoder_layers=3, frozen_batch_norm=True).double().train()
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.4]])},
        {"class_labels": torch.tensor([], dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    model(pixels, labels=labels).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits, boxes = Oracle(model)(pixels)
    detr_loss(logits, boxes, labels, model.config)[0].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert ours[name] is None or not ours[name].any(), name
        else:
            assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_transformers_computes_another_network_with_auxiliary_losses():
    ours, theirs = both("resnet18")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = theirs(pixels).logits
        theirs.config.auxiliary_loss = theirs.model.config.auxiliary_loss = True
        theirs.model.decoder.config.auxiliary_loss = True
        other = theirs(pixels).logits
        assert (plain - other).abs().max() > 1e-3
        assert_close(ours(pixels).logits, plain, rtol=0, atol=5e-6)
