"""The command line, installed as `hf-attn`: train, evaluate and use models.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the work failed, 2 the command was wrong.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import get_annotations
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from hf_attn import __version__
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
)
from hf_attn.environment import check_torchvision

if TYPE_CHECKING:
    import datasets

    from hf_attn.pipeline_translation import TranslationPipeline

app = typer.Typer(
    name="hf-attn",
    help="Train, evaluate and use attention models as citizens of the Hugging Face libraries.",
    epilog="`hf-attn COMMAND --help` explains a command, with examples.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(help="Train a model: a translator.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure a model on held-out data: a translator.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")


def option(help: str, *names: str, panel: str = "Options", **checks: Any) -> Any:
    """An option of a command, under the heading `panel` of its --help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **checks)


Size = Literal["tiny", "small", "base"]
Precision = Literal["auto", "bf16", "fp32"]
Split = Literal["test", "validation", "train", "all"]

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
Seed = Annotated[int, option("Of everything random, the cutting of held-out pairs too.")]
Quiet = Annotated[bool, option("Show no progress.", "--quiet", "-q")]
Debug = Annotated[bool, option("Show where an error came from.", "--debug")]

DATA_FORMATS = """
**Sentence pairs** are one of

- a `.tsv` file: source, tab, target; a first line such as `de<tab>en` may name the columns
- a `.jsonl` file: `{"de": "...", "en": "..."}` on each line
- the beginning of the names of two parallel files: `corpus` for `corpus.de` and `corpus.en`
- a directory with train, validation and test in one of these formats
- a data set of the Hub, or one saved by the library `datasets`

Validation and test pairs that are missing are cut from the training pairs, the same ones each time.
"""


def main() -> None:
    """Run the command line; ends the process."""
    app(prog_name="hf-attn")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, option("Show the version.", "--version")] = False) -> None:
    if version:
        print(f"hf-attn {__version__}")
        raise typer.Exit


# --- train -----------------------------------------------------------------------------------------------------------


