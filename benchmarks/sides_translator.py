"""The sides that translate sentences of one length; all have the weights that preparation.py wrote.

What is compared are token ids without the start token, as many as were asked for.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import OURS, TARGET_TOKENS, TWO
from turns import DTYPES
from worker import Task

COMPUTE = {"fp32": "float32", "int8": "int8"}


def import_libraries(side: str, threads: int) -> None:
    if side.startswith("CTranslate2"):
        import ctranslate2  # noqa: F401

        return
    torch.set_num_threads(threads)
    if side in (OURS, TWO):
        from hf_attn import AttnTranslatorForConditionalGeneration  # noqa: F401
    else:
        from transformers import MarianMTModel  # noqa: F401


def hf_attn_model(directory: Path, dtype: str) -> Any:
    from hf_attn import AttnTranslatorForConditionalGeneration

    model = AttnTranslatorForConditionalGeneration.from_pretrained(directory).eval()
    if dtype == "fp32":
        return model.prepare_for_inference()
    return model.prepare_for_inference(dtype={"bf16": torch.bfloat16, "int8": torch.int8}[dtype])


def marian_model(directory: Path, dtype: str) -> Any:
    from transformers import MarianMTModel

    model = MarianMTModel.from_pretrained(directory, dtype=DTYPES[dtype]).eval()
    model.generation_config.max_length = None  # it warns at each call that max_new_tokens is given, too
    return model


def ctranslate2_model(side: str, directory: Path, dtype: str, threads: int) -> Any:
    """One worker with all threads, or as many workers as threads."""
    import ctranslate2

    inter, intra = (threads, 1) if side.endswith("workers") else (1, threads)
    return ctranslate2.Translator(
        str(directory), compute_type=COMPUTE[dtype], inter_threads=inter, intra_threads=intra
    )


def token_ids(directory: Path) -> dict[str, int]:
    """CTranslate2's words and what they are to the other sides."""
    words = json.loads((directory / "shared_vocabulary.json").read_text(encoding="utf-8"))
    return {word: index for index, word in enumerate(words)}


def build(side: str, row: dict[str, Any], files: Path, threads: int) -> Task:
    sources = json.loads((files / "sources.json").read_text(encoding="utf-8"))["equal"][: row["batch"]]
    if side.startswith("CTranslate2"):
        return _ctranslate2(side, sources, row, files / "translator-ctranslate2", threads)
    if side == TWO:
        return _pipeline(sources, row, files / "translator", threads)
    if side == OURS:
        model = hf_attn_model(files / "translator", row["dtype"])
    else:
        model = marian_model(files / "translator-transformers", row["dtype"])
    return _generate(model, sources, row["beams"])


def _generate(model: Any, sources: list[dict[str, Any]], beams: int) -> Task:
    input_ids = torch.tensor([source["ids"] for source in sources])
    mask = torch.ones_like(input_ids)

    def call() -> torch.Tensor:
        return model.generate(
            input_ids, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=TARGET_TOKENS
        )

    return Task(call, lambda: {"tokens": call()[:, 1:].tolist()})


def _pipeline(sources: list[dict[str, Any]], row: dict[str, Any], directory: Path, threads: int) -> Task:
    """Texts that have as many tokens as the others' sources, by as many workers as there are threads."""
    translate = translation_pipeline(hf_attn_model(directory, row["dtype"]), directory)
    texts = [source["text"] for source in sources]
    options = {"num_beams": row["beams"], "max_new_tokens": TARGET_TOKENS}

    def call() -> object:
        return translate(texts, workers=threads, batch_size=-(-len(texts) // threads), **options)

    return Task(call)


def translation_pipeline(model: Any, directory: Path) -> Callable[..., Any]:
    from transformers import AutoTokenizer, pipeline

    return pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(directory), device="cpu")


def _ctranslate2(side: str, sources: list[dict[str, Any]], row: dict[str, Any], directory: Path, threads: int) -> Task:
    translator = ctranslate2_model(side, directory, row["dtype"], threads)
    tokens = [source["tokens"] for source in sources]
    largest = -(-len(tokens) // threads) if side.endswith("workers") else len(tokens)
    options = {"beam_size": row["beams"], "max_decoding_length": TARGET_TOKENS, "min_decoding_length": 0}

    def call() -> Any:
        return translator.translate_batch(tokens, max_batch_size=largest, **options)

    ids = token_ids(directory)
    return Task(call, lambda: {"tokens": [[ids[word] for word in result.hypotheses[0]] for result in call()]})
