"""The names of fairseq's Transformer, which Marian and M2M100 in transformers have, too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.interchange.names import STACKED, Row, looked_at, with_bias
from hf_attn.positions import sinusoids

SUBLAYERS = {  # Vaswani et al. 2017, figure 1: left and right
    "encoder": (("self_attn", "self_attention"),),
    "decoder": (("self_attn", "self_attention"), ("encoder_attn", "cross_attention")),
}
SOURCE, TARGET, OUTPUT = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"
SHARED = "model.shared.weight"  # in transformers; the other three have our names there


def layers(base: str, has_final_norm: bool) -> list[Row]:
    """Both stacks, with `base` before their names."""
    rows = []
    for stack, attentions in SUBLAYERS.items():
        theirs, ours = f"{base}{stack}.layers.{{}}", f"model.{stack}.layers.{{}}"
        for name, our_name in attentions:
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                rows += with_bias(f"{theirs}.{name}.{projection}", f"{ours}.{our_name}.{projection}")
            rows += with_bias(f"{theirs}.{name}_layer_norm", f"{ours}.{our_name}_add_norm.norm")
            for part in ("weight", "bias"):  # queries, keys and values in one, until 2019
                stacked = tuple(f"{ours}.{our_name}.{kind}_proj.{part}" for kind in "qkv")
                rows.append(Row(f"{theirs}.{name}.in_proj_{part}", stacked, STACKED))
        rows += with_bias(f"{theirs}.fc1", f"{ours}.feed_forward.up_proj")
        rows += with_bias(f"{theirs}.fc2", f"{ours}.feed_forward.down_proj")
        rows += with_bias(f"{theirs}.final_layer_norm", f"{ours}.feed_forward_add_norm.norm")
        if has_final_norm:
            rows += with_bias(f"{base}{stack}.layer_norm", f"model.{stack}.final_norm")
    return rows


def words(
    config: AttnTranslatorConfig,
    theirs: Mapping[str, torch.Tensor],
    source: Sequence[str],
    target: Sequence[str],
    output: Sequence[str],
) -> list[Row]:
    """The tables of words and the output layer. Of those that are one tensor in our model, a checkpoint may hold one
    or several, which must be equal then.

    Args:
        theirs: the checkpoint, or nothing for the first names.
        source: the names that the source's table may have.
        target: those of the target's.
        output: those of the output layer.
    """
    groups = {SOURCE: [*source], TARGET: [*target], OUTPUT: [*output]}
    if config.tie_word_embeddings:
        groups[TARGET] += groups.pop(OUTPUT)
    if config.share_embeddings:
        groups[SOURCE] += groups.pop(TARGET)
    rows = []
    for ours, names in groups.items():
        first, *copies = [name for name in names if name in theirs] or names[:1]
        rows.append(Row(first, ours))
        rows += [looked_at(copy, same_as(theirs, first)) for copy in copies]
    return rows


def transformers_words(config: AttnTranslatorConfig, theirs: Mapping[str, torch.Tensor]) -> list[Row]:
    """`words` of transformers' classes, where no word is shared without the output layer being so, too."""
    source = (SHARED, SOURCE) if config.share_embeddings else (SOURCE,)
    return words(config, theirs, source, (TARGET,), (OUTPUT,))


def unread(config: AttnTranslatorConfig) -> list[str]:
    """Patterns of what stands beside `transformers_words`."""
    return [] if config.share_embeddings else [SHARED.replace(".", r"\.")]


def same_as(theirs: Mapping[str, torch.Tensor], name: str) -> Callable[[torch.Tensor], None]:
    def check(copy: torch.Tensor) -> None:
        if not torch.equal(copy, theirs[name]):
            raise ValueError(f"it is another than {name}, whereas the configuration says that both are one")

    return check


def computed_positions(config: AttnTranslatorConfig) -> Callable[[torch.Tensor], None]:
    """For tables of sinusoids, (places, hidden_size), which our model computes."""

    def check(table: torch.Tensor) -> None:
        ours = sinusoids(torch.arange(len(table)), config.hidden_size, config.position_layout)
        rounded = max(1e-3, torch.finfo(table.dtype).eps)  # more in bfloat16
        if table.shape != ours.shape or (table.float() - ours).abs().max() > rounded:
            raise ValueError("these are no sinusoids; this model has no learned positions")

    return check


def same_in_both(theirs: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The fields that are one in our model: {our name: their name, with {} for encoder and decoder}.

    Raises:
        ValueError: where encoder and decoder differ.
    """
    fields = {}
    for ours, name in names.items():
        first, second = (theirs[name.format(stack)] for stack in SUBLAYERS)
        if first != second:
            encoder, decoder = (name.format(stack) for stack in SUBLAYERS)
            raise ValueError(f"{encoder} is {first} and {decoder} {second}; in this model they are one")
        fields[ours] = first
    return fields
