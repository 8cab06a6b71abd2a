"""CTranslate2, which runs translators fast without torch: a model directory for `ctranslate2.Translator`.

    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("Ein Satz."))
    [result] = ctranslate2.Translator("directory").translate_batch([tokens])
    tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0]))

Sources are given with their `</s>`, as the tokenizer writes them. `min_decoding_length=0` lets a translation be empty,
as `generate` does.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_attn.attention import MultiHeadAttention
from hf_attn.modeling_translator import AddNorm, AttnTranslatorForConditionalGeneration, FeedForward
from hf_attn.training.checkpoints import whole_directory

ACTIVATIONS = {  # by their names in ctranslate2.specs.common_spec.Activation
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_new": "GELUTanh",
    "gelu_pytorch_tanh": "GELUTanh",
    "quick_gelu": "GELUSigmoid",
    "silu": "SWISH",
    "swish": "SWISH",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
POSITIONS = 4096  # tokens that a source or a translation may have: CTranslate2 reads places from a table
BANNED = -1e4  # added to the logits of words that are never said; half precision holds it, too


def export_ctranslate2(
    model: AttnTranslatorForConditionalGeneration,
    output_dir: str | os.PathLike,
    tokenizer: Any | None = None,
    quantization: str | None = None,
) -> None:
    """Write a translator for CTranslate2, with its tokenizer.

    Words that `generation_config.bad_words_ids` forbids by themselves are never said there either; beams and
    lengths are for the caller of `translate_batch` to choose.

    Args:
        output_dir: one that exists is replaced, once all is written.
        tokenizer: whose words become those of the model.
        quantization: "int8", "float16", ...; as it is by default.

    Raises:
        ImportError: without the library ctranslate2.
        ValueError: without a tokenizer, with one of another model, for an activation that CTranslate2 has not, or
            unless one token ends translations.
    """
    try:
        from ctranslate2.specs import TransformerSpec
        from ctranslate2.specs.common_spec import Activation
    except ImportError as error:
        raise ImportError("the export needs CTranslate2: pip install 'hf-attn[interchange]'") from error
    config = model.config
    if tokenizer is None:
        raise ValueError("CTranslate2 keeps a model's words with it; give the tokenizer that belongs to the model")
    if config.activation_function not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation_function is {config.activation_function!r}; CTranslate2 has {known}")
    end = _end(model.generation_config.eos_token_id)
    spec = TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.num_attention_heads,
        pre_norm=config.norm_position == "pre",
        activation=getattr(Activation, ACTIVATIONS[config.activation_function]),
    )
    _fill(spec, model)
    source_words = words(tokenizer, config.vocab_size, of_target=False)
    target_words = words(tokenizer, config.target_vocab_size, of_target=True)
    spec.register_source_vocabulary(source_words)
    spec.register_target_vocabulary(target_words)
    spec.config.eos_token = target_words[end]
    spec.config.unk_token = str(tokenizer.unk_token)
    spec.config.decoder_start_token = target_words[model.generation_config.decoder_start_token_id]
    spec.config.layer_norm_epsilon = nn.LayerNorm(1).eps
    spec.validate()
    spec.optimize(quantization=quantization)
    with whole_directory(Path(output_dir)) as temporary:
        spec.save(str(temporary))
        tokenizer.save_pretrained(temporary)


def _end(ids: int | list[int] | None) -> int:
    ends = ids if isinstance(ids, list) else [ids]
    if len(ends) != 1 or ends[0] is None:
        raise ValueError(
            f"eos_token_id of generation_config is {ids}: a model of CTranslate2 has one; leave one there, and give "
            "others to translate_batch as end_token"
        )
    return ends[0]


def words(tokenizer: Any, size: int, of_target: bool) -> list[str]:
    """The model's words of the source, or of the target, by their ids; a made-up one where the tokenizer has none.

    Raises:
        ValueError: if the tokenizer has ids that the model has not.
    """
    if of_target and hasattr(tokenizer, "_switch_to_target_mode"):
        tokenizer._switch_to_target_mode()
    known = {index: word for word, index in tokenizer.get_vocab().items()}
    if hasattr(tokenizer, "_switch_to_input_mode"):
        tokenizer._switch_to_input_mode()
    if max(known) >= size:
        raise ValueError(
            f"the tokenizer has ids up to {max(known)}, the model {size} words; give the one it belongs to"
        )
    return [known.get(index, f"madeupword{index}") for index in range(size)]


def _fill(spec: Any, model: AttnTranslatorForConditionalGeneration) -> None:
    stacks: list[tuple[Any, Any]] = [(model.model.encoder, spec.encoder), (model.model.decoder, spec.decoder)]
    for stack, of_spec in stacks:
        embeddings = of_spec.embeddings[0] if isinstance(of_spec.embeddings, list) else of_spec.embeddings
        embeddings.weight = _numbers(stack.embed_tokens.weight)
        of_spec.scale_embeddings = model.config.scale_embedding
        places = stack.words_in_places.places(POSITIONS, model.config.hidden_size)
        of_spec.position_encodings.encodings = _numbers(places)
        if model.config.norm_position == "pre":
            _norm(of_spec.layer_norm, stack.final_norm)
        for layer, of_layer in zip(stack.layers, of_spec.layer, strict=True):
            _self_attention(of_layer.self_attention, layer.self_attention, layer.self_attention_add_norm)
            if hasattr(layer, "cross_attention"):
                _cross_attention(of_layer.attention, layer.cross_attention, layer.cross_attention_add_norm)
            _feed_forward(of_layer.ffn, layer.feed_forward, layer.feed_forward_add_norm)
    spec.decoder.projection.weight = _numbers(model.lm_head.weight)
    bias = torch.zeros(model.config.target_vocab_size) if model.logits_bias is None else model.logits_bias.clone()
    banned = [words[0] for words in model.generation_config.bad_words_ids or () if len(words) == 1]
    bias.data[banned] += BANNED
    if model.logits_bias is not None or banned:
        spec.decoder.projection.bias = _numbers(bias)


def _self_attention(spec: Any, attention: MultiHeadAttention, add_norm: AddNorm) -> None:
    _norm(spec.layer_norm, add_norm.norm)
    _linear(spec.linear[0], attention.q_proj, attention.k_proj, attention.v_proj)
    _linear(spec.linear[1], attention.out_proj)


def _cross_attention(spec: Any, attention: MultiHeadAttention, add_norm: AddNorm) -> None:
    _norm(spec.layer_norm, add_norm.norm)
    _linear(spec.linear[0], attention.q_proj)
    _linear(spec.linear[1], attention.k_proj, attention.v_proj)
    _linear(spec.linear[2], attention.out_proj)


def _feed_forward(spec: Any, feed_forward: FeedForward, add_norm: AddNorm) -> None:
    _norm(spec.layer_norm, add_norm.norm)
    _linear(spec.linear_0, feed_forward.up_proj)
    _linear(spec.linear_1, feed_forward.down_proj)


def _linear(spec: Any, *layers: nn.Linear) -> None:
    """One layer, or several that read the same and are computed as one."""
    spec.weight = np.concatenate([_numbers(layer.weight) for layer in layers])
    spec.bias = np.concatenate([_numbers(layer.bias) for layer in layers])


def _norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _numbers(norm.weight), _numbers(norm.bias)


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().contiguous().numpy()
