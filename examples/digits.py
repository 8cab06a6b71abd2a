"""The 1,797 handwritten digits of scikit-learn, 8x8 pixels each, learned from scratch: does training work?

    python examples/digits.py                       # three seeds, each with its own split and its own network

On 2 CPU cores, where the network of 203,000 weights reads 16 patches of 2x2 pixels and is tested on pictures that it
has not seen:

    seed 0: 98.1% of 359 test pictures right, 33 seconds
    seed 1: 98.6% of 359 test pictures right, 29 seconds
    seed 2: 98.6% of 359 test pictures right, 26 seconds
"""

import time
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import typer
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from hf_attn.console import Progress, TrainingProgress, errors_in_one_line
from hf_attn.training.picture_data import load_pictures
from hf_attn.training.vit import ViTTrainingResult, train_vit


def digit_pictures() -> datasets.Dataset:
    """The pictures with grey levels from 0 to 255, in scikit-learn from 0 to 16, and which digit each one is."""
    digits = load_digits()
    levels = (digits.images * 255 / 16).round().astype(np.uint8)
    columns = {"image": [Image.fromarray(picture) for picture in levels], "label": digits.target.tolist()}
    names = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    return datasets.Dataset.from_dict(columns, datasets.Features({"image": datasets.Image(), "label": names}))


def train_on_digits(output_dir: str | Path, seed: int = 0, **settings) -> ViTTrainingResult:
    """Train on 75 % of the digits and test on 20 %; the other 5 % draw the curve of the validation accuracy."""
    pictures, _ = load_pictures(digit_pictures(), validation_share=0.05, test_share=0.2, seed=seed)
    recipe = {
        "preset": "tiny",
        "image_size": 8,
        "patch_size": 2,
        "model_config": {"num_channels": 1},
        "num_train_epochs": 40,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "crop": "none",
        "flip": False,
        "rotation": 10,
        "zoom": 0.1,
        "data_name": "the handwritten digits of scikit-learn",
    }
    return train_vit(pictures, output_dir, seed=seed, **{**recipe, **settings})


def main(
    output: Annotated[Path, typer.Option(help="Directory for the models, one for each seed.")] = Path("runs/digits"),
    seeds: Annotated[int, typer.Option(min=1, help="Networks to train.")] = 3,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Learn scikit-learn's handwritten digits from scratch, in about a minute for each seed."""
    with errors_in_one_line(debug):
        for seed in range(seeds):
            start = time.perf_counter()
            with Progress() as progress:
                result = train_on_digits(output / str(seed), seed, progress=TrainingProgress(progress))
            test = result.metrics["test"]
            seconds = time.perf_counter() - start
            print(
                f"seed {seed}: {test['accuracy']:.1%} of {test['pictures']} test pictures right, {seconds:.0f} seconds"
            )


if __name__ == "__main__":
    typer.run(main)
