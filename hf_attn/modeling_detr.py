"""DETR of Carion et al. 2020, plain by default, with the switches of its quicker-learning descendants.

pixels (b, 3, H, W) → tokens of the feature map (b, h·w, d) → encoder, positions on queries and keys → memory
zero targets + learned queries (b, 100, d) → decoder, every layer kept (6, b, 100, d)
→ classes (6, b, 100, classes + 1) and boxes (6, b, 100, 4)
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from .attention import MultiHeadAttention, cross_attention_mask, grouped_attention_mask, self_attention_mask
from .boxes import grid_of_boxes
from .configuration_detr import AttnDetrConfig
from .denoising_detr import NoisedQueries, noised_queries
from .inference import Preparable, ReadyLinear, added_mask
from .inference_detr import ReadyDecoder, ReadyEncoder
from .inputs_detr import Backbone, TokensOfPictures
from .layers_detr import (
    MLP,
    BoxHead,
    ClassHead,
    ConditionalDecoderLayer,
    DetrDecoderLayer,
    DetrEncoderLayer,
    FromAnchors,
    FromOne,
    HeadLinear,
    PlaceProjection,
)
from .loss_detr import Denoising, check_labels, detr_loss
from .outputs_detr import AttnDetrModelOutput, AttnDetrObjectDetectionOutput, DetrDecoderOutput
from .positions import fraction_sinusoids
from .self_contained import SelfContained

if TYPE_CHECKING:  # for transformers, which takes along to a repository what it finds named so: the pipeline's file
    from .pipeline_detection import DetectionPipeline  # noqa: F401

ANCHOR_SIDE = 0.25  # with which anchors begin, as a share of the picture's
PLACE_SCORE = 8.0  # of an anchor and the token at its very place, before softmax, with which reading begins


class AttnDetrPreTrainedModel(SelfContained, Preparable, PreTrainedModel):
    config: AttnDetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TokensOfPictures", "DetrEncoderLayer", "DetrDecoderLayer", "ConditionalDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the authors' code: Glorot in the transformer, N(0, 1) for the queries, torch's own for heads and the 1×1
        convolution; anchors on a grid (Wang et al. 2022, "Anchor DETR", section 3.1), which learn sooner than random
        ones. transformers initialises modules with parameters of their own only, hence by their kind."""
        super()._init_weights(module)
        fill_buffers = getattr(module, "init_non_persistent_buffers", None)
        if fill_buffers is not None:  # those of timm's networks that are in no checkpoint
            fill_buffers()
        if isinstance(module, (HeadLinear, nn.Conv2d)):
            _init_as_torch(module)
        elif isinstance(module, nn.Linear):
            _init_as_torch(module)  # of which the bias stays
            init.xavier_uniform_(module.weight, gain=getattr(module, "gain", 1.0))
            if hasattr(module, "gain"):
                init.zeros_(module.bias)
        if isinstance(module, FromAnchors):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FromOne):
            init.ones_(module.bias)
        elif isinstance(module, PlaceProjection):
            _init_as_waves(module, self.config.num_attention_heads)
        elif isinstance(module, ClassHead) and self.config.class_loss == "focal":
            init.constant_(module.bias, -math.log(99.0))  # a probability of 1 %: Lin et al. 2017, section 3.3
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, AttnDetrModel) and module.anchors is not None:
            grid = grid_of_boxes(self.config.num_queries, side=ANCHOR_SIDE)
            init.copy_(module.anchors, torch.logit(grid).to(module.anchors))


def _init_as_torch(layer: nn.Linear | nn.Conv2d) -> None:
    """What the constructors of torch do: uniform within ±1/√inputs."""
    init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    if layer.bias is not None:
        bound = layer.weight[0].numel() ** -0.5
        init.uniform_(layer.bias, -bound, bound)


