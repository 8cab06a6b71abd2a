"""All three models beside their peers on a GPU: bfloat16, sdpa, compiled or not.

    python benchmarks/gpu.py                        # some 15 minutes, most of them torch.compile's
    python benchmarks/gpu.py --only translator --no-compile
    python benchmarks/gpu.py --quick --device cpu   # tiny models anywhere, compiled without inductor

The sides share one process, for there is one device; they take turns, and who begins a turn rotates. All have the same
weights (preparation.py), and outputs are compared before anything is timed. torch picks its flash kernel for sdpa by
itself. `compiled` is torch.compile with mode "max-autotune-no-cudagraphs" for models of pictures, and for translators
`generate` with a static cache, whose steps transformers compiles into CUDA graphs.

`peak` is the share of the fastest matrix product that was measured, `bandw.` that of the measured bandwidth which
reading the weights takes, each step all of the decoder's: 100 % would be the floor of what a step can take.

Writes results/gpu.json and results/gpu.png.
"""

import contextlib
import gc
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import limits
import preparation
import rows
import sides_detr
import sides_translator
import sides_vit
import torch
import typer
from charts import draw_ratios
from results import header, print_row, row_record, write_json
from rows import OURS, Row, Translator
from sentences import made_up_sentences
from sides_pictures import random_pictures
from torch import nn
from turns import DTYPES, take_turns

from hf_attn.training.checkpoints import no_progress_bars

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("vit", "detr", "translator")
COMPILED = ", compiled"
Task = tuple[Callable[[], object], Callable[[], dict[str, Any]]]  # what is timed; what is compared


# --- pictures ------------------------------------------------------------------------------------------------------


def compiled(model: nn.Module, quick: bool) -> Callable[..., Any]:
    return (
        torch.compile(model, backend="aot_eager") if quick else torch.compile(model, mode="max-autotune-no-cudagraphs")
    )


def infer(model: nn.Module, pictures: torch.Tensor, names: list[str], side: str, quick: bool) -> Task:
    forward = compiled(model, quick) if side.endswith(COMPILED) else model

    def call() -> Any:
        with torch.inference_mode():
            return forward(pictures)

    def output() -> dict[str, Any]:
        read = call()
        values = {name: read if isinstance(read, torch.Tensor) else read[name] for name in names}
        return {"numbers": {name: value.float().cpu().flatten().tolist() for name, value in values.items()}}

    return call, output


def vit_task(side: str, row: Row, files: Path, device: str, quick: bool) -> Task:
    size = (rows.VIT_QUICK if quick else rows.VIT)["image_size"]
    model = sides_vit.MODELS[side.removesuffix(COMPILED)](files).eval().to(device, DTYPES[row.dtype])
    pictures = random_pictures(row.batch, size, size).to(device, DTYPES[row.dtype])
    return infer(model, pictures, ["logits"], side, quick)


def detr_task(side: str, row: Row, files: Path, device: str, quick: bool) -> Task:
    height, width = rows.PICTURE_QUICK if quick else rows.PICTURE
    load = sides_detr.hf_attn_model if side.startswith(OURS) else sides_detr.transformers_model
    model = load(files).eval().to(device, DTYPES[row.dtype])
    pictures = random_pictures(row.batch, height, width).to(device, DTYPES[row.dtype])
    return infer(model, pictures, ["logits", "pred_boxes"], side, quick)


# --- sentences -----------------------------------------------------------------------------------------------------


def translator_task(side: str, row: Row, files: Path, device: str, quick: bool) -> Task:
    """`generate` as it is, and with a static cache."""
    if side.startswith(OURS):
        from hf_attn import AttnTranslatorForConditionalGeneration

        model = AttnTranslatorForConditionalGeneration.from_pretrained(files / "translator", dtype=DTYPES[row.dtype])
    else:
        model = sides_translator.marian_model(files / "translator-transformers", row.dtype)
    model = model.eval().to(device)
    sources = json.loads((files / "sources.json").read_text(encoding="utf-8"))["equal"][: row.batch]
    input_ids = torch.tensor([source["ids"] for source in sources], device=device)
    options = {"cache_implementation": "static"} if side.endswith(COMPILED) else {}

    def call() -> torch.Tensor:
        return model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            num_beams=row.beams,
            do_sample=False,
            max_new_tokens=rows.TARGET_TOKENS,
            **options,
        )

    return call, lambda: {"tokens": call()[:, 1:].tolist()}


TASKS = {"vit": vit_task, "detr": detr_task, "translator": translator_task}


# --- the rows ------------------------------------------------------------------------------------------------------


