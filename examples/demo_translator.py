"""From nothing to a translator on this machine: fetch real German-English text, train, translate what was held out.

    make demo                     # its first part; alone: python examples/demo_translator.py

4.4 minutes on 2 CPU cores with AVX512-BF16, four of them training; setting up .venv/ takes 3.4 minutes more, once.
Then: BLEU 23.0, chrF 43.7 on 500 sentences of LibreOffice's help, up to 12 words long, from pages held out. The time
for training is fixed, so a slower machine takes no longer and learns less.
"""

import sys
import time
from pathlib import Path

from german_english import SOURCES, apt_is_there, prepare_german_english
from transformers import pipeline
from transformers.utils import logging

import hf_attn  # registers the translator and pipeline("translation")
from hf_attn.console import Progress, TrainingProgress, errors_in_one_line, score_lines
from hf_attn.training.data import load_pairs
from hf_attn.training.translator import TrainingResult, train_translator
from hf_attn.visualization import draw_alignment

DATA = Path("data/demo")
RUN = Path("runs/demo")
MAX_WORDS = 12
TRAINING_MINUTES = 4
SHOWN = 10


def say(step: int, text: str) -> None:
    print(f"\n[{step}/4] {text}", flush=True)


def train(source: str) -> TrainingResult:
    pairs, report = load_pairs(DATA, "de", "en")
    print(report)
    with Progress() as progress:
        return train_translator(
            pairs,
            RUN,
            source_language="de",
            target_language="en",
            model_size="tiny",
            model_config={"hidden_size": 128, "intermediate_size": 512, "dropout": 0.05},
            vocab_size=4000,
            max_tokens_per_batch=768,
            max_minutes=TRAINING_MINUTES,
            learning_rate=4e-3,
            warmup_steps=300,
            eval_steps=500,
            save_steps=100,
            eval_sentences=100,
            test_sentences=500,
            data_name=f"{SOURCES[source].title}, sentences of up to {MAX_WORDS} words",
            data_license=SOURCES[source].licence,
            resume=RUN.exists(),
            progress=TrainingProgress(progress),
        )


def show_translations(result: TrainingResult) -> list[int]:
    """Print ten held-out sentences, spread over the test split; returns their places."""
    places = [index * len(result.test.sources) // SHOWN for index in range(SHOWN)]
    for place in places:
        print(f"\n  source       {result.test.sources[place]}")
        print(f"  reference    {result.test.references[place]}")
        print(f"  translation  {result.test.translations[place]}")
    return places


def show_attention(sentence: str) -> Path:
    """Print the best three translations of a sentence; draw where the best one looked."""
    logging.disable_progress_bar()
    translate = pipeline("translation", model=str(RUN))
    print(f"\n  source   {sentence}")
    best = translate(sentence, n_best=3)
    for record in best:
        print(f"  {record['score']:7.3f}  {record['translation_text']}")
    alignment = translate.align(sentence, best[0]["translation_text"])
    picture = RUN / "alignment.png"
    draw_alignment(alignment.source_words, alignment.target_words, alignment.weights, picture)
    return picture


def main() -> None:
    started = time.monotonic()
    print(f"hf_attn {hf_attn.__version__}: a German-English translator, trained here and now", flush=True)
    source = "lohelp" if apt_is_there() else "homeassistant"
    say(1, f"German and English sentences: {SOURCES[source].title}")
    prepare_german_english(DATA, sources=[source], max_words=MAX_WORDS)
    say(2, f"Training for {TRAINING_MINUTES} minutes; Ctrl-C stops it, and the same command goes on from there")
    result = train(source)
    say(3, "Held-out sentences, of pages that training did not see")
    print("".join(score_lines("test", result.test.metrics)))
    places = show_translations(result)
    say(4, "Three translations of one sentence, and where the best one looked")
    picture = show_attention(result.test.sources[places[0]])
    print(f"\nThe translator is in {RUN}/, with its model card, learning_curve.png and {picture.name}.")
    print(f'Try: .venv/bin/hf-attn translate "Diese Funktion ist nicht verfügbar." --model {RUN}')
    print(f"All of this took {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    with errors_in_one_line(debug="--debug" in sys.argv):
        main()
