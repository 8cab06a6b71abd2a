"""`hf-attn train translator`, `hf-attn evaluate translator` and `hf-attn translate`."""

import os
import sys
from collections.abc import Iterator
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from hf_attn.commands_shared import (
    BF16,
    Accumulate,
    AsJson,
    AverageLast,
    DataLicense,
    Debug,
    Device,
    EarlyStopping,
    Epochs,
    EvaluateEvery,
    Format,
    LearningRate,
    License,
    Minutes,
    MovingAverage,
    Output,
    Quiet,
    Resume,
    Seed,
    Split,
    Steps,
    WarmupSteps,
    WhichPrecision,
    check_fields,
    check_file,
    check_stop,
    fields_and_values,
    given,
    option,
    prepare,
    prepare_transformers,
    read_config,
    readable_weights,
)
from hf_attn.console import (
    Progress,
    TrainingProgress,
    TranslationProgress,
    errors_in_one_line,
    in_one_line,
    json_line,
    lines_of,
    number_of_texts,
    plain_lines,
    score_lines,
    text_output,
    training_line,
)

if TYPE_CHECKING:
    import datasets

    from hf_attn.pipeline_translation import TranslationPipeline

train, evaluate, use = typer.Typer(), typer.Typer(), typer.Typer()

Size = Literal["tiny", "small", "base"]
Translations = Iterator[list[dict[str, Any]]]  # of each text, best first

# Options that several commands have
Data = Annotated[str, typer.Argument(help="Sentence pairs; see below.")]
Source = Annotated[str, option("Language to translate from, as the data name it.", "--source", "-s")]
Target = Annotated[str, option("Language to translate to.", "--target", "-t")]
Model = Annotated[str, option("Directory, or name on the Hub, of a translator.", "--model", "-m")]
Beams = Annotated[int | None, option("Beams of the search; 1 is greedy.", panel="Search", min=1)]
LengthPenalty = Annotated[float | None, option("α of GNMT's length penalty.", panel="Search")]
BatchTokens = Annotated[int, option("Tokens in a batch, padding included; lower it when memory runs out.", min=1)]
MaxBadShare = Annotated[float, option("Share of bad lines above which the data are refused.", panel="Data", max=1)]

DATA_FORMATS = """
**Sentence pairs** are one of

- a `.tsv` file: source, tab, target; a first line such as `de<tab>en` may name the columns
- a `.jsonl` file: `{"de": "...", "en": "..."}` on each line
- the beginning of the names of two parallel files: `corpus` for `corpus.de` and `corpus.en`
- a directory with train, validation and test in one of these formats
- a data set of the Hub, or one saved by the library `datasets`

Validation and test pairs that are missing are cut from the training pairs, the same ones each time.
"""


# --- train -----------------------------------------------------------------------------------------------------------


