"""The Vision Transformer of Dosovitskiy et al. 2021, plain by default, with the switches of its released descendants.

pixels (b, c, H, W) → [class token, registers, patches] in their places (b, tokens, d) → pre-norm encoder layers
→ final norm → pooled (b, d): the class token, the mean of the patches, or attention → linear to the classes
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from .attention import MultiHeadAttention
from .configuration_vit import AttnViTConfig
from .inference import Preparable, ReadyLinear
from .inference_vit import ReadyViT
from .inputs_vit import ViTEmbeddings
from .linear import Linear
from .loss_vit import classification_loss
from .self_contained import SelfContained


class FeedForward(nn.Module):
    def __init__(self, config: AttnViTConfig):
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.activation(self.up_proj(x))))


class LayerScale(nn.Module):
    """A learned factor for each channel of a sub-layer's output (Touvron et al. 2021, "CaiT", section 2.1)."""

    def __init__(self, config: AttnViTConfig):
        super().__init__()
        self.init_value = config.layer_scale_init
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class DropPath(nn.Module):
    """Leaves a sub-layer out, for each picture by itself, and makes up for it in the rest (Huang et al. 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.rate):
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)


class ViTLayer(GradientCheckpointingLayer):
    def __init__(self, config: AttnViTConfig, layer_idx: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = MultiHeadAttention(config, layer_idx=layer_idx)
        if config.query_key_norm:
            self.attention.q_norm = nn.LayerNorm(self.attention.head_dim, config.layer_norm_eps)
            self.attention.k_norm = nn.LayerNorm(self.attention.head_dim, config.layer_norm_eps)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        scaled = config.layer_scale_init is not None
        self.attention_scale = LayerScale(config) if scaled else nn.Identity()
        self.feed_forward_scale = LayerScale(config) if scaled else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path_rate * layer_idx / max(1, config.num_hidden_layers - 1))

    def forward(self, x: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.attention_norm(x)
        attended, _ = self.attention(normed, normed, normed, **kwargs)
        x = x + self.drop_path(self.attention_scale(self.dropout(attended)))
        transformed = self.feed_forward(self.feed_forward_norm(x))
        return x + self.drop_path(self.feed_forward_scale(self.dropout(transformed)))


class MAPHead(nn.Module):
    """Multi-head attention pooling: one learned query reads all tokens (Zhai et al. 2022, "Scaling ViT", section 3.1).

    Not named after attention: transformers refuses to change the kernel of models whose file has such a module itself.
    """

    def __init__(self, config: AttnViTConfig):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.hidden_size))
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) → (batch, hidden_size)"""
        query = self.query.expand(tokens.shape[0], 1, -1)
        pooled, _ = self.attention(query, tokens, tokens)
        return (pooled + self.feed_forward(self.feed_forward_norm(pooled))).squeeze(1)


class Classifier(Linear):
    """Begins at zero; a class of its own, for modules without parameters of their own are never initialised."""