@train_app.command(
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
    output: Annotated[Path, option("Directory for the model and its checkpoints.", "--output", "-o")],
    resume: Annotated[bool, option("Go on from what is in --output.", "--resume")] = False,
    steps: Annotated[int | None, option("Stop after so many optimizer steps.", panel="When to stop", min=1)] = None,
    epochs: Annotated[float | None, option("Stop after so many passes over the data.", panel="When to stop")] = None,
    minutes: Annotated[float | None, option("Stop after so many minutes.", panel="When to stop")] = None,
    early_stopping: Annotated[
        int | None, option("Stop after so many validations without progress.", panel="When to stop", min=1)
    ] = None,
    size: Annotated[Size, option("Shape of the model; base is that of the paper.", panel="Model")] = "small",
    config: Annotated[
        list[str] | None, option("A field of AttnTranslatorConfig: encoder_layers=12, ...", "--config", panel="Model")
    ] = None,
    vocab_size: Annotated[int | None, option("Tokens, for both languages together.", panel="Model", min=260)] = None,
    learning_rate: Annotated[float | None, option("The highest, at the end of the warm-up.", panel="Training")] = None,
    warmup_steps: Annotated[int | None, option("Steps of the warm-up.", panel="Training", min=1)] = None,
    batch_tokens: BatchTokens = 4096,
    accumulate: Annotated[int, option("Batches to an optimizer step.", panel="Training", min=1)] = 1,
    max_length: Annotated[int, option("Longer pairs, in tokens, are left out.", panel="Training", min=2)] = 256,
    average_last: Annotated[int, option("Checkpoints to average at the end.", panel="Training", min=1)] = 5,
    ema: Annotated[float | None, option("Decay of a moving average of the weights.", panel="Training")] = None,
    precision: Annotated[Precision, option("auto: bf16 where it is faster.", panel="Training")] = "auto",
    evaluate_every: Annotated[
        int, option("Steps between validations and checkpoints.", panel="Training", min=1)
    ] = 500,
    max_bad_share: MaxBadShare = 0.1,
    license: Annotated[str | None, option("Licence of the model, for its card: apache-2.0, ...")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a translator from nothing but sentence pairs.

    The output directory then holds a model for `hf-attn translate` and `pipeline("translation")`, with its model card,
    learning curve and scores on held-out pairs, which are also printed.
    """
    if not (steps or epochs or minutes):
        raise typer.BadParameter("say when to stop: --steps, --epochs or --minutes")
    shape = dict(field_and_value(assignment) for assignment in config or [])
    interrupted = f"interrupted; what is done is saved in {output}: go on with the same command and --resume"
    with errors_in_one_line(debug, interrupted), Progress(quiet) as progress:
        from hf_attn.training.translator import train_translator

        check_fields(shape)
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
            bf16={"auto": "auto", "bf16": True, "fp32": False}[precision],
            seed=seed,
            data_name=Path(data).name,
            license=license,
        )
    facts = result.metrics["training"]
    with errors_in_one_line(debug), text_output(None) as stream:
        stream.write(f"{output}: {facts['steps']:,} steps in {facts['minutes']:.1f} minutes, {facts['stopped']}\n")
        for split in ("test", "validation"):
            if split in result.metrics:
                stream.writelines(score_lines(split, result.metrics[split]))


def field_and_value(assignment: str) -> tuple[str, Any]:
    """`encoder_layers=12` → ("encoder_layers", 12); a value that is not JSON is text."""
    name, equals, value = assignment.partition("=")
    if not equals:
        raise typer.BadParameter(f"--config {assignment} has no '='; write it as encoder_layers=12")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def check_fields(shape: dict[str, Any]) -> None:
    """Refuse names that a configuration would keep but never read."""
    from hf_attn.configuration_translator import AttnTranslatorConfig

    known = get_annotations(AttnTranslatorConfig).keys() - {"vocab_size"}  # which follows from the vocabulary
    for name in shape:
        if name not in known:
            raise ValueError(f"--config cannot set {name}, but {', '.join(sorted(known))}")


def load_data(data: str, source: str, target: str, max_bad_share: float, seed: int) -> "datasets.DatasetDict":
    """The sentence pairs in splits; says on stderr how many there are, and what was dropped or cut."""
    prepare_transformers()
    from hf_attn.training.data import load_pairs

    splits, report = load_pairs(data, source, target, max_bad_share=max_bad_share, seed=seed)
    print(report, file=sys.stderr)
    return splits


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


# --- evaluate --------------------------------------------------------------------------------------------------------


@evaluate_app.command(
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
    as_json: Annotated[bool, option("Write the scores as JSON.", "--json")] = False,
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
        stream.writelines(
            [json.dumps(evaluation.metrics) + "\n"] if as_json else score_lines(split, evaluation.metrics)
        )


# --- translate -------------------------------------------------------------------------------------------------------


@app.command(
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
    device: Annotated[
        str | None, option("cpu, cuda, cuda:1, mps, ...", show_default="an accelerator if there is one")
    ] = None,
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
        translator = load_translator(model, device)
        done = TranslationProgress(progress, translator.tokenizer, number_of_texts(texts, file))
        sources, copies = tee(iter(texts) if texts else lines_of(file))
        look_ahead = 1 if interactive else 512
        translations = cast(Translations, translator(sources, look_ahead=look_ahead, progress=False, **options))
        for number, (source, records) in enumerate(zip(copies, translations, strict=True)):
            stream.writelines(json_line(source, records) if as_json else plain_lines(number, records))
            done.add(records)
            if interactive:
                stream.flush()


def load_translator(model: str, device: str | None) -> "TranslationPipeline":
    """The translation pipeline of a model directory or a name on the Hub.

    Raises:
        ValueError: if there is no such model, it is no translator, or a part of it is missing or damaged.
    """
    prepare_transformers()
    from transformers import pipeline

    check_translator(model)
    with readable_weights(model):
        return pipeline("translation", model=model, device=device)


# --- what the commands share -----------------------------------------------------------------------------------------


def prepare_transformers() -> None:
    """What `import hf_attn` does elsewhere, and no progress bars but ours."""
    check_torchvision()
    import datasets
    import transformers

    from hf_attn.registration import register_all

    register_all()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def check_translator(model: str) -> None:
    """Refuse what cannot be a translator before its weights are read."""
    from transformers import AutoConfig

    path = Path(model)
    if path.is_file():
        raise ValueError(f"{model} is a file; give the directory of a model")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{model} holds no model (no config.json); give what `hf-attn train translator` wrote")
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            raise ValueError(f"{model} has no tokenizer (no tokenizer.json); copy it from where the model was trained")
    try:
        config = AutoConfig.from_pretrained(model)
    except OSError as error:
        if path.is_dir():
            raise
        raise ValueError(f"{model}: no such directory, and no such model that the Hub would give") from error
    if not config.is_encoder_decoder:
        raise ValueError(f"{model} is a model of type {config.model_type}, which does not translate")


@contextmanager
def readable_weights(model: str) -> Iterator[None]:
    """Say which model it is whose weights are damaged."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{model}: the weights cannot be read ({error}); copy them again, or train again") from error


if __name__ == "__main__":
    main()
