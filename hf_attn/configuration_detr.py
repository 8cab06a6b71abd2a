"""Configuration of DETR; the defaults are DETR-R50 of Carion et al. 2020, section 4.

Beside each switch stands the paper that it is from.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_checks import check_counts, check_given, check_parameters

CLASS_LOSSES = ("cross_entropy", "focal")
COUNTS = (
    "hidden_size",
    "num_attention_heads",
    "encoder_layers",
    "decoder_layers",
    "intermediate_size",
    "num_queries",
    "num_channels",
)
RATES = ("dropout", "attention_dropout")
WEIGHTS = (
    "class_cost",
    "box_cost",
    "giou_cost",
    "class_loss_coefficient",
    "box_loss_coefficient",
    "giou_loss_coefficient",
    "eos_coefficient",
    "focal_gamma",
)


@strict
class AttnDetrConfig(PreTrainedConfig):
    """The shape of a detector, and the weights of its matching and of its loss.

    Raises:
        ValueError: if a size, probability or choice is out of range; the message names the value and the rule.
    """

    model_type = "attn_detr"
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "encoder_layers"}

    # Backbone
    backbone: str = "resnet50"  # of timm
    backbone_kwargs: dict[str, Any] | None = None  # of timm's model; the paper's DC5: {"output_stride": 16}
    backbone_feature: int = -1  # which of its feature maps; -2 is one stride, or one layer of a ViT, before the last
    backbone_config: dict[str, Any] | None = None  # of an AttnViTBackbone, instead of timm's
    num_channels: int = 3
    use_pretrained_backbone: bool = False  # fetch timm's weights for a new model; never when a checkpoint is loaded
    frozen_batch_norm: bool | None = None  # None: frozen, as the authors', where the backbone is pretrained
    frozen_stride: int | None = None  # up to this stride the backbone learns nothing; None: 4, or 0 if not pretrained

    # Transformer
    hidden_size: int = 256
    num_attention_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    intermediate_size: int = 2048
    activation_function: str = "relu"
    layer_norm_eps: float = 1e-5
    num_queries: int = 100
    position_temperature: float | int = 10000  # longest wave over shortest; DAB-DETR, section 4.4: 20
    position_scale: float | int = 2 * math.pi  # angle of the shortest wave from edge to edge; the authors' scale
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1

    # Convergence: off is the paper's DETR
    conditional_attention: bool = (
        False  # Conditional DETR (Meng et al. 2021), with anchors as DAB-DETR (Liu et al. 2022)
    )
    denoising_groups: int = 0  # in training, so many noised copies of the labels as queries: DN-DETR (Li et al. 2022)
    denoising_label_noise: float | int = 0.2  # share of the copies' classes that are drawn at random
    denoising_box_noise: float | int = 0.4  # how far edges and centres move, in half widths and heights
    class_loss: str = "cross_entropy"  # "focal": sigmoid focal loss (Lin et al. 2017), no class for "no object"

    # Matching and loss
    auxiliary_loss: bool = True  # every decoder layer learns
    class_cost: float | int = 1
    box_cost: float | int = 5
    giou_cost: float | int = 2
    class_loss_coefficient: float | int = 1
    box_loss_coefficient: float | int = 5
    giou_loss_coefficient: float | int = 2
    eos_coefficient: float | int = 0.1  # weight of "no object" in the cross-entropy
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0

    def __post_init__(self, **kwargs):
        check_given(self, kwargs)
        if self.frozen_batch_norm is None:
            self.frozen_batch_norm = self.use_pretrained_backbone
        if self.frozen_stride is None:
            self.frozen_stride = 4 if self.use_pretrained_backbone else 0
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_class_logits(self) -> int:
        """Logits of a query: one a class, and one for "no object" under cross-entropy."""
        return self.num_labels + (self.class_loss == "cross_entropy")

    def _check(self) -> None:
        check_counts(self, COUNTS)
        layers = self.encoder_layers + self.decoder_layers
        check_parameters(self.num_queries, layers, self.hidden_size, self.intermediate_size)
        for name in RATES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1)")
        for name in ("denoising_label_noise", "denoising_box_noise", "focal_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not a share, from 0 to 1")
        for name in (*WEIGHTS, "denoising_groups", "frozen_stride"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is not a number from 0")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps {self.layer_norm_eps} is not above 0; the usual value is 1e-5")
        if not self.position_temperature > 1:
            raise ValueError(f"position_temperature {self.position_temperature} is not above 1; the paper's is 10000")
        if not 0 < self.position_scale < math.inf:
            raise ValueError(
                f"position_scale {self.position_scale} is not above 0; the authors' is 6.283, a wave over the picture"
            )
        if self.class_cost == self.box_cost == self.giou_cost == 0:
            raise ValueError("class_cost, box_cost and giou_cost are all 0, so nothing tells which query is whose")
        if self.class_loss not in CLASS_LOSSES:
            raise ValueError(f"class_loss {self.class_loss!r} is unknown; use one of {', '.join(CLASS_LOSSES)}")
        if self.activation_function not in ACT2FN:
            raise ValueError(f"activation_function {self.activation_function!r} is unknown; use one of {list(ACT2FN)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4: a quarter each for the sines and the cosines "
                "of rows and columns"
            )
        if self.backbone_config is not None:
            self._check_vit(self.backbone_config)

    def _check_vit(self, settings: dict[str, Any]) -> None:
        if settings.get("model_type") != "attn_vit":
            raise ValueError(
                f"backbone_config is of model_type {settings.get('model_type')!r}; it must be the to_dict() of an "
                'AttnViTConfig, model_type "attn_vit". Any other backbone comes from timm by its name in `backbone`'
            )
        if self.use_pretrained_backbone:
            raise ValueError(
                "use_pretrained_backbone fetches weights of timm; for a ViT load them into model.model.backbone.body"
            )
        if self.frozen_stride:
            raise ValueError(
                f"frozen_stride {self.frozen_stride} is for networks of timm; freeze parameters of a ViT by "
                "requires_grad_(False)"
            )
        channels = settings.get("num_channels", 3)
        if channels != self.num_channels:
            raise ValueError(f"num_channels is {self.num_channels}, and that of backbone_config {channels}")