class AttnViTPreTrainedModel(SelfContained, Preparable, PreTrainedModel):
    config: AttnViTConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embedding"
    _no_split_modules = ["ViTEmbeddings", "ViTLayer", "MAPHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": ViTLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="layers"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the authors' JAX code: Glorot for linear layers, N(0, 0.02) for the positions, and zeros for the class
        token and the classifier, which thus begins by calling all classes equally likely. Patches get LeCun's
        initialisation, but N(0, 0.02) beside learned positions, which it drowns where patches are small."""
        super()._init_weights(module)
        if isinstance(module, Classifier):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            learned = self.config.position_embedding == "learned"
            init.trunc_normal_(module.weight, std=0.02 if learned else module.weight[0].numel() ** -0.5)
        elif isinstance(module, LayerScale):
            init.constant_(module.weight, module.init_value)
        elif isinstance(module, MAPHead):
            init.normal_(module.query, std=self.config.hidden_size**-0.5)
        elif isinstance(module, ViTEmbeddings):
            self._init_tokens(module)

    def _init_tokens(self, embeddings: ViTEmbeddings) -> None:
        for learned in (embeddings.positions, embeddings.class_position, embeddings.mask_token):
            if learned is not None:
                init.trunc_normal_(learned, std=0.02)
        if embeddings.class_token is not None:
            init.zeros_(embeddings.class_token)
        if embeddings.register_tokens is not None:
            init.normal_(embeddings.register_tokens, std=1e-6)  # DINOv2's: equal registers would stay equal

    def _check_all_patches_stay(self) -> None:
        if self.training and self.config.patch_dropout:
            raise ValueError(
                f"patch_dropout {self.config.patch_dropout} leaves patches out in training, but every patch has its "
                "place in what this model returns: set patch_dropout to 0"
            )


class AttnViTModel(AttnViTPreTrainedModel):
    """The encoder and what it reads, with the picture's pooled features.

    Args:
        mask_token: with one, patches can be masked by `bool_masked_pos`.
    """

    _keys_to_ignore_on_load_unexpected = ["classifier", "decoder", "mask_token"]  # of the models below

    def __init__(self, config: AttnViTConfig, mask_token: bool = False):
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config, mask_token)
        self.layers = nn.ModuleList([ViTLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention_pooling = MAPHead(config) if config.pooling == "attention" else None
        self.gradient_checkpointing = False
        self.post_init()
        maybe_install_capturing_hooks(self)  # before any torch.compile, which cannot trace their installation

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches in a picture of this size in pixels."""
        return self.embeddings.patch_embedding.grid(height, width)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Look at pictures of any size, all of one size in a batch.

        Args:
            pixel_values: (batch, channels, height, width), normalised.
            bool_masked_pos: (batch, patches), True where the mask token replaces a patch.

        Returns:
            `last_hidden_state`, (batch, tokens, hidden_size): class token, registers, patches row by row, after the
            final norm where it goes before the pooling; `pooler_output`, (batch, pooled_size), for a classifier.

        Raises:
            ValueError: if the patches do not fill the picture, or the pixels have another shape or are no floats.
        """
        x = self.embeddings(pixel_values, bool_masked_pos)
        if (twin := self.ready()) is not None:
            x = twin(x)
        else:
            for layer in self.layers:
                x = layer(x, **kwargs)
        if self.config.final_norm == "before_pooling":
            x = self.final_norm(x)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self._pool(x))

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> ReadyViT:
        return ReadyViT(self, kind, dtype)

    def _pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) → (batch, pooled_size)"""
        prefix = self.config.num_prefix_tokens
        if self.attention_pooling is not None:
            pooled = self.attention_pooling(tokens[:, prefix:])
        elif self.config.pooling == "mean":
            pooled = tokens[:, prefix:].mean(dim=1)
        elif self.config.pooling == "class_token_and_mean":
            pooled = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=-1)
        elif self.config.pooling == "prefix_tokens":
            pooled = tokens[:, :prefix].flatten(1)
        else:
            pooled = tokens[:, 0]
        return self.final_norm(pooled) if self.config.final_norm == "after_pooling" else pooled


