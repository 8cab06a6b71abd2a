"""Configuration of the Vision Transformer; the defaults are ViT-B/16 at 224 of Dosovitskiy et al. 2021, table 1.

Beside each switch stands a family of released checkpoints that needs it.
"""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_checks import check_counts, check_given, check_parameters
from .loss_vit import PROBLEMS

Size = int | list[int] | tuple[int, int]

CHOICES = {
    "pooling": ("class_token", "mean", "attention", "class_token_and_mean", "prefix_tokens"),
    "position_embedding": ("learned", "sinusoids", "none"),
    "final_norm": ("before_pooling", "after_pooling"),
}
COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels")
RATES = ("drop_path_rate", "patch_dropout", "dropout", "attention_dropout", "label_smoothing")


@strict
class AttnViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """The shape of a Vision Transformer.

    Raises:
        ValueError: if a size, probability or choice is out of range; the message names the value and the rule.
    """

    model_type = "attn_vit"
    attribute_map = {"hidden_act": "activation_function"}  # what transformers calls it in its vision models

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    activation_function: str = "gelu"  # exact: timm, transformers; "gelu_pytorch_tanh": JAX, big_vision
    layer_norm_eps: float = 1e-6  # of the originals; transformers' google/vit-*: 1e-12

    image_size: Size = 224  # side, or (height, width): of the learned positions; a picture may have any other
    patch_size: Size = 16  # side, or (height, width)
    num_channels: int = 3
    pad_to_patch: bool = False  # pad a picture that is no multiple of the patch, right and below, instead of an error

    class_token: bool = True  # False: big_vision's plain ViT, timm's sbb
    num_register_tokens: int = 0  # DINOv2 with registers: 4; timm's sbb: 1 or 4
    # "mean" of the patches: big_vision, sbb; "attention": SigLIP, sbb "map". Side by side: "class_token_and_mean",
    # DINOv2's classifiers; "prefix_tokens", the class token and DeiT's token of distillation, which is a register
    pooling: str = "class_token"
    final_norm: str = "before_pooling"  # "after_pooling": timm's mean-pooled models ("fc_norm")
    position_embedding: str = "learned"  # "sinusoids" on the grid: big_vision; "none": section D.4 of the paper
    position_on_class_token: bool = True  # False: DeiT III, sbb, FlexiViT
    # of learned positions for another size: antialiased as by timm and DINOv2 with registers; False: DINOv2 without
    antialias_positions: bool = True
    layer_scale_init: float | None = None  # DeiT III, DINOv2, sbb: 1e-6 to 1; None: no LayerScale
    query_key_norm: bool = False  # LayerNorm on each head's queries and keys: ViT-22B, timm's `qk_norm`

    # Only in training
    dropout: float | int = 0.0  # on the embeddings and on every sub-layer's output; AugReg: 0 or 0.1
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0  # of sub-layers, from 0 in the first layer to this in the last: DeiT
    patch_dropout: float | int = 0.0  # share of the patches left out: FLIP
    label_smoothing: float | int = 0.0  # the loss in evaluation is the plain one

    apply_layernorm: bool = True  # final norm on the feature maps of the backbone: DINOv2
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        chosen = {name: kwargs.pop(name, None) for name in ("out_indices", "out_features")}  # of a backbone
        kwargs.pop("stage_names", None)  # which follow from the number of layers
        check_given(self, kwargs)
        self._check()
        self.stage_names = ["stem", *(f"stage{layer}" for layer in range(1, self.num_hidden_layers + 1))]
        self.set_output_features_output_indices(**chosen)
        super().__post_init__(**kwargs)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the pictures that the learned positions are for."""
        return height_and_width(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of a patch."""
        return height_and_width(self.patch_size)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, columns) of patches in a picture of `image_size`."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return -(-height // patch_height), -(-width // patch_width)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: the class token, then the registers."""
        return int(self.class_token) + self.num_register_tokens

    @property
    def pooled_size(self) -> int:
        """The number of features that a classifier reads."""
        side_by_side = {"class_token_and_mean": 2, "prefix_tokens": self.num_prefix_tokens}
        return self.hidden_size * side_by_side.get(self.pooling, 1)

    def _check(self) -> None:
        check_counts(self, COUNTS)
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps {self.layer_norm_eps} is not above 0")
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens {self.num_register_tokens} is below 0")
        for name in RATES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1)")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(choices)}")
        if self.problem_type is not None and self.problem_type not in PROBLEMS:
            raise ValueError(f"problem_type {self.problem_type!r} is unknown; use one of {', '.join(PROBLEMS)}")
        if self.activation_function not in ACT2FN:
            raise ValueError(f"activation_function {self.activation_function!r} is unknown; use one of {list(ACT2FN)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.position_embedding == "sinusoids" and (self.hidden_size % 4 or self.hidden_size < 8):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 4 of at least 8, as sinusoids need")
        if self.pooling not in ("mean", "attention") and not self.class_token:
            raise ValueError(f"pooling {self.pooling!r} needs class_token=True; pool by 'mean' or 'attention' without")
        if self.pooled_size != self.hidden_size and self.final_norm == "after_pooling":
            raise ValueError(f"final_norm 'after_pooling' does not fit pooling {self.pooling!r}; use 'before_pooling'")
        self._check_sizes()

    def _check_sizes(self) -> None:
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"{name} {size} is neither a side nor (height, width)")
            if min(height_and_width(size)) < 1:
                raise ValueError(f"{name} {size} is not at least 1")
        check_divisible(self.image_shape, self.patch_shape, self.pad_to_patch, "image_size")
        kernel = math.prod(self.patch_shape) * self.num_channels
        embedded = math.prod(self.grid_shape) + self.num_register_tokens + kernel
        check_parameters(embedded, self.num_hidden_layers, self.hidden_size, self.intermediate_size)


def height_and_width(size: Size) -> tuple[int, int]:
    """A side or (height, width) → (height, width)"""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_divisible(size: tuple[int, int], patch: tuple[int, int], pad_to_patch: bool, what: str) -> None:
    """Raise a ValueError that names the sizes if patches of (height, width) do not fill `size`, unless padded."""
    (height, width), (patch_height, patch_width) = size, patch
    if height < 1 or width < 1:
        raise ValueError(f"{what} {height}x{width} (height x width) has no pixels")
    if not pad_to_patch and (height % patch_height or width % patch_width):
        raise ValueError(
            f"{what} {height}x{width} (height x width) is not a multiple of patch_size {patch_height}x{patch_width}; "
            "resize the picture, or set pad_to_patch=True to have it padded on the right and below"
        )
