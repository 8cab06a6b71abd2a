"""Many-to-many translators: M2M100 and NLLB-200 (dense), facebook/m2m100_* and facebook/nllb-200-*.

The language to translate into is the first word of the translation: give `generate` a `forced_bos_token_id`.

transformers computes the angles of its sinusoids in single precision, and is off by 5e-5 at position 1,000 and 2e-4 at
4,000; ours are computed in double. So logits of texts of a thousand words differ by as much, in any precision.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import M2M100Config

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.interchange.fairseq_names import layers, transformers_words, unread
from hf_attn.interchange.marian import MARIAN, same_fields
from hf_attn.interchange.names import Names


def configure(theirs: Mapping[str, Any]) -> dict[str, Any]:
    full = M2M100Config.from_dict(dict(theirs)).to_dict()  # with the defaults of what is left out
    return {
        **same_fields(full),
        "share_embeddings": full["tie_word_embeddings"],  # transformers unties all tables at once
        "norm_position": "pre",
        "position_layout": "fairseq",
        "first_position": full["pad_token_id"] + 1,
    }


def table(config: AttnTranslatorConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    return Names(
        [
            *transformers_words(config, theirs),
            *layers("model.", has_final_norm=True),
        ],
        beside=[
            *unread(config),
            r"model\.(encoder|decoder)\.embed_positions\.weights",
        ],  # sinusoids, which both compute
    )


M2M = replace(MARIAN, title="an M2M100 or NLLB translator of transformers", configure=configure, table=table)
