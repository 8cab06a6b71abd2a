"""The toy task of the field: a translator learns to reverse sequences, every one of those that it has never seen."""

from types import SimpleNamespace

import torch

from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration
from hf_attn.training.evaluation import generate_all
from hf_attn.training.sampler import TranslationCollator
from hf_attn.training.trainer import TranslatorTrainer, TranslatorTrainingArguments

SYMBOLS, FIRST, END = 16, 4, 2


def reversals(number: int, seed: int) -> list[dict[str, list[int]]]:
    """Different sequences of 1 to 10 symbols, and the same backwards."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < number:
        length = int(torch.randint(1, 11, (1,), generator=generator))
        found[tuple(torch.randint(FIRST, FIRST + SYMBOLS, (length,), generator=generator).tolist())] = None
    return [{"input_ids": [*symbols, END], "labels": [*reversed(symbols), END]} for symbols in found]


def test_reversing_is_learned_without_a_mistake(tmp_path):
    pairs = reversals(8400, seed=0)
    unseen, seen = pairs[-400:], pairs[:-400]
    torch.manual_seed(0)
    config = AttnTranslatorConfig(
        vocab_size=FIRST + SYMBOLS,
        hidden_size=64,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        dropout=0.0,
        label_smoothing=0.0,
        norm_position="pre",
    )
    model = AttnTranslatorForConditionalGeneration(config)
    arguments = TranslatorTrainingArguments(
        output_dir=str(tmp_path),
        max_tokens_per_batch=400,
        max_steps=1000,
        noam_factor=None,
        learning_rate=3e-3,
        warmup_steps=100,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = TranslationCollator(SimpleNamespace(pad_token_id=config.pad_token_id))
    TranslatorTrainer(model, arguments, collator, seen).train()

    generated = generate_all(model, [pair["input_ids"] for pair in unseen], max_tokens=4096)
    wrong = [(pair["labels"], ids) for pair, ids in zip(unseen, generated, strict=True) if pair["labels"] != ids]
    assert not wrong, f"{len(wrong)} of {len(unseen)} wrong, such as {wrong[0]}"