class AttnViTForImageClassification(AttnViTPreTrainedModel):
    """A linear layer on the pooled features, and the loss for labels of any kind."""

    _keys_to_ignore_on_load_unexpected = ["decoder", "mask_token"]

    def __init__(self, config: AttnViTConfig):
        super().__init__(config)
        self.model = AttnViTModel(config)
        self.classifier = Classifier(config.pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify pictures.

        Args:
            pixel_values: (batch, channels, height, width), normalised.
            labels: as `classification_loss` takes them: (batch,) classes, (batch, classes) shares that sum to one
                (mixup), and by `config.problem_type` (batch, classes) zeros and ones, or numbers to predict.
            num_items_in_batch: labels that count in all batches of one optimizer step; the loss is the sum over this
                batch divided by it, so that accumulated small batches equal one large one; by default the mean.

        Returns:
            `logits`, (batch, classes), and `loss` where labels are given.

        Raises:
            ValueError: for pixels or labels that do not fit the model.
        """
        outputs = self.model(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if self.training else 0.0
            loss = classification_loss(logits, labels, self.config.problem_type, smoothing, num_items_in_batch)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AttnViTForMaskedImageModeling(AttnViTPreTrainedModel):
    """Predicts the pixels of masked patches by one linear layer (Xie et al. 2022, "SimMIM")."""

    _keys_to_ignore_on_load_unexpected = ["classifier"]

    def __init__(self, config: AttnViTConfig):
        super().__init__(config)
        self.model = AttnViTModel(config, mask_token=True)
        patch_height, patch_width = config.patch_shape
        self.decoder = Linear(config.hidden_size, config.num_channels * patch_height * patch_width)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:
        """Reconstruct pictures of any size.

        Args:
            pixel_values: (batch, channels, height, width), normalised.
            bool_masked_pos: (batch, patches), True for the patches to hide and to predict.

        Returns:
            `reconstruction`, (batch, channels, height, width), and with a mask `loss`: the mean absolute error of the
            hidden pixels.
        """
        self._check_all_patches_stay()
        outputs = self.model(pixel_values, bool_masked_pos, **kwargs)
        height, width = pixel_values.shape[-2:]
        grid = self.model.patch_grid(height, width)
        patches = self.decoder(outputs.last_hidden_state[:, self.config.num_prefix_tokens :])
        reconstruction = self._put_together(patches, grid)[..., :height, :width]
        loss = None
        if bool_masked_pos is not None:
            hidden = self._hidden_pixels(bool_masked_pos.unflatten(1, grid))[..., :height, :width]
            errors = (reconstruction - pixel_values).abs().to(torch.promote_types(reconstruction.dtype, torch.float32))
            loss = (errors * hidden).sum() / (hidden.sum() * self.config.num_channels).clamp(min=1)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _put_together(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(batch, patches, channels · patch height · patch width) → (batch, channels, height, width)"""
        rows, columns = grid
        patch_height, patch_width = self.config.patch_shape
        pixels = patches.reshape(patches.shape[0], rows, columns, -1, patch_height, patch_width)
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def _hidden_pixels(self, masked: torch.Tensor) -> torch.Tensor:
        """(batch, rows, columns) → (batch, 1, height, width), one for the pixels of masked patches"""
        patch_height, patch_width = self.config.patch_shape
        rows = masked.repeat_interleave(patch_height, dim=1)
        return rows.repeat_interleave(patch_width, dim=2).unsqueeze(1).float()


class AttnViTBackbone(BackboneMixin, AttnViTPreTrainedModel):
    """Feature maps of chosen layers for detection and segmentation; layers after the last one chosen do not run."""

    _keys_to_ignore_on_load_unexpected = ["classifier", "decoder", "attention_pooling", "mask_token"]

    def __init__(self, config: AttnViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([ViTLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Look at pictures of any size.

        Args:
            pixel_values: (batch, channels, height, width), normalised.

        Returns:
            `feature_maps`, (batch, hidden_size, rows, columns) for each of `out_features`: "stem" are the patches in
            their places, "stage3" the output of the third layer.
        """
        self._check_all_patches_stay()
        x = self.embeddings(pixel_values)
        grid = self.embeddings.patch_embedding.grid(*pixel_values.shape[-2:])
        chosen = [self.stage_names.index(name) for name in self.out_features]
        feature_maps = [self._feature_map(x, grid)] if 0 in chosen else []
        for number, layer in enumerate(self.layers[: max(chosen)], start=1):
            x = layer(x, **kwargs)
            if number in chosen:
                feature_maps.append(self._feature_map(x, grid))
        return BackboneOutput(feature_maps=tuple(feature_maps))

    def _feature_map(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(batch, tokens, hidden_size) → (batch, hidden_size, rows, columns)"""
        if self.config.apply_layernorm:
            tokens = self.final_norm(tokens)
        return tokens[:, self.config.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
