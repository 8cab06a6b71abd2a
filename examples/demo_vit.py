"""From nothing to a picture classifier on this machine: fetch Fashion-MNIST, train, classify, show where it looks.

    make demo                     # its second part; alone: python examples/demo_vit.py

1.8 minutes on 2 CPU cores with AVX512-BF16, of which 75 seconds are training: 79.5 % of the 10,000 test pictures.
train_vit.py takes the time for over 91 %. The time for training is fixed, so a slower machine takes no longer and
learns less.
"""

import sys
import time
from pathlib import Path

import datasets
from fashion_mnist import CLASS_NAMES, prepare_fashion_mnist
from train_vit import RECIPE, VALIDATION_SHARE
from transformers import AutoImageProcessor, pipeline
from transformers.utils import logging

import hf_attn  # registers the Vision Transformer
from hf_attn.console import Progress, TrainingProgress, errors_in_one_line, picture_score_lines
from hf_attn.rollout import rollout_map
from hf_attn.training.picture_data import load_pictures
from hf_attn.training.vit import ViTTrainingResult, train_vit
from hf_attn.visualization import draw_classified

DATA = Path("data/fashion_mnist")
RUN = Path("runs/demo_vit")
TRAINING_MINUTES = 1.25
SHOWN = 10


def say(step: int, text: str) -> None:
    print(f"\n[{step}/3] {text}", flush=True)


def train(pictures: datasets.DatasetDict) -> ViTTrainingResult:
    with Progress() as progress:
        return train_vit(
            pictures,
            RUN,
            **RECIPE,
            max_minutes=TRAINING_MINUTES,
            resume=RUN.exists(),
            progress=TrainingProgress(progress),
        )


def classify(test: datasets.Dataset) -> Path:
    """Print what the classifier says of one test picture of each class, and draw where it looked."""
    logging.disable_progress_bar()
    classifier = pipeline("image-classification", model=str(RUN))
    rows = [test["label"].index(label) for label in range(len(CLASS_NAMES))]
    pictures = [test[row]["image"] for row in rows]
    captions = []
    for name, answers in zip(CLASS_NAMES, classifier(pictures, batch_size=SHOWN, top_k=3), strict=True):
        said = ", ".join(f"{answer['label']} {answer['score']:.0%}" for answer in answers)
        print(f"  {name:12} {said}")
        captions.append(f"{name}:\n{answers[0]['label']} {answers[0]['score']:.0%}")
    pixels = AutoImageProcessor.from_pretrained(RUN)(pictures, return_tensors="pt").pixel_values
    picture = RUN / "where_it_looks.png"
    draw_classified(pictures, captions, rollout_map(classifier.model, pixels), picture)
    return picture


def main() -> None:
    started = time.monotonic()
    print(f"hf_attn {hf_attn.__version__}: a Vision Transformer for Fashion-MNIST, trained here and now", flush=True)
    say(1, "Pictures of clothing")
    prepare_fashion_mnist(DATA)
    pictures, report = load_pictures(DATA, class_names=CLASS_NAMES, validation_share=VALIDATION_SHARE)
    print(report)
    say(
        2,
        f"Training for {60 * TRAINING_MINUTES:.0f} seconds; Ctrl-C stops it, and the same command goes on from there",
    )
    result = train(pictures)
    print("".join(picture_score_lines("test", result.metrics["test"])), end="")
    say(3, "The first test picture of each class, what the classifier says of it, and where it looked")
    picture = classify(pictures["test"])
    print(f"\nThe classifier is in {RUN}/, with its model card, confusion_matrix.png and {picture.name}.")
    print(f"Try: .venv/bin/hf-attn classify PICTURE --model {RUN} --explain {RUN}/explained")
    print(f"All of this took {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    with errors_in_one_line(debug="--debug" in sys.argv):
        main()
