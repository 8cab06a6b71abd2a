"""Detectors from scratch on two CPU cores, tested on objects and backgrounds that they have not seen.

    python examples/train_detr.py fashion
    python examples/train_detr.py stamps --minutes 60

The data are made by detection_scenes.py (for fashion about 90 MB of downloads and 3 minutes on 2 cores, once).

fashion: the preset "tiny", a residual network of stride 8, 2 encoder and 3 decoder layers of width 128, conditional
attention with anchors, denoising queries and focal loss; all of it from random weights. In ten minutes on 2 cores of
an Intel Xeon at 2.5 GHz without bfloat16 (22,640 pictures of 96 pixels, 38 a second) it reached AP 46.8 % and AP50
66.3 % on the 1,000 validation scenes; in 120,000 pictures, which at this pace are 53 minutes, AP 69.0 % and AP50
84.9 %: ankle boots 96 %, trousers 96 %, shirts 59 %. model_cards/fashion_detr has the curve and pictures. What made
the difference, after AP50 54.2 % in ten minutes: residual blocks of the backbone that do not begin as the identity, a
backbone that learns four times as fast as the rest, and queries that begin by reading around their anchors. These
were chosen by the demo's scenes and by 300 of the 1,000. benchmarks/ablate_detr.py tells what each switch is worth.

stamps: the same on the lower ten layers of DINOv2-small (dinov2.py), frozen, for which a backbone from random weights
would have some 150 cut-outs to learn from. In 36,800 pictures of 168 pixels, 85 CPU minutes of the 120 that two cores
have in an hour, it reached AP 29.6 % and AP50 58.3 % on validation scenes without any object or background that it had
seen: flowers 91 %, mammals 65 %, birds 27 %; model_cards/stamps_detr has the curve.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import detection_scenes
import typer
from dinov2 import fetch_dinov2, from_dinov2

from hf_attn.console import Progress, TrainingProgress, errors_in_one_line
from hf_attn.training.checkpoints import whole_directory
from hf_attn.training.detection_data import load_detections
from hf_attn.training.detr import train_detr

BACKBONE = Path("models/dinov2_10")
BACKBONE_LAYERS = 10  # of 12: the features of the tenth tell kinds of things apart best
SHARED: dict[str, Any] = {"preset": "tiny", "drawn_pictures": 12, "eval_steps": 1000}
RECIPES: dict[str, dict[str, Any]] = {
    "fashion": {
        "scales": (96,),
        "longest_edge": 96,
        "data_name": "Fashion-MNIST items on photographs, 96 pixels",
        "data_license": "MIT (items); the backgrounds are Debian's mate-backgrounds and lomiri-wallpapers-20.04",
    },
    "stamps": {
        "backbone_model": BACKBONE,
        "backbone_learning_rate": 0.0,
        "scales": (168,),  # 12 x 12 patches
        "longest_edge": 168,
        "colour_jitter": 0.2,
        "ema_decay": 0.999,
        "data_name": "photo cut-outs of Tux Paint's stamps on photographs, 192 pixels",
        "data_license": "GPL-2 (cut-outs); the backgrounds are Debian's mate-backgrounds and lomiri-wallpapers",
    },
}


class Kind(StrEnum):
    fashion = "fashion"
    stamps = "stamps"


def prepare_backbone() -> None:
    """The lower layers of DINOv2-small, where they are not there already."""
    if not BACKBONE.is_dir():
        with whole_directory(BACKBONE) as temporary:
            stored = fetch_dinov2(Path("data/cache"))
            from_dinov2(stored, num_attention_heads=6, num_hidden_layers=BACKBONE_LAYERS).save_pretrained(temporary)


def main(
    kind: Annotated[Kind, typer.Argument(help="Which scenes.")] = Kind.fashion,
    output: Annotated[Path | None, typer.Option(help="Directory for the model; by default runs/KIND_detr.")] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the scenes; by default data/scenes/KIND.")] = None,
    minutes: Annotated[float, typer.Option(help="Time to train.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order and the changes of the pictures.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Train a detector on made scenes and test it."""
    output = output or Path(f"runs/{kind}_detr")
    data = data or Path(f"data/scenes/{kind}")
    if not data.is_dir():
        make = {Kind.fashion: detection_scenes.fashion, Kind.stamps: detection_scenes.stamps}[kind]
        make(data)
    if kind == Kind.stamps:
        prepare_backbone()
    with errors_in_one_line(debug), Progress() as progress:
        scenes, report = load_detections(data, test_share=0)  # validation has unseen objects and backgrounds
        print(report)
        result = train_detr(
            scenes,
            output,
            **SHARED,
            **RECIPES[kind],
            max_minutes=minutes,
            seed=seed,
            resume=resume,
            progress=TrainingProgress(progress),
        )
        measured = result.metrics["validation"]
        print(f"validation: AP {measured['ap']:.1%}, AP50 {measured['ap50']:.1%} of {measured['pictures']:,} pictures")
        for name, share in measured["class_ap50"].items():
            print(f"  {name}: AP50 {share:.1%}")
        print(f"{output}: the model, sample.png, learning_curve.png, samples/ and README.md")


if __name__ == "__main__":
    typer.run(main)
