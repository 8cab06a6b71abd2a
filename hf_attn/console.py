"""What the command line reads and prints: lines in, results to stdout or a file, progress and errors to stderr."""

import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_attn.training.callbacks import ProgressEvent

REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EACCES: "change its permissions or name another",
    errno.EPERM: "change its permissions or name another",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "a part of this path is a file; name another",
    errno.EISDIR: "name a file",
    errno.ENOENT: "check the path",
}

PICTURE_FIGURES = {
    "accuracy": "accuracy {:.1%}",
    "top_5_accuracy": "top-5 accuracy {:.1%}",
    "mean_average_precision": "mean average precision {:.1%}",
    "loss": "loss {:.3f} nats",
    "pictures": "{:,} pictures",
}
WEAKEST_SHOWN = 3

# --- Errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def errors_in_one_line(debug: bool, interrupted: str = "interrupted") -> Iterator[None]:
    """End the program with exit code 1 and one line on stderr when anything inside fails; with `debug`, the traceback.

    `interrupted` is what to say after Ctrl-C.
    """
    try:
        yield
    except (typer.Exit, typer.TyperException):
        raise
    except KeyboardInterrupt:
        fail(interrupted)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        discard_output()
        sys.exit(1)
    except Exception as error:  # the border between the program and its user: nothing may pass it as a traceback
        if debug:
            raise
        fail(complaint(error))


def fail(message: str) -> NoReturn:
    print(f"hf-attn: {message}", file=sys.stderr)
    sys.exit(1)


def discard_output() -> None:
    """Write to nowhere what stdout still holds: Python would try again, and complain, on leaving."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complaint(error: Exception) -> str:
    """What went wrong and what to do about it, in one line."""
    if isinstance(error, OSError) and error.errno is not None:
        what = error.strerror or "input or output failed"
        where = f"{error.filename}: " if error.filename is not None else ""
        remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
        return f"{where}{what[0].lower()}{what[1:]}{remedy}"
    message = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device has too little memory; make the batches smaller ({message})"
    of_a_field = type(error).__name__ == "StrictDataclassFieldValidationError"  # a value of another type
    if of_a_field or isinstance(error, (ValueError, OSError, ImportError)):
        return message
    return f"{type(error).__name__}: {message}; run again with --debug to see where"


# --- Input and output ------------------------------------------------------------------------------------------------


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a UTF-8 stream without their ends; only `\\n` and `\\r\\n` end a line.

    Raises:
        ValueError: for bytes that are not UTF-8, with the number of the line.
    """
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}:{number}: byte 0x{line[error.start]:02x} is not UTF-8; convert the text first, from Latin-1 "
                f"for example with `iconv -f ISO-8859-1 -t UTF-8`"
            ) from error
        yield text.removesuffix("\n").removesuffix("\r")


def lines_of(file: Path | None) -> Iterator[str]:
    """The lines of a file, or of stdin."""
    if file is None:
        yield from read_lines(sys.stdin.buffer, "stdin")
    else:
        with file.open("rb") as stream:
            yield from read_lines(stream, str(file))


def number_of_texts(texts: list[str] | None, file: Path | None) -> int | None:
    """How many texts there are to translate, where that is known beforehand."""
    if texts:
        return len(texts)
    if file is None or not file.is_file():
        return None
    with file.open("rb") as stream:
        return sum(1 for _ in stream)


@contextmanager
def text_output(path: Path | None) -> Iterator[TextIO]:
    """A UTF-8 stream to write results to: stdout, or a file that takes its name only when all of it is written."""
    if path is None:
        with standard_output() as stream:
            yield stream
    elif path.exists() and not path.is_file():  # a device or a pipe, which no file can replace
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
    else:
        with whole_file(path.resolve()) as stream:
            yield stream


@contextmanager
def standard_output() -> Iterator[TextIO]:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    try:
        yield sys.stdout
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()
            raise


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A stream to a temporary file beside `path` that replaces `path` at the end; not after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:
            yield stream
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) == str(temporary):
            error.filename = str(path)  # the name that the user gave
        raise


def training_line(output: Path, facts: dict[str, Any]) -> str:
    """How long a training was, and why it ended."""
    return f"{output}: {facts['steps']:,} steps in {facts['minutes']:.1f} minutes, {facts['stopped']}\n"


def score_lines(split: str, metrics: dict[str, Any]) -> Iterator[str]:
    """The scores of a split, and the signatures that say how they were computed."""
    yield (
        f"{split}: BLEU {metrics['bleu']:.1f}, chrF {metrics['chrf']:.1f}, loss {metrics['loss']:.3f} nats a token, "
        f"{metrics['sentences']:,} sentences\n"
    )
    yield f"BLEU is {metrics['bleu_signature']}\n"
    yield f"chrF is {metrics['chrf_signature']}\n"


def picture_score_lines(split: str, metrics: dict[str, Any]) -> Iterator[str]:
    """The scores of a picture classifier on a split, and the classes that it knows least well."""
    figures = [form.format(metrics[name]) for name, form in PICTURE_FIGURES.items() if metrics.get(name) is not None]
    yield f"{split}: {', '.join(figures)}\n"
    by_class = metrics.get("class_accuracy") or metrics["class_average_precision"]
    imperfect = {name: value for name, value in by_class.items() if value is not None and value < 1}
    weakest = sorted(imperfect, key=imperfect.__getitem__)[:WEAKEST_SHOWN]
    if weakest:
        yield f"weakest classes: {', '.join(f'{name} {imperfect[name]:.1%}' for name in weakest)}\n"


