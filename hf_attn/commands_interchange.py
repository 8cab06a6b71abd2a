"""`hf-attn import` and `export`: checkpoints of other libraries become ours, and ours become theirs."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_attn.commands_shared import Debug, Quiet, fields_and_values, option, prepare_transformers
from hf_attn.console import errors_in_one_line, json_line, text_output
from hf_attn.interchange.early_checks import FORMATS, TARGETS, check_known, check_new_directory, check_place

use = typer.Typer()


@use.command(
    "import",
    epilog="""
**Examples**

- `hf-attn import Helsinki-NLP/opus-mt-en-de models/en-de`
- `hf-attn import downloads/detr-r50-e632da11.pth models/detr`
- `hf-attn import downloads/B_16.npz models/vit --format vit-jax`
- `hf-attn import downloads/vit.pth models/vit --config num_attention_heads=12`
""",
)
def import_command(
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Directory, file of weights, or name on the Hub.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write, not there yet.")],
    format: Annotated[
        str | None,
        option(
            "What a file of weights is, where its names leave it open: fairseq, vit-timm, vit-jax, vit-torchvision, "
            "detr-original or detr-dc5-original. A directory tells by its config.json."
        ),
    ] = None,
    revision: Annotated[str | None, option("Branch, tag or commit of a model on the Hub.")] = None,
    config: Annotated[
        list[str] | None,
        option(
            "A field of our configuration, where the checkpoint does not say it.", "--config", metavar="FIELD=VALUE"
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        option("Type of the weights.", show_default="the checkpoint's"),
    ] = None,
    as_json: Annotated[bool, option("Write what was made as JSON.", "--json")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make another library's checkpoint a model of this package, with its processor or tokenizer.

    transformers' Marian, M2M100, ViT, DeiT, MAE, DINOv2 and DETR, timm's ViTs, and files of fairseq, JAX, torchvision
    and DETR's authors. Of pickled files only tensors are read. A tensor missing or too many is an error, and the model
    runs once before OUT appears.
    """
    fields = fields_and_values(config)
    with errors_in_one_line(debug), text_output(None) as stream:
        check_known("--format", format, FORMATS)
        check_new_directory(output)
        check_place(source, format, revision)
        prepare_transformers()
        from hf_attn.interchange.importing import import_checkpoint

        def tell(line: str) -> None:
            if not quiet:
                print(line, file=sys.stderr)

        made = import_checkpoint(
            source, output, format=format, revision=revision, dtype=dtype, tell=tell, config=fields
        )
        stream.write(json_line(made.facts()) if as_json else f"{made}\n")


@use.command(
    epilog="""
**Examples**

- `hf-attn export runs/mine --to onnx`
- `hf-attn export runs/photos --to transformers --output exported/photos`
""",
)
def export(
    *,
    source: Annotated[str, typer.Argument(metavar="DIR", help="Directory, or name on the Hub, of a model.")],
    to: Annotated[
        str,
        option("onnx, openvino (pictures alone), transformers, timm (ViT alone) or ctranslate2 (translators alone)."),
    ],
    output: Annotated[
        Path | None, option("Directory to write, not there yet.", "--output", "-o", show_default="DIR-TO beside DIR")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a model of this package for another library, with its processor or tokenizer.

    What the other library lacks is an error that names it; nothing is then written. ONNX is checked in onnxruntime,
    and OpenVINO's graphs in OpenVINO, before they are there.
    """
    place = Path(source) if Path(source).is_dir() else Path(Path(source).name)
    output = output or place.with_name(f"{place.absolute().name}-{to}")
    with errors_in_one_line(debug), text_output(None) as stream:
        check_known("--to", to, TARGETS)
        check_new_directory(output)
        prepare_transformers()
        from hf_attn.interchange.exporting import export_model

        written = export_model(source, to, output)
        stream.write(f"{written}: written for {to}\n")
