"""All three models beside their peers on this machine, by one command.

    python benchmarks/bench.py                      # or: make bench; at most 15 minutes on 2 cores
    python benchmarks/bench.py --full               # more sizes, 1,000 sentences, more turns
    python benchmarks/bench.py --only vit --row "fp32, batch 1" --minutes 2
    python benchmarks/bench.py --quick              # tiny models, in a minute: to see whether it runs

Each side is a process of its own with the same number of threads; they take turns, one works at a time and the others
are stopped, and who begins a turn rotates (processes.py). All sides have the same weights (preparation.py), and their
outputs are compared before anything is timed. README.md says what each row and column means.

Writes results/bench.json and results/bench.png, after each row, so that an interrupted run leaves what it has.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import limits
import rows
import typer
from charts import draw_ratios
from processes import WARM_UP, Worker, check_installed, take_turns
from results import header, print_row, row_record, write_json
from rows import FAMILIES, PACKAGES, Row

from hf_attn.training.checkpoints import no_progress_bars

RESULTS = Path(__file__).parent / "results"
TURNS = {"quick": (2, 2), "default": (3, 15), "full": (5, 31)}
CALL_SECONDS = 0.4  # that a side works in a turn at least
Choice = Callable[[list[Row]], list[Row]]
SENTENCES = {"quick": 20, "default": 200, "full": 1000}


def wanted_rows(
    families: list[str], choose: Choice, files: Path, mode: str, sentences: str, threads: int
) -> dict[str, list[Row]]:
    """The rows of the families that `choose` keeps, and their weights prepared."""
    import preparation
    from sentences import sentences as read_sentences

    quick, full = mode == "quick", mode == "full"
    found: dict[str, list[Row]] = {}
    if "vit" in families:
        found["vit"] = choose(rows.vit_rows(full, shape_of("vit", quick)))
        preparation.prepare_vit(files, shape_of("vit", quick), graph_batches(found["vit"]))
    if "detr" in families:
        shape, picture = (rows.DETR_QUICK, rows.PICTURE_QUICK) if quick else (rows.DETR, rows.PICTURE)
        batches = graph_batches(choose(rows.detr_rows(full, 0)))
        found["detr"] = choose(rows.detr_rows(full, preparation.prepare_detr(files, shape, picture, batches)))
    if {"translator", "corpus"} & set(families):
        shape = rows.TRANSLATOR_QUICK if quick else rows.TRANSLATOR
        texts = read_sentences(sentences, quick)
        tokens = preparation.prepare_translators(files, shape, texts, SENTENCES[mode])
        if "translator" in families:
            found["translator"] = choose(rows.translator_rows(full, shape, threads))
        if "corpus" in families:
            found["corpus"] = choose(rows.corpus_rows(full, shape, SENTENCES[mode], tokens, threads))
    return {family: of_family for family, of_family in found.items() if of_family}


def graph_batches(of_family: list[Row]) -> list[int]:
    """Of the rows in which somebody needs a graph."""
    return sorted({row.batch for row in of_family if {"ONNX Runtime", "OpenVINO"} & set(row.sides)})


def shape_of(family: str, quick: bool) -> dict[str, Any]:
    """What a side is told of a row besides the row."""
    if family == "vit":
        return rows.VIT_QUICK if quick else rows.VIT
    if family == "detr":
        shape, picture = (rows.DETR_QUICK, rows.PICTURE_QUICK) if quick else (rows.DETR, rows.PICTURE)
        return {**shape, "picture": picture}
    return {}


@contextlib.contextmanager
def started(family: str, sides: list[str], threads: int) -> Iterator[tuple[dict[str, Worker], dict[str, int]]]:
    """A process for each side, and the bytes each takes after its imports."""
    workers: dict[str, Worker] = {}
    try:
        for side in sides:
            workers[side] = Worker(side, family, threads)
        yield workers, {side: worker.ready() for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()


def measure_row(
    row: Row, workers: dict[str, Worker], base: dict[str, int], files: Path, mode: str, row_seconds: float, known: Any
) -> dict[str, Any]:
    """Build, compare, take turns."""
    told = {**shape_of(row.family, mode == "quick"), **asdict(row)}
    present = {side: workers[side] for side in row.sides if side in workers}
    began = time.monotonic()
    for worker in present.values():
        worker.ask("build", row=told, files=str(files))
    outputs = {side: worker.ask("output") for side, worker in present.items()}
    left = row_seconds - (time.monotonic() - began)
    warm_up = 0 if row.family == "corpus" else WARM_UP  # all sentences were just translated, to be compared
    turns = take_turns(present, 0.0 if mode == "quick" else CALL_SECONDS, left, TURNS[mode], warm_up)
    memory = {side: worker.ask("memory")["peak"] - base[side] for side, worker in present.items()}
    return row_record(row, turns, memory, outputs, known)


def choice(sides: list[str] | None, names: list[str] | None) -> Choice:
    """Keeps rows that --row names, with the sides that --side names; rows without any of them are left out."""

    def choose(of_family: list[Row]) -> list[Row]:
        some = [
            replace(row, sides=tuple(side for side in row.sides if not sides or side in sides))
            for row in of_family
            if not names or any(name in row.name for name in names)
        ]
        return [row for row in some if row.sides]

    return choose


def run(
    families: list[str],
    sides: list[str] | None,
    names: list[str] | None,
    mode: str,
    minutes: float,
    threads: int,
    sentences: str,
    files: Path,
    output: Path,
) -> dict[str, Any]:
    """Everything that was asked for; returns and writes the record."""
    began = time.monotonic()
    record = header(mode=mode, threads=threads, minutes=minutes, sentences=sentences, call_seconds=CALL_SECONDS)
    print("measuring the machine", flush=True)
    record["limits"] = limits.in_own_process(threads, mode == "quick")
    for name, limit in record["limits"].items():
        unit = "GB/s" if name == "memory" else "GFLOP/s"
        print(f"{name:8}{limit['per_second'] / 1e9:>10,.0f} {unit} by {limit['by']}", flush=True)
    print("preparing weights", flush=True)
    with no_progress_bars():
        found = wanted_rows(families, choice(sides, names), files, mode, sentences, threads)
    if not found:
        raise ValueError(f"no row has {names or 'any name'} and sides {sides or 'at all'}; see --help")
    record["preparation_seconds"] = time.monotonic() - began
    record["rows"], record["base_memory"] = [], {}
    weights = {family: sum(row.weight for row in of_family) for family, of_family in found.items()}
    for family, of_family in found.items():
        wanted = [side for side in PACKAGES if any(side in row.sides for row in of_family)]
        with started(family, wanted, threads) as (workers, base):
            record["base_memory"][family] = base
            for row in of_family:
                left = 60 * minutes - (time.monotonic() - began)
                share = row.weight / sum(weights.values())
                measured = measure_row(row, workers, base, files, mode, left * share, record["limits"])
                weights[family] -= row.weight
                record["rows"].append(measured)
                print_row(measured)
                record["seconds"] = time.monotonic() - began
                write_json(output.with_suffix(".json"), record)
                draw_ratios(record["rows"], chart_title(record), output.with_suffix(".png"))
    print(f"\n{record['seconds'] / 60:.1f} minutes; written to {output.with_suffix('.json')} and .png")
    return record


def chart_title(record: dict[str, Any]) -> str:
    peaks = [f"{record['limits'][dtype]['per_second'] / 1e9:,.0f} GFLOP/s {dtype}" for dtype in ("fp32", "bf16")]
    return f"{record['machine']['cpu']}, {record['settings']['threads']} threads, {', '.join(peaks)}"


def check(families: list[str], sides: list[str] | None) -> None:
    """Refuse what is unknown or not installed, before anything is made."""
    for given, known in ((families, FAMILIES), (sides or [], tuple(PACKAGES))):
        for name in given:
            if name not in known:
                raise ValueError(f"{name!r} is none of {', '.join(known)}")
    used = {
        "vit": ("timm", "transformers", "ONNX Runtime", "OpenVINO"),
        "detr": ("transformers", "ONNX Runtime", "OpenVINO"),
    }
    needed = {side for family in families for side in used.get(family, ("transformers", "CTranslate2"))}
    check_installed({side: PACKAGES[side] for side in PACKAGES if side in needed and (not sides or side in sides)})


def main(
    only: Annotated[str, typer.Option(help=f"of {', '.join(FAMILIES)}, comma-separated")] = ",".join(FAMILIES),
    side: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(PACKAGES)}; as often as wanted")] = None,
    row: Annotated[list[str] | None, typer.Option(help="rows with this in their name; as often as wanted")] = None,
    full: Annotated[bool, typer.Option("--full", help="all sizes, hours")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="tiny models, to see whether it runs")] = False,
    minutes: Annotated[float | None, typer.Option(help="how long all of it may take; 14, or 90 with --full")] = None,
    threads: Annotated[int, typer.Option(help="threads of each side", min=1)] = os.cpu_count() or 1,
    sentences: Annotated[str, typer.Option(help="real (downloaded once), made-up, or a text file")] = "real",
    files: Annotated[Path | None, typer.Option(help="keep the weights here, to begin sooner the next time")] = None,
    output: Annotated[Path, typer.Option(help="what to write, with .json and .png added")] = RESULTS / "bench",
) -> None:
    mode = "quick" if quick else "full" if full else "default"
    families = [name for name in only.split(",") if name]
    allowed = minutes or (90 if full else 14)
    with contextlib.ExitStack() as stack:
        if files is None:
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files.mkdir(parents=True, exist_ok=True)
        try:
            check(families, side)
            run(families, side, row, mode, allowed, threads, sentences, files, output)
        except (ValueError, RuntimeError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