def json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def in_one_line(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text)


def tab_separated(*fields: str) -> str:
    """One line of a TSV file."""
    return "\t".join(re.sub(r"[\r\n\t]+", " ", field) for field in fields) + "\n"


def plain_lines(number: int, records: list[dict[str, Any]]) -> Iterator[str]:
    """One line a translation, in the format of Moses where there is more to tell than the translation."""
    for record in records:
        fields = [str(number)] if len(records) > 1 else []
        fields.append(in_one_line(record["translation_text"]))
        fields += [f"{record['score']:.4f}"] if "score" in record else []
        fields += [record["alignment"]] if "alignment" in record else []
        yield " ||| ".join(fields) + "\n"


# --- Progress --------------------------------------------------------------------------------------------------------


class Progress:
    """How far long work is: a bar with throughput on a terminal, a line every ten seconds elsewhere. Always on stderr.

    Args:
        quiet: show nothing.
        console: where to show it; by default stderr.
        clock: seconds that go on.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(
        self, quiet: bool = False, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.console = console or Console(stderr=True, quiet=quiet)
        self.clock = clock
        self.stage = ""
        self.last_line = clock()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, stage: str, done: float, total: float | None, figures: str) -> None:
        """Say that `done` of `total` of a stage is done; `figures` are words for the same and for the throughput."""
        if self.console.is_terminal:
            self._show_bar(stage, done, total, figures)
        elif self.clock() - self.last_line >= self.SECONDS_BETWEEN_LINES:
            self.last_line = self.clock()
            self.console.print(f"{stage}: {figures}", highlight=False, markup=False, soft_wrap=True)

    def _show_bar(self, stage: str, done: float, total: float | None, figures: str) -> None:
        if stage != self.stage:
            self.stage = stage
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.bar.add_task(stage, total=total, figures=figures)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total, figures=figures)


class TranslationProgress:
    """Counts translations and shows how many there are a second.

    Args:
        progress: where to show them.
        tokenizer: of the model, to count tokens with.
        total: texts to be translated, where that is known.
    """

    def __init__(self, progress: Progress, tokenizer: "PreTrainedTokenizerBase", total: int | None):
        self.progress = progress
        self.tokenizer = tokenizer
        self.total = total
        self.started = progress.clock()
        self.texts = self.tokens = 0

    def add(self, records: list[dict[str, Any]]) -> None:
        """Count the translations of one text."""
        self.texts += 1
        self.tokens += len(self.tokenizer(text_target=records[0]["translation_text"])["input_ids"])
        seconds = self.progress.clock() - self.started or 1e-9
        figures = (
            f"{self.texts:,}" if self.total is None else f"{self.texts:,} of {self.total:,}",
            f"{self.texts / seconds:,.1f} texts/s",
            f"{self.tokens / seconds:,.0f} target tokens/s",
        )
        self.progress.show("translating", self.texts, self.total, ", ".join(figures))


class CountProgress:
    """Shows how many of some things are done, and how many there are a second.

    Args:
        progress: where to show it.
        stage: what is done to them: "classifying".
        unit: what they are, in the plural: "pictures".
        total: of them.
    """

    def __init__(self, progress: Progress, stage: str, unit: str, total: int):
        self.progress = progress
        self.stage = stage
        self.unit = unit
        self.total = total
        self.started = progress.clock()
        self.done = 0

    def add(self, number: int) -> None:
        """Count `number` more."""
        self.done += number
        seconds = self.progress.clock() - self.started or 1e-9
        figures = f"{self.done:,} of {self.total:,}, {self.done / seconds:,.1f} {self.unit}/s"
        self.progress.show(self.stage, self.done, self.total, figures)


class TrainingProgress:
    """Shows the events that training and evaluation tell of."""

    STAGES: ClassVar = {
        "tokenizer": "vocabulary",
        "encode": "encoding",
        "train": "training",
        "validate": "validating",
        "test": "testing",
    }
    FIGURES: ClassVar = {
        "loss": "loss {:.3f}",
        "eval_loss": "validation loss {:.3f}",
        "eval_bleu": "BLEU {:.1f}",
        "eval_chrf": "chrF {:.1f}",
        "eval_accuracy": "accuracy {:.1%}",
        "eval_mean_average_precision": "mean average precision {:.1%}",
        "eval_ap": "AP {:.1%}",
        "eval_ap50": "AP50 {:.1%}",
        "target_tokens_per_second": "{:,.0f} target tokens/s",
        "pictures_per_second": "{:,.0f} pictures/s",
    }

    def __init__(self, progress: Progress):
        self.progress = progress
        self.stage = ""
        self.started = 0.0

    def __call__(self, event: "ProgressEvent") -> None:
        if event.stage not in self.STAGES:
            return
        if event.stage != self.stage:
            self.stage, self.started = event.stage, self.progress.clock()
        self.progress.show(self.STAGES[event.stage], event.done, event.total, ", ".join(self._figures(event)))

    def _figures(self, event: "ProgressEvent") -> Iterator[str]:
        decimals = 1 if event.unit == "minutes" else 0
        of_total = "" if event.total is None else f" of {event.total:,.{decimals}f}"
        yield f"{event.done:,.{decimals}f}{of_total} {event.unit}"
        yield from (form.format(event.values[name]) for name, form in self.FIGURES.items() if name in event.values)
        seconds = self.progress.clock() - self.started
        if event.unit in ("sentences", "pictures") and event.done and seconds > 0:
            yield f"{event.done / seconds:,.1f} {event.unit}/s"
