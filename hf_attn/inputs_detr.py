"""What DETR's encoder reads: pictures of any sizes through a backbone, and where each place of the feature map is.

pixels (b, c, H, W) and which are visible (b, H, W) → pictures of one size together → backbone (n, C, h, w) → 1×1
convolution → (b, tokens, d), their positions (b, tokens, d), and which tokens are there (b, tokens)

The backbone sees each picture in its own size, without the padding. Padding pixels instead, as the authors do, makes a
picture's boxes depend on the pictures beside it, for convolutions see the padding, whatever a mask says.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .configuration_detr import AttnDetrConfig
from .inference import Preparable, ReadyLinear, Twin
from .inference_detr import ReadyResNet, ReadyViTFeatures
from .positions import cell_fractions, fraction_sinusoids

Size = tuple[int, int]  # (height, width)


class Tokens(NamedTuple):
    """What the encoder reads. Pictures with fewer tokens than others end in zeros."""

    features: torch.Tensor  # (batch, tokens, hidden_size), row by row
    positions: torch.Tensor  # (batch, tokens, hidden_size)
    mask: torch.Tensor | None  # (batch, tokens), 1 for a token, 0 for padding; None where nothing is padded


class Backbone(Preparable, nn.Module):
    """A network of timm, or a ViT of this package, that makes one feature map.

    What is frozen is frozen anew at every `train()` and `eval()`, because loading a checkpoint forgets it: to let it
    learn after all, set `frozen_stride` to 0 and `frozen_batch_norm` to False first. Batch norm that is not frozen
    normalises, in training, over the pictures of one size, which come here together.

    Raises:
        ValueError: if timm has no such network, or cannot give such a feature map of it.
        ImportError: if timm is needed and not installed.
    """

    def __init__(self, config: AttnDetrConfig):
        super().__init__()
        self.frozen_batch_norm = bool(config.frozen_batch_norm)
        self.frozen_stride = config.frozen_stride or 0
        self.is_frozen = False
        self.is_vit = config.backbone_config is not None
        self.body: Any
        self.channels: int
        if self.is_vit:
            self.body = _vit_body(config)
            self.channels = self.body.config.hidden_size
        else:
            self.body = _timm_body(config)
            self.channels = self.body.feature_info.channels()[-1]
            if not _is_being_loaded():  # then its weights are timm's, which post_init must leave alone
                for module in self.body.modules():
                    module._is_hf_initialized = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.is_frozen:
            self.body.eval().requires_grad_(False)
            return self
        if self.frozen_stride and not self.is_vit:
            _freeze_up_to_stride(self.body, self.frozen_stride)
        if self.frozen_batch_norm:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval().requires_grad_(False)
        return self

    def freeze(self) -> None:
        """Let nothing of it learn or change any more: no weights, no statistics of batch norm, nothing dropped."""
        self.is_frozen = True
        self.train(self.training)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, feature channels, rows, columns)"""
        if (twin := self.ready()) is not None:
            return twin(pixel_values)
        if self.is_vit:
            return self.body(pixel_values).feature_maps[-1]
        # Channels last: up to twice as fast on CPUs, what tensor cores want on GPUs, and what tokens are made of
        features = self.body(pixel_values.contiguous(memory_format=torch.channels_last))[-1]
        has_channels_last = getattr(self.body, "output_fmt", None) == "NHWC"  # timm's Swin and its like
        return features.permute(0, 3, 1, 2) if has_channels_last else features

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> Twin:
        return ReadyViTFeatures(self, kind, dtype) if self.is_vit else ReadyResNet(self, dtype)


def _vit_body(config: AttnDetrConfig) -> nn.Module:
    from .configuration_vit import AttnViTConfig
    from .modeling_vit import AttnViTBackbone

    settings = {**(config.backbone_config or {}), "out_indices": [config.backbone_feature], "out_features": None}
    return AttnViTBackbone._from_config(AttnViTConfig(**settings), attn_implementation=config._attn_implementation)


def _timm_body(config: AttnDetrConfig) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        missing = "torchvision of the same release as torch" if error.name == "torchvision" else "timm"
        raise ImportError(
            f"the backbone {config.backbone} is of timm, which cannot be imported ({error}): install {missing}"
        ) from error
    if not timm.is_model(config.backbone.split(".")[0]):  # nor a place on the Hub, where loading would have to ask
        near = ", ".join(timm.list_models(f"*{config.backbone.split('/')[-1][:6]}*")[:8])
        remedy = f"it has {near}" if near else "timm.list_models() names those that it has"
        raise ValueError(f"timm has no network {config.backbone!r}; {remedy}")
    try:
        return timm.create_model(
            config.backbone,
            pretrained=config.use_pretrained_backbone and not _is_being_loaded(),
            features_only=True,
            out_indices=(config.backbone_feature,),
            in_chans=config.num_channels,
            **(config.backbone_kwargs or {}),
        )
    except (IndexError, AssertionError, TypeError, RuntimeError) as error:
        if config.use_pretrained_backbone and any(word in str(error) for word in ("retrained", "state_dict")):
            raise ValueError(
                f"timm has no pretrained weights of {config.backbone} with backbone_kwargs "
                f"{config.backbone_kwargs or {}} ({error}); leave use_pretrained_backbone out, or choose one of "
                "timm.list_models(pretrained=True)"
            ) from error
        raise ValueError(
            f"timm's {config.backbone} gives no feature map {config.backbone_feature} with backbone_kwargs "
            f"{config.backbone_kwargs or {}} ({error}); see timm.create_model(name, features_only=True).feature_info"
        ) from error