@train.command(
    "translator",
    epilog=f"""
{DATA_FORMATS}

**Examples**

- `hf-attn train translator pairs.tsv --source de --target en --output runs/de-en --minutes 10 --size tiny`
- `hf-attn train translator data/ -s de -t en -o runs/de-en --steps 20000 --early-stopping 5`
- the same again with `--resume`, after Ctrl-C or a power cut, or with more `--steps`
""",
)
def train_translator_command(
    *,
    data: Data,
    source: Source,
    target: Target,
    output: Output,
    resume: Resume = False,
    steps: Steps = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    early_stopping: EarlyStopping = None,
    size: Annotated[Size, option("Shape of the model; base is that of the paper.", panel="Model")] = "small",
    config: Annotated[
        list[str] | None, option("A field of AttnTranslatorConfig: encoder_layers=12, ...", "--config", panel="Model")
    ] = None,
    vocab_size: Annotated[int | None, option("Tokens, for both languages together.", panel="Model", min=260)] = None,
    learning_rate: LearningRate = None,
    warmup_steps: WarmupSteps = None,
    batch_tokens: BatchTokens = 4096,
    accumulate: Accumulate = 1,
    max_length: Annotated[int, option("Longer pairs, in tokens, are left out.", panel="Training", min=2)] = 256,
    average_last: AverageLast = 5,
    ema: MovingAverage = None,
    precision: WhichPrecision = "auto",
    evaluate_every: EvaluateEvery = 500,
    max_bad_share: MaxBadShare = 0.1,
    license: License = None,
    data_license: DataLicense = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a translator from nothing but sentence pairs.

    The output directory then holds a model for `hf-attn translate` and `pipeline("translation")`, with its model card,
    learning curve and scores on held-out pairs, which are also printed.
    """
    check_stop(steps, epochs, minutes)
    shape = fields_and_values(config)
    interrupted = f"interrupted; what is done is saved in {output}: go on with the same command and --resume"
    with errors_in_one_line(debug, interrupted), Progress(quiet) as progress:
        from hf_attn.configuration_translator import AttnTranslatorConfig
        from hf_attn.training.translator import train_translator

        check_fields(shape, AttnTranslatorConfig, {"vocab_size"})
        result = train_translator(
            load_data(data, source, target, max_bad_share, seed),
            output,
            source_language=source,
            target_language=target,
            resume=resume,
            progress=TrainingProgress(progress),
            model_size=size,
            model_config=shape,
            vocab_size=vocab_size,
            max_length=max_length,
            max_tokens_per_batch=batch_tokens,
            gradient_accumulation_steps=accumulate,
            max_steps=steps,
            num_train_epochs=epochs,
            max_minutes=minutes,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            eval_steps=evaluate_every,
            average_last=average_last,
            ema_decay=ema,
            early_stopping_patience=early_stopping,
            bf16=BF16[precision],
            seed=seed,
            data_name=Path(data).name,
            data_license=data_license,
            license=license,
        )
    with errors_in_one_line(debug), text_output(None) as stream:
        stream.write(training_line(output, result.metrics["training"]))
        for split in ("test", "validation"):
            if split in result.metrics:
                stream.writelines(score_lines(split, result.metrics[split]))


def load_data(data: str, source: str, target: str, max_bad_share: float, seed: int) -> "datasets.DatasetDict":
    """The sentence pairs in splits; says on stderr how many there are, and what was dropped or cut."""
    prepare_transformers()
    from hf_attn.training.data import load_pairs

    splits, report = load_pairs(data, source, target, max_bad_share=max_bad_share, seed=seed)
    print(report, file=sys.stderr)
    return splits


# --- evaluate --------------------------------------------------------------------------------------------------------


@evaluate.command(
    "translator",
    epilog=f"""
{DATA_FORMATS}

**Examples**

- `hf-attn evaluate translator data/ --source de --target en --model runs/de-en`
- `hf-attn evaluate translator news.tsv -s de -t en -m runs/de-en --split all --beams 8 --json`
""",
)
def evaluate_translator_command(
    *,
    data: Data,
    source: Source,
    target: Target,
    model: Model,
    split: Annotated[Split, option("Pairs to translate: all of a file that is held out.", panel="Data")] = "test",
    sentences: Annotated[int | None, option("So many, spread over the split.", panel="Data", min=1)] = None,
    output: Annotated[Path | None, option("File for the translations, one a line.", "--output", "-o")] = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = 4096,
    max_bad_share: MaxBadShare = 0.1,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Translate held-out sentences and measure BLEU, chrF and the loss.

    The signatures of sacrebleu are printed with the scores. What the search options leave open is as the model was
    saved.
    """
    search = given(num_beams=beams, gnmt_alpha=length_penalty)
    shown = Progress(quiet)
    with errors_in_one_line(debug), text_output(output or Path(os.devnull)) as stream, shown as progress:
        splits = load_data(data, source, target, max_bad_share, seed)
        check_translator(model)
        from datasets import DatasetDict, concatenate_datasets

        from hf_attn.training.translator import evaluate_translator

        with readable_weights(model):
            evaluation = evaluate_translator(
                model,
                DatasetDict(splits, all=concatenate_datasets(list(splits.values()))),
                split=split,
                sentences=sentences,
                max_tokens_per_batch=batch_tokens,
                progress=TrainingProgress(progress),
                **search,
            )
        stream.writelines(f"{in_one_line(text)}\n" for text in evaluation.translations)
    with errors_in_one_line(debug), text_output(None) as stream:
        metrics = evaluation.metrics
        stream.writelines([json_line(metrics)] if as_json else score_lines(split, metrics))


# --- translate -------------------------------------------------------------------------------------------------------


@use.command(
    epilog="""
**Examples**

- `hf-attn translate "Ein Satz." --model runs/de-en`
- `hf-attn translate --model runs/de-en < german.txt > english.txt`
- `hf-attn translate --model runs/de-en --input german.txt --output english.txt --beams 8`
- `hf-attn translate "Ein Satz." --model runs/de-en --n-best 3 --alignments`
- `hf-attn translate --model runs/de-en --input german.txt --json | jq .translations[0].score`
"""
)
def translate(
    *,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to translate; without any, the lines of --input or stdin.")
    ] = None,
    model: Model,
    file: Annotated[
        Path | None, option("UTF-8 file with one text a line.", "--input", "-i", exists=True, dir_okay=False)
    ] = None,
    output: Annotated[Path | None, option("File to write, instead of stdout.", "--output", "-o")] = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    max_new_tokens: Annotated[int | None, option("Longest translation of a sentence.", panel="Search", min=1)] = None,
    n_best: Annotated[int, option("Translations of each text, best first.", panel="Output", min=1)] = 1,
    scores: Annotated[bool, option("Add the score of each translation.", "--scores", panel="Output")] = False,
    alignments: Annotated[bool, option("Add word alignments: 0-0 1-2 ...", "--alignments", panel="Output")] = False,
    as_json: Annotated[bool, option("Write one JSON object a text.", "--json", panel="Output")] = False,
    batch_tokens: BatchTokens = 4096,
    precision: Format = "fp32",
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Translate texts, the lines of a file, or the lines of stdin: one line out for each line in.

    What the search options leave open is as the model was saved. More than the translation itself is written as in
    Moses, `number ||| translation ||| score ||| alignment`: the number of the text with `--n-best`, the score with
    `--n-best` or `--scores`, the alignment with `--alignments`.
    """
    if texts and file:
        raise typer.BadParameter("give either texts or --input, not both")
    if n_best > 1 and beams is not None and beams < n_best:
        raise typer.BadParameter(f"--n-best {n_best} needs at least as many --beams, not {beams}")
    options = given(
        num_beams=beams,
        gnmt_alpha=length_penalty,
        max_new_tokens=max_new_tokens,
        n_best=n_best if n_best > 1 else None,
        return_scores=scores or None,
        return_alignments=alignments or None,
        max_tokens_per_batch=batch_tokens,
    )
    interactive = not texts and file is None and sys.stdin.isatty()
    shown = Progress(quiet or (output is None and sys.stdout.isatty()))
    with errors_in_one_line(debug), text_output(output) as stream, shown as progress:
        translator = load_translator(model, device, precision)
        done = TranslationProgress(progress, translator.tokenizer, number_of_texts(texts, file))
        sources, copies = tee(iter(texts) if texts else lines_of(file))
        look_ahead = 1 if interactive else 512
        translations = cast(Translations, translator(sources, look_ahead=look_ahead, progress=False, **options))
        for number, (source, records) in enumerate(zip(copies, translations, strict=True)):
            if as_json:
                stream.write(json_line({"source": source, "translations": records}))
            else:
                stream.writelines(plain_lines(number, records))
            done.add(records)
            if interactive:
                stream.flush()


def load_translator(model: str, device: str | None, precision: str = "fp32") -> "TranslationPipeline":
    """The translation pipeline of a model directory or a name on the Hub, prepared for inference.

    Raises:
        ValueError: if there is no such model, it is no translator, it has no such number format, or a part of it is
            missing or damaged.
    """
    prepare_transformers()
    from transformers import pipeline

    check_translator(model)
    with readable_weights(model):
        translator = pipeline("translation", model=model, device=device)
    prepare(translator.model, precision)
    return translator


def check_translator(model: str) -> None:
    """Refuse what cannot be a translator before its weights are read."""
    config = read_config(model, trained_by="hf-attn train translator")
    if not config.is_encoder_decoder:
        raise ValueError(f"{model} is a model of type {config.model_type}, which does not translate")
    check_file(model, ("tokenizer.json", "tokenizer_config.json", "source.spm"), "tokenizer")
