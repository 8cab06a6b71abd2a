"""From sentence pairs to a translator, in one call: `train_translator`.

pairs → joint vocabulary → token ids → training with checkpoints → averaged model → scores on held-out text → report

All of it survives a kill at any moment: the same call with `resume=True` goes on from what is complete on disk.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)

from hf_attn.generation_translator import paper_generation_config
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration
from hf_attn.tokenization_translator import train_tokenizer
from hf_attn.training.callbacks import Progress, ProgressEvent, ProgressListener
from hf_attn.training.checkpoints import (
    complete_checkpoints,
    move_files,
    no_progress_bars,
    whole_directory,
    whole_file,
)
from hf_attn.training.data import encode_pairs, token_lengths
from hf_attn.training.evaluation import generate_all, summed_loss
from hf_attn.training.measuring import evenly_spread, load_saved
from hf_attn.training.metrics import score_translations
from hf_attn.training.optimization import choose_bf16, device_type
from hf_attn.training.report import plot_learning_curve, training_facts, write_translator_card
from hf_attn.training.sampler import TokenBatchSampler, TranslationCollator
from hf_attn.training.settings import TranslatorSettings, check_data, open_run
from hf_attn.training.trainer import TranslatorTrainer, TranslatorTrainingArguments

NO_END = 1_000_000_000  # steps, where only the time limits a run
USUAL_LENGTH = 80  # characters of the examples in the model card
EXAMPLES_SHOWN = 3


@dataclass
class TranslatorEvaluation:
    """Translations of a split and their scores.

    `metrics`: `bleu`, `chrf`, `bleu_signature`, `chrf_signature`, `loss` (nats per token), `sentences`, `num_beams`,
    `gnmt_alpha`, `seconds` and `target_tokens_per_second` (of generating).
    """

    metrics: dict[str, Any]
    sources: list[str]
    references: list[str]
    translations: list[str]


@dataclass
class TrainingResult:
    """What `train_translator` made.

    `metrics` is what metrics.json holds: `training` (`steps`, `target_tokens`, `minutes`, `target_tokens_per_second`,
    `precision`, `hardware`, `stopped`), `parameters`, and the metrics of each split measured.
    """

    output_dir: Path
    metrics: dict[str, Any]
    log_history: list[dict[str, float]]
    test: TranslatorEvaluation | None = field(repr=False)  # of the validation split where there is no other


def train_translator(
    data: datasets.DatasetDict,
    output_dir: str | Path,
    *,
    source_language: str,
    target_language: str,
    resume: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: ProgressListener | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train a translator from nothing but sentence pairs.

    `output_dir` then holds the model, tokenizer and generation settings that `pipeline("translation")` loads,
    README.md (the model card), learning_curve.png, metrics.json, training_settings.json and checkpoints/.

    Args:
        data: splits `train` and, for scores, `validation` and `test`, with the text columns `source` and `target`.
        output_dir: empty or not there; with `resume`, the directory of a run that was stopped, or is to go on longer.
        source_language, target_language: ISO codes.
        resume: go on from what is on disk.
        tokenizer: one that ends every text with `</s>`; by default a joint vocabulary is learned from the train split.
        progress: told how far the work is.
        settings: the other fields of `TranslatorSettings`.

    Raises:
        ValueError: for settings, data or a directory that do not fit.
        OSError: for a directory that cannot be written to, or a disk without room.
        TrainingInterrupted: on Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    run = TranslatorSettings(source_language=source_language, target_language=target_language, **settings)
    tell = progress or (lambda event: None)
    output_dir = Path(output_dir)
    check_data(data, run)
    open_run(output_dir, run, data, resume)

    tokenizer = _load_or_train_tokenizer(output_dir, tokenizer, data["train"], run.vocab_size, tell)
    encoded = _encode(data, tokenizer, run, tell)
    set_seed(run.seed)
    model = AttnTranslatorForConditionalGeneration(run.configuration(len(tokenizer)))
    model.generation_config.update(**paper_generation_config().to_diff_dict())
    trainer = _trainer(model, tokenizer, encoded, output_dir / "checkpoints", run, tell)
    trainer.train(resume_from_checkpoint=bool(complete_checkpoints(output_dir / "checkpoints")))

    final = trainer.save_final_model(output_dir / ".model")
    move_files(final, output_dir)
    final.rmdir()
    evaluations = _final_scores(output_dir, data, run, tell)
    return _report(output_dir, data, run, trainer, evaluations, tell)


def evaluate_translator(
    model: str | Path,
    data: datasets.DatasetDict,
    *,
    split: str = "test",
    sentences: int | None = None,
    max_tokens_per_batch: int = 4096,
    bf16: bool | str = "auto",
    progress: ProgressListener | None = None,
    **generation: Any,
) -> TranslatorEvaluation:
    """Translate a split and measure BLEU, chrF and the loss.

    Args:
        model: a directory with a translator and its tokenizer, or the id of one on the Hub.
        data: with the split, whose text columns are `source` and `target`.
        sentences: so many, spread evenly over the split; by default all.
        max_tokens_per_batch: bound on rows times longest row.
        bf16: True, False, or "auto": bfloat16 where the hardware has it.
        progress: told how many sentences are translated.
        generation: arguments of `generate`; by default those saved with the model.

    Raises:
        FileNotFoundError: if there is no such model, or it has no tokenizer.
        ValueError: if there is no such split, or nothing in it.
    """
    tell = progress or (lambda event: None)
    if split not in data or not len(data[split]):
        raise ValueError(f"the data have no {split} split with pairs in it, only {', '.join(data) or 'nothing'}")
    pairs = evenly_spread(data[split], sentences)
    translator, tokenizer = _load(model)
    device = device_type()
    translator.to(torch.device(device))
    use_bf16, _ = choose_bf16(bf16, device, translator.config.hidden_size)

    with no_progress_bars():
        encoded = encode_pairs(pairs, tokenizer, max_length=NO_END)
    done = 0

    def count(batch: int) -> None:
        nonlocal done
        done += batch
        tell(ProgressEvent("test", done, len(pairs), "sentences"))

    tell(ProgressEvent("test", 0, len(pairs), "sentences"))
    with torch.autocast(device, torch.bfloat16, enabled=use_bf16):
        total, labels = summed_loss(translator, _batches(encoded, tokenizer, max_tokens_per_batch))
        started = time.perf_counter()
        generated = generate_all(translator, encoded["input_ids"][:], max_tokens_per_batch, count, **generation)
        seconds = time.perf_counter() - started
    translations = tokenizer.batch_decode(generated, skip_special_tokens=True)
    settings = {**translator.generation_config.to_dict(), **generation}
    metrics = {
        **score_translations(translations, pairs["target"][:]),
        "loss": (total / labels).item(),
        "sentences": len(pairs),
        "num_beams": settings.get("num_beams") or 1,
        "gnmt_alpha": settings.get("gnmt_alpha"),
        "seconds": seconds,
        "target_tokens_per_second": sum(map(len, generated)) / seconds,
    }
    return TranslatorEvaluation(metrics, pairs["source"][:], pairs["target"][:], translations)


# Before training


def _load_or_train_tokenizer(
    output_dir: Path,
    given: PreTrainedTokenizerBase | None,
    pairs: datasets.Dataset,
    vocab_size: int,
    tell: ProgressListener,
) -> PreTrainedTokenizerBase:
    """The tokenizer that the run began with, else the one given, else a new one; it then is in the directory."""
    if all((output_dir / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        saved = AutoTokenizer.from_pretrained(output_dir)
        if given is not None and given.get_vocab() != saved.get_vocab():
            raise ValueError(
                f"the run in {output_dir} began with another tokenizer; resume without one, or choose another "
                "directory"
            )
        return saved
    tell(ProgressEvent("tokenizer", 0, 1, "vocabularies"))
    tokenizer = given or train_tokenizer(chain(pairs["source"], pairs["target"]), vocab_size)
    with whole_directory(output_dir / ".tokenizer") as temporary:
        tokenizer.save_pretrained(temporary)
    move_files(output_dir / ".tokenizer", output_dir)
    (output_dir / ".tokenizer").rmdir()
    tell(ProgressEvent("tokenizer", 1, 1, "vocabularies", {"tokens": len(tokenizer)}))
    return tokenizer


def _encode(
    data: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase, run: TranslatorSettings, tell: ProgressListener
) -> dict[str, datasets.Dataset]:
    """Token ids of the splits that training reads."""
    splits = [split for split in ("train", "validation") if split in data and len(data[split])]
    encoded = {}
    for done, split in enumerate(splits):
        tell(ProgressEvent("encode", done, len(splits), "splits"))
        with no_progress_bars():
            encoded[split] = encode_pairs(data[split], tokenizer, run.max_length)
    tell(ProgressEvent("encode", len(splits), len(splits), "splits"))
    return encoded


def _trainer(
    model: AttnTranslatorForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    encoded: dict[str, datasets.Dataset],
    output_dir: Path,
    run: TranslatorSettings,
    tell: ProgressListener,
) -> TranslatorTrainer:
    bf16, precision = choose_bf16(run.bf16, device_type(), model.config.hidden_size)
    arguments = TranslatorTrainingArguments(
        output_dir=str(output_dir),
        max_tokens_per_batch=run.max_tokens_per_batch,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        max_steps=_last_step(encoded["train"], run),
        max_minutes=run.max_minutes,
        noam_factor=run.schedule_factor(model.config.hidden_size),
        warmup_steps=run.warmup_steps,
        logging_steps=min(50, run.eval_steps),
        logging_first_step=True,
        eval_strategy="steps" if "validation" in encoded else "no",
        eval_steps=run.eval_steps,
        predict_with_generate=True,
        generation_num_beams=1,
        eval_generation_examples=run.eval_sentences,
        save_strategy="steps",
        save_steps=run.save_steps,
        average_last=run.average_last,
        ema_decay=run.ema_decay,
        early_stopping_patience=run.early_stopping_patience,
        bf16=bf16,
        seed=run.seed,
        disable_tqdm=True,
    )
    arguments.precision = precision
    trainer = TranslatorTrainer(
        model,
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(tell, trainer.time_limit))
    return trainer


def _last_step(pairs: datasets.Dataset, run: TranslatorSettings) -> int:
    """The optimizer step after which training ends, if time does not end it before."""
    batches = len(TokenBatchSampler(*token_lengths(pairs), run.max_tokens_per_batch))
    steps_an_epoch = ceil(batches / run.gradient_accumulation_steps)
    epochs = ceil(run.num_train_epochs * steps_an_epoch) if run.num_train_epochs else NO_END
    return min(run.max_steps or NO_END, epochs)


# After training


def _load(model: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    files = {"config.json": "no translator", "tokenizer_config.json": "a translator without its tokenizer"}
    return load_saved(model, (AutoModelForSeq2SeqLM, AutoTokenizer), files, "train_translator")


def _batches(encoded: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> DataLoader:
    sources, targets = token_lengths(encoded)
    batches = TokenBatchSampler(sources, targets, max(max_tokens, *sources, *targets), shuffle=False)
    return DataLoader(encoded, batch_sampler=batches, collate_fn=TranslationCollator(tokenizer))


def _final_scores(
    output_dir: Path, data: datasets.DatasetDict, run: TranslatorSettings, tell: ProgressListener
) -> dict[str, TranslatorEvaluation]:
    """The finished model on the test split; where there is none, on the validation split."""
    for split in ("test", "validation"):
        if split in data and len(data[split]):
            evaluation = evaluate_translator(
                output_dir,
                data,
                split=split,
                sentences=run.test_sentences,
                max_tokens_per_batch=run.max_tokens_per_batch,
                bf16=run.bf16,
                progress=tell,
            )
            return {split: evaluation}
    return {}


def _report(
    output_dir: Path,
    data: datasets.DatasetDict,
    run: TranslatorSettings,
    trainer: TranslatorTrainer,
    evaluations: dict[str, TranslatorEvaluation],
    tell: ProgressListener,
) -> TrainingResult:
    scores = {split: evaluation.metrics for split, evaluation in evaluations.items()}
    training, parameters = training_facts(trainer), trainer.model.num_parameters()
    metrics: dict[str, Any] = {"training": training, "parameters": parameters, **scores}
    with whole_file(output_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    plot_learning_curve(trainer.state.log_history, output_dir / "learning_curve.png")
    write_translator_card(
        output_dir,
        source_language=run.source_language,
        target_language=run.target_language,
        model_name=output_dir.absolute().name,
        config=_shape(trainer.model),
        parameters=parameters,
        sentence_pairs={split: len(pairs) for split, pairs in data.items()},
        data_name=run.data_name,
        data_license=run.data_license,
        snippet=_of_usual_length(data["train"], 1)[0]["source"],
        examples=_examples(next(iter(evaluations.values()), None)),
        settings=_card_settings(run),
        scores=scores,
        training=training,
        license=run.license,
    )
    tell(ProgressEvent("done", 1, 1, "runs"))
    return TrainingResult(output_dir, metrics, trainer.state.log_history, next(iter(evaluations.values()), None))


def _of_usual_length(pairs: datasets.Dataset, number: int) -> list[dict[str, str]]:
    """The pairs with source sentences nearest to eighty characters, a line of text."""
    distance = [abs(len(source) - USUAL_LENGTH) for source in pairs["source"]]
    rows = sorted(range(len(pairs)), key=lambda row: (distance[row], row))[:number]
    return [pairs[row] for row in rows]


def _examples(evaluation: TranslatorEvaluation | None) -> list[dict[str, str]]:
    if evaluation is None:
        return []
    columns = {
        "source": evaluation.sources,
        "reference": evaluation.references,
        "translation": evaluation.translations,
    }
    return _of_usual_length(datasets.Dataset.from_dict(columns), EXAMPLES_SHOWN)


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    names = ("hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads", "intermediate_size")
    return {name: getattr(model.config, name) for name in (*names, "norm_position", "dropout", "label_smoothing")}


def _card_settings(run: TranslatorSettings) -> dict[str, Any]:
    elsewhere = {"source_language", "target_language", "model_config", "data_name", "data_license", "license"}
    return {name: value for name, value in asdict(run).items() if name not in elsewhere}