def _is_being_loaded() -> bool:
    """Whether from_pretrained is at work, which makes a model without memory and then fills it from the checkpoint."""
    return torch.empty(0).device.type == "meta"


def _freeze_up_to_stride(body: Any, stride: int) -> None:
    """Stop everything in timm's body from learning up to the last feature map of at most this stride.

    Raises:
        ValueError: if that feature map comes from no part of the body.
    """
    frozen = [info["module"] for info in body.feature_info.info if info["reduction"] <= stride]
    if not frozen:
        return
    last = frozen[-1]
    names = (last, last.replace(".", "_"), f"model.{last}")  # the ways in which timm wraps a network
    is_found = False
    for name, module in body.named_modules():  # in the order in which pictures meet them
        is_last = any(name == one or name.startswith(f"{one}.") for one in names)
        if is_found and not is_last:
            return
        is_found = is_found or is_last
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    if not is_found:
        raise ValueError(
            f"frozen_stride {stride} is no place in {type(body).__name__}, which has no {last}; set it to 0 and "
            "freeze parameters by requires_grad_(False)"
        )


class TokensOfPictures(nn.Module):
    """Backbone, 1×1 convolution and 2-D sine positions, for pictures of different sizes in one batch."""

    def __init__(self, config: AttnDetrConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.temperature = float(config.position_temperature)
        self.scale = float(config.position_scale)
        self.num_channels = config.num_channels
        self.backbone = Backbone(config)
        self.input_projection = nn.Conv2d(self.backbone.channels, config.hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> Tokens:
        """For a batch of shape (1, 3, 800, 1200) the backbone ResNet-50 makes (1, 2048, 25, 38), of which come
        (1, 950, 256) features.

        Args:
            pixel_values: (batch, channels, height, width), normalised; smaller pictures stand at the top left.
            pixel_mask: (batch, height, width), 1 where the picture is and 0 where it was padded; None: no padding.

        Raises:
            ValueError: if the pixels have another shape or are no floats, or a mask is no rectangle from the top left.
        """
        self._check_pixels(pixel_values)
        sizes = None if pixel_mask is None else visible_sizes(pixel_values, pixel_mask)
        if sizes is None or len(set(sizes)) == 1:
            height, width = pixel_values.shape[-2:] if sizes is None else sizes[0]
            features, positions = self._of_one_size(pixel_values[..., :height, :width])
            return Tokens(features, positions.expand_as(features), None)

        groups = {size: [row for row, own in enumerate(sizes) if own == size] for size in dict.fromkeys(sizes)}
        made = {size: self._of_one_size(pixel_values[rows, :, : size[0], : size[1]]) for size, rows in groups.items()}
        longest = max(features.shape[1] for features, _ in made.values())
        some, _ = next(iter(made.values()))
        features = some.new_zeros(len(sizes), longest, self.hidden_size)
        positions = torch.zeros_like(features)
        mask = torch.zeros(len(sizes), longest, dtype=torch.long, device=some.device)
        for size, rows in groups.items():
            own_features, own_positions = made[size]
            own = own_features.shape[1]
            features[rows, :own] = own_features
            positions[rows, :own] = own_positions
            mask[rows, :own] = 1
        return Tokens(features, positions, mask)

    def _of_one_size(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, channels, height, width) → features (n, tokens, hidden_size), positions (1, tokens, hidden_size)"""
        pixel_values = pixel_values.to(self.input_projection.weight.dtype)
        feature_map = self.input_projection(self.backbone(pixel_values))
        rows, columns = feature_map.shape[-2:]
        cells = cell_fractions(rows, columns, feature_map.device)
        positions = fraction_sinusoids(cells, self.hidden_size // 2, self.temperature, self.scale)
        return feature_map.flatten(2).transpose(1, 2), positions.to(feature_map.dtype).flatten(0, 1).unsqueeze(0)

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}; they must be (batch, {self.num_channels} channels, "
                "height, width)"
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype}; they must be floats, as the image processor makes"
            )


def visible_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> list[Size]:
    """(height, width) of each picture in a padded batch.

    Raises:
        ValueError: if the mask has another shape than the pixels, or is not a rectangle from the top left.
    """
    batch, _, height, width = pixel_values.shape
    if tuple(pixel_mask.shape) != (batch, height, width):
        raise ValueError(
            f"pixel_mask is {tuple(pixel_mask.shape)} for pixel_values {tuple(pixel_values.shape)}; it must be "
            f"{(batch, height, width)}"
        )
    visible = pixel_mask.bool()
    rows, columns = visible[:, :, 0].sum(-1), visible[:, 0, :].sum(-1)
    below = torch.arange(height, device=visible.device) < rows[:, None]
    right = torch.arange(width, device=visible.device) < columns[:, None]
    differs = (visible != below[:, :, None] & right[:, None, :]).flatten(1).any(-1)
    sizes = torch.stack([rows, columns, differs], dim=-1).tolist()  # the one time that a GPU is waited for
    for picture, (own_height, own_width, is_wrong) in enumerate(sizes):
        if is_wrong or not own_height or not own_width:
            raise ValueError(
                f"pixel_mask of picture {picture} is not a rectangle of ones from the top left; pad pictures on the "
                "right and below only, and leave the mask out where nothing is padded"
            )
    return [(own_height, own_width) for own_height, own_width, _ in sizes]