def _init_as_waves(layer: nn.Linear, heads: int) -> None:
    """The waves of a place as they are, long and short ones dealt out to every head: what is near scores high.

    Glorot's would need hundreds of steps to tell a place from its neighbours, and nothing can move a box before that.
    """
    width, head_dim = layer.in_features, layer.in_features // heads
    dealt = sorted(range(width // 4), key=lambda frequency: frequency % heads)
    order = torch.arange(width).view(2, -1, 2)[:, dealt].transpose(0, 1).flatten()  # rows and columns, sine and cosine
    # sin² + cos² = 1, so a head's score at the very place is gain² · head_dim / 2, over √(2 · head_dim)
    gain = math.sqrt(PLACE_SCORE * math.sqrt(8 / head_dim))
    init.copy_(layer.weight, gain * torch.eye(width)[order].to(layer.weight))
    init.zeros_(layer.bias)


class DetrEncoder(AttnDetrPreTrainedModel):
    _can_record_outputs = {
        "hidden_states": DetrEncoderLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attention"),
    }

    def __init__(self, config: AttnDetrConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([DetrEncoderLayer(config, i) for i in range(config.encoder_layers)])
        self.gradient_checkpointing = False
        self.post_init()
        maybe_install_capturing_hooks(self)  # before any torch.compile, which cannot trace their installation

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        features: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Let (batch, tokens, hidden_size) features at their positions read each other; mask (batch, tokens)."""
        if (twin := self.ready()) is not None:
            return BaseModelOutput(last_hidden_state=twin(features, positions, mask))
        x, mask = features, self_attention_mask(self.config, features, mask)
        for layer in self.layers:
            x = layer(x, positions, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=x)

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> ReadyEncoder:
        return ReadyEncoder(self, kind, dtype)


class DetrDecoder(AttnDetrPreTrainedModel):
    _can_record_outputs = {
        "hidden_states": OutputRecorder(DetrDecoderLayer, index=0, num_hidden_layers_key="decoder_layers"),
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: AttnDetrConfig):
        super().__init__(config)
        layer = ConditionalDecoderLayer if config.conditional_attention else DetrDecoderLayer
        self.layers = nn.ModuleList([layer(config, i) for i in range(config.decoder_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.box_head = BoxHead(config)
        places = config.conditional_attention or config.denoising_groups
        self.query_of_box = MLP(2 * config.hidden_size, config.hidden_size, config.hidden_size, 2) if places else None
        self.gradient_checkpointing = False
        self.post_init()
        maybe_install_capturing_hooks(self)  # before any torch.compile, which cannot trace their installation

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        x: torch.Tensor,
        queries: torch.Tensor | None,
        anchors: torch.Tensor | None,
        memory: torch.Tensor,
        positions: torch.Tensor,
        memory_mask: torch.Tensor | None = None,
        group: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DetrDecoderOutput:
        """Fill targets with what the queries find in the memory.

        Args:
            x: (batch, queries, hidden_size) the targets, zero at first.
            queries: (batch, queries, hidden_size), or None: made of the anchors, anew in each layer.
            anchors: (batch, queries, 4) cxcywh in [0, 1], with conditional attention; each layer moves them.
            memory: (batch, tokens, hidden_size), at `positions`; memory_mask (batch, tokens).
            group: (queries,) whole numbers; each query reads those of its group and of group 0. None: all read all.
            mask: (batch, queries), 0 for a query that is none.
        """
        twin = self.ready() if group is None and mask is None else None
        if twin is not None:
            layers, own_mask, memory_mask = twin.layers, None, added_mask(memory_mask, twin.dtype)
            x, memory, positions = twin.cast(x, memory, positions)
        else:
            layers, own_mask = self.layers, self._own_mask(x, mask, group)
            memory_mask = cross_attention_mask(self.config, x, memory, memory_mask)
        waves = None
        states, boxes = [], []
        for layer in layers:
            if anchors is not None:
                queries, waves = self.look_from(anchors)
            x = layer(x, queries, waves, memory, positions, own_mask, memory_mask, **kwargs)
            states.append(self.final_norm(x if twin is None else x.to(twin.result)))  # the stream goes on as it was
            boxes.append(self.box_head(states[-1], anchors))
            anchors = None if anchors is None else boxes[-1].detach()
        return DetrDecoderOutput(
            last_hidden_state=states[-1],
            intermediate_hidden_states=torch.stack(states),
            intermediate_boxes=torch.stack(boxes),
        )

    def _own_mask(self, x: torch.Tensor, mask: torch.Tensor | None, group: torch.Tensor | None):
        if group is None:
            return self_attention_mask(self.config, x, mask)
        return grouped_attention_mask(self.config, x, mask, group)

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> ReadyDecoder:
        return ReadyDecoder(self, kind, dtype)

    def look_from(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The query of each (batch, queries, 4) box, and the waves of its centre: (batch, queries, hidden_size)."""
        if self.query_of_box is None:
            raise ValueError("this decoder has learned queries only: set conditional_attention or denoising_groups")
        x, y, width, height = boxes.unbind(-1)
        coordinates = torch.stack([y, x, height, width], dim=-1)  # rows first, as the tokens' positions
        temperature, scale = float(self.config.position_temperature), float(self.config.position_scale)
        waves = fraction_sinusoids(coordinates, self.config.hidden_size // 2, temperature, scale)
        waves = waves.to(self.final_norm.weight.dtype)
        return self.query_of_box(waves), waves[..., : self.config.hidden_size]


class AttnDetrModel(AttnDetrPreTrainedModel):
    """Backbone, encoder and decoder, up to the boxes; the classes are left to the head."""

    _keys_to_ignore_on_load_unexpected = ["class_head"]

    def __init__(self, config: AttnDetrConfig):
        super().__init__(config)
        self.tokens = TokensOfPictures(config)
        self.encoder = DetrEncoder(config)
        self.decoder = DetrDecoder(config)
        self.query_embedding: nn.Embedding | None = None
        self.anchors: nn.Parameter | None = None
        if config.conditional_attention:
            self.anchors = nn.Parameter(torch.zeros(config.num_queries, 4))  # logits of cxcywh
        else:
            self.query_embedding = nn.Embedding(config.num_queries, config.hidden_size)
        # What a noised query says it is; the last row is what those say that do not know, namely all in inference
        self.class_embedding = (
            nn.Embedding(config.num_labels + 1, config.hidden_size) if config.denoising_groups else None
        )
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def backbone(self) -> Backbone:
        return self.tokens.backbone

    def feature_grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tokens that a picture of this size in pixels becomes."""
        with torch.no_grad():
            pixels = self.tokens.input_projection.weight.new_zeros(1, self.config.num_channels, height, width)
            was_training, _ = self.training, self.backbone.eval()
            rows, columns = self.backbone(pixels).shape[-2:]
            self.backbone.train(was_training)
        return rows, columns

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        noised: NoisedQueries | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AttnDetrModelOutput:
        """Find `num_queries` things in each picture.

        Args:
            pixel_values: (batch, channels, height, width), normalised; smaller pictures stand at the top left.
            pixel_mask: (batch, height, width), 1 where the picture is, 0 where it was padded; None: no padding.
            noised: further queries, for training; their outputs come after those of the `num_queries`.

        Raises:
            ValueError: for pixels or a mask of another shape or kind.
        """
        tokens = self.tokens(pixel_values, pixel_mask)
        encoded = self.encoder(tokens.features, tokens.positions, tokens.mask, **kwargs)
        memory = encoded.last_hidden_state
        decoded = self.decoder(
            **self._targets(memory, noised),
            memory=memory,
            positions=tokens.positions,
            memory_mask=tokens.mask,
            **kwargs,
        )
        return AttnDetrModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            intermediate_hidden_states=decoded.intermediate_hidden_states,
            intermediate_boxes=decoded.intermediate_boxes,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def _targets(self, memory: torch.Tensor, noised: NoisedQueries | None) -> dict[str, torch.Tensor | None]:
        """What the decoder begins with: the targets, the queries or anchors, and who reads whom."""
        batch, number = memory.shape[0], self.config.num_queries
        x = memory.new_zeros(batch, number, self.config.hidden_size)
        if self.class_embedding is not None:
            x = x + self.class_embedding.weight[-1].to(memory.dtype)
        queries = anchors = None
        if self.query_embedding is not None:
            queries = self.query_embedding.weight.expand(batch, -1, -1)
        elif self.anchors is not None:
            anchors = self.anchors.sigmoid().expand(batch, -1, -1)
        if noised is None or self.class_embedding is None:
            return {"x": x, "queries": queries, "anchors": anchors}

        x = torch.cat([x, self.class_embedding(noised.noised_classes).to(x.dtype)], dim=1)
        if queries is not None:
            queries = torch.cat([queries, self.decoder.look_from(noised.noised_boxes)[0]], dim=1)
        if anchors is not None:
            anchors = torch.cat([anchors, noised.noised_boxes.to(anchors)], dim=1)
        group = torch.cat([noised.group.new_zeros(number), noised.group])
        mask = torch.cat([noised.classes.new_ones(batch, number), (noised.classes >= 0).long()], dim=1)
        return {"x": x, "queries": queries, "anchors": anchors, "group": group, "mask": mask}


class AttnDetrForObjectDetection(AttnDetrPreTrainedModel):
    """The model, a linear layer to the classes, and the set loss."""

    def __init__(self, config: AttnDetrConfig):
        super().__init__(config)
        self.model = AttnDetrModel(config)
        self.class_head = ClassHead(config.hidden_size, config.num_class_logits)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AttnDetrObjectDetectionOutput:
        """Detect objects.

        Args:
            pixel_values: (batch, channels, height, width), normalised; smaller pictures stand at the top left.
            pixel_mask: (batch, height, width), 1 where the picture is, 0 where it was padded; None: no padding.
            labels: a dictionary for each picture, with `class_labels` (n,) integers and `boxes` (n, 4) cxcywh,
                fractions of the visible picture.
            num_items_in_batch: (3,) the sum of `loss_detr.count_items` over all batches of one optimizer step, by
                which the loss is divided, so that accumulated small batches equal one large one; by default of this
                batch.

        Raises:
            ValueError: for pixels, a mask or labels that do not fit; the message names the picture.
        """
        noised = None
        if labels is not None:
            check_labels(labels, self.config.num_labels, len(pixel_values))
            if self.training and self.config.denoising_groups:
                noised = noised_queries(labels, self.config, pixel_values.device)
        outputs = self.model(pixel_values, pixel_mask, noised, **kwargs)

        number = self.config.num_queries
        states = (
            outputs.intermediate_hidden_states
            if self.config.auxiliary_loss
            else outputs.intermediate_hidden_states[-1:]
        )
        every_logit = self.class_head(states)  # (layers, batch, queries, classes)
        every_box = outputs.intermediate_boxes[-len(states) :]
        logits, boxes = every_logit[:, :, :number], every_box[:, :, :number]

        loss, terms = None, None
        if labels is not None:
            denoising = None
            if noised is not None:
                denoising = Denoising(
                    logits=every_logit[:, :, number:],
                    boxes=every_box[:, :, number:],
                    classes=noised.classes,
                    targets=noised.boxes,
                    groups=self.config.denoising_groups,
                )
            loss, terms = detr_loss(logits, boxes, labels, self.config, num_items_in_batch, denoising)
        return AttnDetrObjectDetectionOutput(
            loss=loss,
            loss_dict=terms,
            logits=logits[-1],
            pred_boxes=boxes[-1],
            scores=class_scores(logits[-1], self.config.class_loss),
            auxiliary_outputs=(
                [{"logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], boxes[:-1], strict=True)]
                if self.config.auxiliary_loss
                else None
            ),
            last_hidden_state=outputs.last_hidden_state[:, :number],
            intermediate_hidden_states=outputs.intermediate_hidden_states[:, :, :number],
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


def class_scores(logits: torch.Tensor, class_loss: str) -> torch.Tensor:
    """(..., num_labels) probability of each class, in float32; that of "no object" is left out."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid() if class_loss == "focal" else logits.softmax(dim=-1)[..., :-1]
