"""Translators of fairseq's model `transformer`: checkpoint_best.pt, which holds its settings and its training, too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.interchange.fairseq_names import layers, same_in_both, words
from hf_attn.interchange.files import FileFormat, open_file
from hf_attn.interchange.loading import as_model
from hf_attn.interchange.names import Names
from hf_attn.interchange.pickles import settings_of
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration

BOS, PAD, END, UNKNOWN = range(4)  # of every dictionary of fairseq, before its words
ONE_FOR_BOTH = {
    "hidden_size": "{}_embed_dim",
    "num_attention_heads": "{}_attention_heads",
    "intermediate_size": "{}_ffn_embed_dim",
    "norm_position": "{}_normalize_before",
}
ABSENT = (  # what our model has not
    "encoder_learned_pos",
    "decoder_learned_pos",
    "no_token_positional_embeddings",
    "layernorm_embedding",
    "adaptive_softmax_cutoff",
    "no_cross_attention",
    "cross_self_attention",
    "no_decoder_final_norm",
    "encoder_layers_to_keep",
    "decoder_layers_to_keep",
)
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
SOURCE, TARGET = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
OUTPUTS = ("decoder.output_projection.weight", "decoder.embed_out")  # since 2020, and before
BESIDE = (r"(encoder|decoder)\.version", r"(encoder|decoder)\.embed_positions\._float_tensor")


def load_fairseq(path: str | Path, **kwargs: Any) -> AttnTranslatorForConditionalGeneration:
    """The translator in a .pt file of fairseq's. Its words are those of fairseq's dictionary, which is another file.

    Args:
        kwargs: of `from_pretrained`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such checkpoint, is damaged, or one that our model cannot be.
    """
    return as_model(open_file(Path(path), FAIRSEQ), AttnTranslatorForConditionalGeneration, **kwargs)


def recognise(theirs: Mapping[str, torch.Tensor]) -> bool:
    return {SOURCE, TARGET, "decoder.layers.0.encoder_attn.out_proj.weight"} <= theirs.keys()


def configure(theirs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    settings = settings_of(theirs)
    if not settings:
        raise ValueError(
            "it has no settings, neither 'args' nor 'cfg', and tensors do not tell the number of heads; give the .pt "
            "that fairseq wrote"
        )
    for name in ABSENT:
        if settings.get(name):
            raise ValueError(
                f"{name} is {settings[name]!r}, which this model has not; it can be trained without, only"
            )
    activation = settings.get("activation_fn", "relu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation_fn is {activation!r} and can be one of {', '.join(ACTIVATIONS)}")
    try:
        shape = same_in_both(settings, ONE_FOR_BOTH)
        counts = {name: settings[name] for name in ("encoder_layers", "decoder_layers")}
        source, target = theirs[SOURCE], theirs[TARGET]
    except KeyError as error:
        raise ValueError(f"it lacks {error}, which every `transformer` of fairseq has") from error
    return {
        **shape,
        **counts,
        "norm_position": "pre" if shape["norm_position"] else "post",
        "vocab_size": len(source),
        "decoder_vocab_size": len(target),
        "activation_function": ACTIVATIONS[activation],
        "scale_embedding": not settings.get("no_scale_embedding"),
        "position_layout": "fairseq",
        "first_position": PAD + 1,
        "share_embeddings": torch.equal(source, target),
        "tie_word_embeddings": all(torch.equal(theirs[name], target) for name in OUTPUTS if name in theirs),
        "dropout": settings.get("dropout", 0.1),
        "attention_dropout": settings.get("attention_dropout", 0.0),
        "activation_dropout": settings.get("activation_dropout") or settings.get("relu_dropout") or 0.0,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "unk_token_id": UNKNOWN,
        "decoder_start_token_id": END,  # a translation begins where another ends
    }


def table(config: AttnTranslatorConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    rows = words(config, theirs, (SOURCE,), (TARGET,), OUTPUTS)
    return Names([*rows, *layers("", has_final_norm=config.norm_position == "pre")], BESIDE)


FAIRSEQ = FileFormat(
    name="fairseq",
    title="a translator of fairseq",
    config_class=AttnTranslatorConfig,
    recognise=recognise,
    configure=configure,
    table=table,
)
