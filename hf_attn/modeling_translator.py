"""The encoder-decoder Transformer of Vaswani et al. 2017.

source ids (b, s) → words·√d + sinusoids (b, s, d) → encoder layers → memory (b, s, d)
target ids (b, t) → words·√d + sinusoids (b, t, d) → decoder layers, reading the memory too → logits (b, t, vocabulary)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from .attention import MultiHeadAttention, cross_attention_mask, self_attention_mask
from .configuration_translator import AttnTranslatorConfig
from .generation_translator import TranslatorGeneration
from .inference import LooseLinear, NoTwin, Preparable, ReadyLinear
from .inference_translator import ReadyDecoder, ReadyEncoder
from .inputs_translator import WordsInPlaces, check_ids, embed_words, padding_mask, shift_right
from .linear import Linear
from .loss_translator import IGNORED, label_smoothed_loss
from .self_contained import SelfContained

if TYPE_CHECKING:  # for transformers, which takes along to a repository what it finds named so: the pipeline's file
    from .pipeline_translation import TranslationPipeline  # noqa: F401


class FeedForward(nn.Module):
    def __init__(self, config: AttnTranslatorConfig):
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.activation_dropout)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.activation(self.up_proj(x))))


class AddNorm(nn.Module):
    """The "Add & Norm" around each sub-layer: norm(x + f(x)) in the paper, x + f(norm(x)) in pre-norm models."""

    def __init__(self, config: AttnTranslatorConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = config.norm_position == "pre"

    def forward(self, x: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class TranslatorEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: AttnTranslatorConfig, layer_idx: int):
        super().__init__()
        self.self_attention = MultiHeadAttention(config, is_causal=False, layer_idx=layer_idx)
        self.self_attention_add_norm = AddNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_add_norm = AddNorm(config)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]):
        x = self.self_attention_add_norm(x, lambda x: self.self_attention(x, x, x, attention_mask, **kwargs)[0])
        return self.feed_forward_add_norm(x, self.feed_forward)


class TranslatorDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: AttnTranslatorConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.self_attention = MultiHeadAttention(config, is_causal=True, layer_idx=layer_idx)
        self.self_attention_add_norm = AddNorm(config)
        self.cross_attention = MultiHeadAttention(config, is_causal=False, layer_idx=layer_idx)
        self.cross_attention_add_norm = AddNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_add_norm = AddNorm(config)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ):
        own_cache = memory_cache = None
        keys: torch.Tensor | None = memory
        if cache is not None:
            own_cache, memory_cache = cache.self_attention_cache, cache.cross_attention_cache
            keys = None if cache.is_updated.get(self.layer_idx) else memory  # projected once per sentence
            cache.is_updated[self.layer_idx] = True

        x = self.self_attention_add_norm(
            x, lambda x: self.self_attention(x, x, x, attention_mask, own_cache, **kwargs)[0]
        )
        x = self.cross_attention_add_norm(
            x, lambda x: self.cross_attention(x, keys, keys, memory_mask, memory_cache, **kwargs)[0]
        )
        return self.feed_forward_add_norm(x, self.feed_forward)


class AttnTranslatorPreTrainedModel(SelfContained, Preparable, PreTrainedModel):
    config: AttnTranslatorConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TranslatorEncoderLayer", "TranslatorDecoderLayer"]
    _skip_keys_device_placement = ["cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: AttnTranslatorConfig, *args, **kwargs):
        if config.share_embeddings:  # vocab_size may have been assigned after the configuration was made
            config.decoder_vocab_size = config.vocab_size
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Glorot for every linear layer, N(0, 1/d) for the words, whose scale √d then gives them unit variance."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, AttnTranslatorForConditionalGeneration) and module.logits_bias is not None:
            init.zeros_(module.logits_bias)

    def _has_int8(self) -> bool:
        return True

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Change the number of words: of source and target where they share one table, else of the source alone."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.config.share_embeddings:
            self.config.decoder_vocab_size = self.config.vocab_size
        return embeddings


class TranslatorEncoder(AttnTranslatorPreTrainedModel):
    _can_record_outputs = {"hidden_states": TranslatorEncoderLayer, "attentions": MultiHeadAttention}

    def __init__(self, config: AttnTranslatorConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.words_in_places = WordsInPlaces(config)
        self.layers = nn.ModuleList([TranslatorEncoderLayer(config, i) for i in range(config.encoder_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size) if config.norm_position == "pre" else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()
        maybe_install_capturing_hooks(self)  # before any torch.compile, which cannot trace their installation

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Read a source text.

        Args:
            input_ids: (batch, source) token ids.
            attention_mask: (batch, source), 1 for a token, 0 for padding; found from the pad id where none is given.
            inputs_embeds: (batch, source, hidden_size), instead of `input_ids`.

        Returns:
            `last_hidden_state`, the memory: (batch, source, hidden_size).

        Raises:
            ValueError: for no tokens at all, a token id outside the vocabulary, or both or neither kind of input.
        """
        words = embed_words(self.embed_tokens, input_ids, inputs_embeds)
        if attention_mask is None and input_ids is not None:
            attention_mask = padding_mask(input_ids, self.config.pad_token_id)
        x = self.words_in_places(words, attention_mask)
        twin = self.ready()
        if twin is not None and twin.takes(attention_mask):
            return BaseModelOutput(last_hidden_state=twin(x, attention_mask))
        mask = self_attention_mask(self.config, x, attention_mask)
        for layer in self.layers:
            x = layer(x, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.final_norm(x))

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> ReadyEncoder:
        return ReadyEncoder(self, kind, dtype)