def prepare(families: list[str], files: Path, quick: bool) -> list[Row]:
    """Write the weights of the families, and return their rows."""
    found: list[Row] = []
    if "vit" in families:
        shape = rows.VIT_QUICK if quick else rows.VIT
        preparation.prepare_vit(files, shape, [])
        sides = (OURS, OURS + COMPILED, "timm", "timm" + COMPILED, "transformers")
        for batch in (1, 2) if quick else (1, 32, 256):
            operations = batch * rows.vit_operations(shape)
            found.append(Row("vit", f"ViT, bf16, batch {batch}", "bf16", batch, sides, "pictures", batch, operations))
    if "detr" in families:
        shape, picture = (rows.DETR_QUICK, rows.PICTURE_QUICK) if quick else (rows.DETR, rows.PICTURE)
        operations = preparation.prepare_detr(files, shape, picture, [])
        sides = (OURS, OURS + COMPILED, "transformers", "transformers" + COMPILED)
        for batch in (1,) if quick else (1, 8):
            name = f"DETR, bf16, batch {batch}"
            found.append(Row("detr", name, "bf16", batch, sides, "pictures", batch, batch * operations))
    if "translator" in families:
        found += translator_rows(files, quick)
    return found


def translator_rows(files: Path, quick: bool) -> list[Row]:
    shape = rows.TRANSLATOR_QUICK if quick else rows.TRANSLATOR
    preparation.prepare_translators(files, shape, made_up_sentences(6000), 1)
    counted, length = Translator(shape), rows.TARGET_TOKENS
    found = []
    for batch, beams in ((2, 1), (2, 2)) if quick else ((1, 1), (8, 1), (32, 1), (8, 4)):
        greedy = (OURS, OURS + COMPILED, "transformers", "transformers" + COMPILED)
        found.append(
            Row(
                "translator",
                f"translator, {'greedy' if beams == 1 else f'beam {beams}'}, bf16, batch {batch}",
                "bf16",
                batch,
                greedy if beams == 1 else (OURS, "transformers"),  # transformers compiles no beam search
                "tokens",
                batch * length,
                counted.operations(batch, rows.SOURCE_TOKENS, length, beams),
                counted.bytes(length, "bf16"),
                beams=beams,
            )
        )
    return found


def measure_row(row: Row, files: Path, device: str, quick: bool, turns: int, known: Any) -> dict[str, Any]:
    calls, outputs, used = {}, {}, {}
    for side in row.sides:
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        calls[side], output = TASKS[row.family](side, row, files, device, quick)
        outputs[side] = output()
        used[side] = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    measured = take_turns(calls, turns, device)
    return row_record(row, measured, used, outputs, known)


def check_device(device: str, quick: bool) -> None:
    """Refuse to measure for hours where there is nothing to measure."""
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            "torch sees no CUDA device here; run it where there is one, or try it by --quick --device cpu"
        )
    if device == "cpu" and not quick:
        raise typer.BadParameter("on CPUs only --quick runs here; benchmarks/bench.py measures them")


def main(
    only: Annotated[str, typer.Option(help=f"of {', '.join(FAMILIES)}, comma-separated")] = ",".join(FAMILIES),
    device: Annotated[str, typer.Option(help="cuda; cpu with --quick")] = "cuda",
    turns: Annotated[int, typer.Option(help="calls of each side that are measured", min=2)] = 15,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="measure compiled models, too")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="tiny models, to see whether it runs")] = False,
    files: Annotated[Path | None, typer.Option(help="keep the weights here, to begin sooner the next time")] = None,
    output: Annotated[Path, typer.Option(help="what to write, with .json and .png added")] = RESULTS / "gpu",
) -> None:
    families = only.split(",")
    for family in families:
        if family not in FAMILIES:
            raise typer.BadParameter(f"{family!r} is none of {', '.join(FAMILIES)}")
    check_device(device, quick)
    record = header(quick=quick, device=device, turns=turns)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    record["device"], record["limits"], record["rows"] = name, limits.measure(device, quick), []
    with contextlib.ExitStack() as stack:
        if files is None:
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files.mkdir(parents=True, exist_ok=True)
        stack.enter_context(no_progress_bars())
        for row in prepare(families, files, quick):
            sides = tuple(side for side in row.sides if compile_ or not side.endswith(COMPILED))
            measured = measure_row(
                replace(row, sides=sides), files, device, quick, 2 if quick else turns, record["limits"]
            )
            record["rows"].append(measured)
            print_row(measured)
            write_json(output.with_suffix(".json"), record)
            draw_ratios(record["rows"], name, output.with_suffix(".png"))
            gc.collect()  # models with hooks refer to themselves


if __name__ == "__main__":
    typer.run(main)
