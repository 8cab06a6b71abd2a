"""The sides that translate real sentences of mixed lengths: from texts to texts, tokenizer included.

The model copies its source (preparation.py), so that a translation is as long as its source on all sides, and each
side finds the ends of sentences by itself. What is compared are the texts, by the ids of their tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
from rows import TWO
from sides_translator import (
    ctranslate2_model,
    hf_attn_model,
    import_libraries,
    marian_model,
    translation_pipeline,
)
from worker import Task

LONGEST = 512  # tokens of a translation, for all
ARRIVAL_BATCH = 32  # transformers' sentences at once, in the order in which they come
CT2_BATCH_TOKENS = 1024  # CTranslate2's tokens at once, after its own sorting by length

__all__ = ["build", "import_libraries"]


def build(side: str, row: dict[str, Any], files: Path, threads: int) -> Task:
    texts = json.loads((files / "sources.json").read_text(encoding="utf-8"))["mixed"][: row["batch"]]
    if side.startswith("CTranslate2"):
        return _ctranslate2(side, texts, row, files / "copier-ctranslate2", threads)
    if side == "transformers":
        return _transformers(texts, row, files / "copier-transformers")
    translate = translation_pipeline(hf_attn_model(files / "copier", row["dtype"]), files / "copier")
    options = {"workers": threads} if side == TWO else {}

    def call() -> list[str]:
        translated = translate(texts, num_beams=1, max_new_tokens=LONGEST, **options)
        return [record["translation_text"] for record in translated]

    return Task(call, lambda: {"texts": call()})


def _transformers(texts: list[str], row: dict[str, Any], directory: Path) -> Task:
    from transformers import AutoTokenizer

    model, tokenizer = marian_model(directory, row["dtype"]), AutoTokenizer.from_pretrained(directory)

    def call() -> list[str]:
        translated = []
        for first in range(0, len(texts), ARRIVAL_BATCH):
            inputs = tokenizer(texts[first : first + ARRIVAL_BATCH], padding=True, return_tensors="pt")
            with torch.inference_mode():
                outputs = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=LONGEST)
            translated += tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return translated

    return Task(call, lambda: {"texts": call()})


def _ctranslate2(side: str, texts: list[str], row: dict[str, Any], directory: Path, threads: int) -> Task:
    from transformers import AutoTokenizer

    translator = ctranslate2_model(side, directory, row["dtype"], threads)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = {"beam_size": 1, "max_decoding_length": LONGEST, "min_decoding_length": 0}

    def call() -> list[str]:
        tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]
        results = translator.translate_batch(tokens, max_batch_size=CT2_BATCH_TOKENS, batch_type="tokens", **options)
        words = [result.hypotheses[0] for result in results]
        return tokenizer.batch_decode([tokenizer.convert_tokens_to_ids(of_text) for of_text in words])

    return Task(call, lambda: {"texts": call()})