class TranslatorDecoder(AttnTranslatorPreTrainedModel):
    _can_record_outputs = {
        "hidden_states": OutputRecorder(TranslatorDecoderLayer, index=0, num_hidden_layers_key="decoder_layers"),
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: AttnTranslatorConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.target_vocab_size, config.hidden_size, config.pad_token_id)
        self.words_in_places = WordsInPlaces(config)
        self.layers = nn.ModuleList([TranslatorDecoderLayer(config, i) for i in range(config.decoder_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size) if config.norm_position == "pre" else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()
        maybe_install_capturing_hooks(self)  # before any torch.compile, which cannot trace their installation

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Read the target words so far, each with all words before it, and the memory.

        Args:
            input_ids: (batch, target) token ids, `decoder_start_token_id` first; after a first call with a cache, only
                the new ones.
            attention_mask: (batch, seen + target), 1 for a token, 0 for padding. Padding on the right needs none: no
                word reads what follows it.
            encoder_hidden_states: (batch, source, hidden_size), the memory.
            encoder_attention_mask: (batch, source), 1 for a token of the memory, 0 for padding.
            cache: keys and values of the words and of the memory read so far.
            inputs_embeds: (batch, target, hidden_size), instead of `input_ids`.

        Returns:
            `last_hidden_state`, (batch, target, hidden_size), and `cache` where `use_cache` asks for them.
        """
        if encoder_hidden_states is None:
            raise ValueError("the decoder has no memory to read; give it encoder_hidden_states")
        words = embed_words(self.embed_tokens, input_ids, inputs_embeds)
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        seen = 0 if cache is None else cache.get_seq_length()
        own_cache: Cache | None = None if cache is None else cache.self_attention_cache

        x = self.words_in_places(words, attention_mask, seen)
        mask = self_attention_mask(self.config, x, attention_mask, is_causal=True, cache=own_cache)
        memory_mask = cross_attention_mask(self.config, x, encoder_hidden_states, encoder_attention_mask)
        for layer in self.layers:
            x = layer(x, encoder_hidden_states, mask, memory_mask, cache=cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.final_norm(x), cache=cache)


class AttnTranslatorModel(AttnTranslatorPreTrainedModel):
    """Encoder and decoder, up to the last hidden states."""

    _keys_to_ignore_on_load_unexpected = ["lm_head", "logits_bias"]  # of the model below

    def __init__(self, config: AttnTranslatorConfig):
        super().__init__(config)
        self._tied_weights_keys = (
            {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"} if config.share_embeddings else None
        )
        self.encoder = TranslatorEncoder(config)
        self.decoder = TranslatorDecoder(config)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        # tie_word_embeddings speaks of the output layer alone, whereas transformers would untie this table as well
        return dict(self._tied_weights_keys or {})

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value
        if self.config.share_embeddings:
            self.decoder.embed_tokens = value

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Arguments as in the encoder and the decoder; `encoder_outputs` is that of an encoder that ran already."""
        if attention_mask is None and input_ids is not None:
            attention_mask = padding_mask(input_ids, self.config.pad_token_id)
        if encoder_outputs is None:
            source = self.encoder(input_ids, attention_mask, inputs_embeds, **kwargs)
        else:
            given = isinstance(encoder_outputs, BaseModelOutput)
            source = encoder_outputs if given else BaseModelOutput(*encoder_outputs)

        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=source.last_hidden_state,
            encoder_attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            cache=decoder_outputs.cache,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=source.last_hidden_state,
            encoder_hidden_states=source.hidden_states,
            encoder_attentions=source.attentions,
        )


class AttnTranslatorForConditionalGeneration(TranslatorGeneration, AttnTranslatorPreTrainedModel, GenerationMixin):
    """The translator: the model, a linear layer to the vocabulary, the loss, and generate()."""

    def __init__(self, config: AttnTranslatorConfig):
        super().__init__(config)
        self._tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
        if config.share_embeddings:
            self._tied_weights_keys = {
                "lm_head.weight": "model.encoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
            }
        self.model = AttnTranslatorModel(config)
        self.lm_head = Linear(config.hidden_size, config.target_vocab_size, bias=False)
        self.logits_bias = nn.Parameter(torch.zeros(config.target_vocab_size)) if config.logits_bias else None
        self.post_init()

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> ReadyDecoder:
        return ReadyDecoder(self, kind, dtype)

    def decoder_twin(self) -> ReadyDecoder | None:
        """For `generate()`: the twin, or one made of the weights as they are where nobody prepared the model."""
        if self._twin is not None:
            return self.ready()
        try:
            loose = ReadyDecoder(self, LooseLinear, self.dtype)
        except NoTwin:
            return None
        return loose if loose.may_answer(self) else None

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """(batch, target) labels → what the decoder reads to predict them: the start token, then the labels."""
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Predict each target word from the source and the words before it.

        Args:
            labels: (batch, target) ids to predict, ending in `</s>`; -100 does not count. The decoder then reads them
                shifted right, unless it is given something else to read.
            logits_to_keep: 0 for all positions, n for the last n, or a tensor of positions.
            num_items_in_batch: labels that count in all batches of one optimizer step. The loss is the sum over this
                batch divided by it, so that accumulated small batches equal one large one; by default the mean.

        Returns:
            `logits`, (batch, target, vocabulary), `loss` where labels are given, and the outputs of the model.

        Raises:
            ValueError: for an empty source, or an id or label outside the vocabulary.
        """
        if labels is not None:
            check_ids(labels, self.config.target_vocab_size, "label", ignored=IGNORED)
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)

        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if self.logits_bias is not None:
            logits = logits + self.logits_bias

        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if self.training else 0.0
            loss = label_smoothed_loss(logits, labels, smoothing, num_items_in_batch)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def _resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        if not self.config.share_embeddings:  # the output layer has the target's words, which stay
            return self.model._resize_token_embeddings(*args, **kwargs)
        embeddings = super()._resize_token_embeddings(*args, **kwargs)
        if self.logits_bias is not None and len(self.logits_bias) != embeddings.num_embeddings:
            grown = self.logits_bias.new_zeros(embeddings.num_embeddings)
            kept = min(len(grown), len(self.logits_bias))
            grown[:kept] = self.logits_bias.detach()[:kept]
            self.logits_bias = nn.Parameter(grown)
        return embeddings

    @staticmethod
    def create_masks_for_generate(*args, attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor | None:
        # left to the decoder, which reads the places of the words from the (batch, length) mask as well
        return attention_mask

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor, model_kwargs, model_input_name, generation_config
    ):
        # generate() gives the decoder the memory without the source ids, so the mask must be found before
        if model_kwargs.get("attention_mask") is None and model_input_name == "input_ids":
            model_kwargs["attention_mask"] = padding_mask(inputs_tensor, self.config.pad_token_id)
        return super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )
