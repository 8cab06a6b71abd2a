"""Marian's translators as transformers keeps them: the OPUS-MT models, Helsinki-NLP/opus-mt-*."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, MarianConfig, MarianTokenizer
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.generation_translator import OWN_ENTRIES
from hf_attn.interchange.companions import companion
from hf_attn.interchange.fairseq_names import (
    TARGET,
    computed_positions,
    layers,
    same_in_both,
    transformers_words,
    unread,
)
from hf_attn.interchange.loading import Family, Opened
from hf_attn.interchange.names import Change, Names, Row, looked_at
from hf_attn.interchange.opus_tokenizer_export import export_marian_tokenizer
from hf_attn.tokenization_opus import OpusTokenizer
from hf_attn.tokenization_translator import save_tokenizer
from hf_attn.training.checkpoints import whole_directory

logger = logging.get_logger(__name__)

MAX_LENGTH = 512  # of the OPUS-MT models; transformers' own is 20
SAME_FIELDS = (
    "vocab_size",
    "encoder_layers",
    "decoder_layers",
    "activation_function",
    "scale_embedding",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "tie_word_embeddings",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
ONE_FOR_BOTH = {"num_attention_heads": "{}_attention_heads", "intermediate_size": "{}_ffn_dim"}
AS_IN_OUR_MODEL = {"position_layout": "halves", "first_position": 0, "norm_position": "post", "logits_bias": True}
# Of any, of any that is fast, of OPUS-MT, of M2M100
TOKENIZER_FILES = (TOKENIZER_CONFIG_FILE, "tokenizer.json", "source.spm", "target.spm", "sentencepiece.bpe.model")
AS_IN_TRANSFORMERS = {**OWN_ENTRIES, "early_stopping_heuristic": True}
BIAS = Change(lambda theirs: [theirs.flatten()], lambda ours: ours[0].unsqueeze(0))  # (1, words) ↔ (words,)


def configure(theirs: Mapping[str, Any]) -> dict[str, Any]:
    full = MarianConfig.from_dict(dict(theirs)).to_dict()  # with the defaults of what is left out
    is_shared = full["share_encoder_decoder_embeddings"]
    return {
        **same_fields(full),
        **AS_IN_OUR_MODEL,
        "share_embeddings": is_shared and full["tie_word_embeddings"],  # transformers unties all tables at once
        "decoder_vocab_size": full["vocab_size"] if is_shared else full["decoder_vocab_size"],
        "unk_token_id": None,  # known to the tokenizer
    }


def same_fields(full: Mapping[str, Any]) -> dict[str, Any]:
    """What means the same in M2M100, too."""
    both = same_in_both(full, ONE_FOR_BOTH)
    return {**{name: full[name] for name in SAME_FIELDS}, **both, "hidden_size": full["d_model"]}


def table(config: AttnTranslatorConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    return Names(
        [
            *transformers_words(config, theirs),
            *layers("model.", has_final_norm=False),
            Row("final_logits_bias", "logits_bias", BIAS),
            looked_at("model.encoder.embed_positions.weight", computed_positions(config)),
            looked_at("model.decoder.embed_positions.weight", computed_positions(config)),
        ],
        beside=unread(config),
    )


def search_settings(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of `generate`, which it did until 2023, and of how every Marian translation ends."""
    settings = GenerationConfig.from_model_config(dict(theirs)).to_diff_dict()
    del settings["_from_model_config"]  # what is marked so is saved without our own entries
    if theirs["model_type"] == MarianConfig.model_type:  # which transformers forgets where config.json leaves it out
        settings.setdefault("forced_eos_token_id", MarianConfig.forced_eos_token_id)
    return settings


def tokenizers(opened: Opened, place: dict[str, Any]) -> list[Any]:
    """The checkpoint's tokenizer, if it has the files of one."""
    found = companion(AutoTokenizer, opened.source, TOKENIZER_FILES, place)
    return [] if found is None else [found]


MARIAN = Family(
    title="a Marian translator of transformers",
    config_class=AttnTranslatorConfig,
    configure=configure,
    table=table,
    generation=search_settings,
    own_generation=AS_IN_TRANSFORMERS,
    companions=tokenizers,
)


def export_transformers(model: Any, output_dir: str | os.PathLike, tokenizer: Any | None = None) -> None:
    """Write a translator as a `MarianMTModel`, with its tokenizer and its settings of `generate`.

    There, a text has at most 1,024 tokens, for which it keeps positions; here, as many as fit into memory.

    Args:
        output_dir: one that exists is replaced, once all is written.

    Raises:
        ValueError: if a Marian translator cannot be what this one is; the message names the setting.
    """
    config: AttnTranslatorConfig = copy.deepcopy(model.config)
    for name, wanted in AS_IN_OUR_MODEL.items():
        if getattr(config, name) != wanted and name != "logits_bias":
            raise ValueError(f"{name} is {getattr(config, name)!r}, but {wanted!r} in every Marian translator")
    weights = model.state_dict()
    weights.setdefault("logits_bias", torch.zeros(config.target_vocab_size))
    config.share_embeddings &= config.tie_word_embeddings  # else the source's table is written for the target, too
    copies = model.all_tied_weights_keys.keys() - (set() if config.share_embeddings else {TARGET})
    weights = {name: weight for name, weight in weights.items() if name not in copies}
    given = {name: weight.contiguous() for name, weight in table(config, {}).give(weights).items()}
    with whole_directory(Path(output_dir)) as temporary:
        save_file(given, temporary / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        _their_config(config, model.dtype).save_pretrained(temporary)
        _their_search_settings(model).save_pretrained(temporary)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, temporary)


def _write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """As a MarianTokenizer if it was one, else as it is."""
    if isinstance(tokenizer, OpusTokenizer):
        export_marian_tokenizer(tokenizer, directory)
        return
    save_tokenizer(tokenizer, directory)
    name = type(tokenizer).__name__
    if name != MarianTokenizer.__name__:
        logger.warning(f"the tokenizer stays a {name}: AutoTokenizer reads it, and MarianTokenizer does not")


def _their_config(config: AttnTranslatorConfig, dtype: torch.dtype) -> MarianConfig:
    return MarianConfig(
        **{name: getattr(config, name) for name in SAME_FIELDS},
        **{
            name.format(stack): getattr(config, ours)
            for ours, name in ONE_FOR_BOTH.items()
            for stack in ("encoder", "decoder")
        },
        d_model=config.hidden_size,
        share_encoder_decoder_embeddings=config.share_embeddings,
        decoder_vocab_size=config.target_vocab_size,
        architectures=["MarianMTModel"],
        dtype=dtype,
    )


def _their_search_settings(model: Any) -> GenerationConfig:
    """Without the entries that only our models know; a warning names those that would change translations."""
    settings = copy.deepcopy(model.generation_config)
    own = {name: vars(settings).pop(name, None) for name in OWN_ENTRIES}
    if own["gnmt_alpha"] is not None:
        logger.warning(f"gnmt_alpha {own['gnmt_alpha']} is left out: MarianMTModel has length_penalty in its place")
    if settings.max_length is None and settings.max_new_tokens is None:
        settings.max_length = MAX_LENGTH
    return settings
