"""Train the same translator with hf_attn and with transformers, for the same time on the same machine, and compare.

    python benchmarks/train_translator.py data/german_english --minutes 5

Both sides have the same shape, tokenizer, pairs, number format, optimizer, peak learning rate, warm-up, smoothing,
gradient clipping and average number of pairs a step. hf_attn runs `TranslatorTrainer`; transformers runs its own
`MarianMTModel` in its own `Seq2SeqTrainer` with `DataCollatorForSeq2Seq`. Of the two processes one is always
stopped: every few seconds the other one goes on, so that both see the same machine. What a process does before its
first step and after its last (starting, encoding, evaluating) is not counted.

Measured on 2 cores of an AMD EPYC with AVX512-BF16, on the text of the demo, with

    --minutes 2.5 --hidden-size 128 --vocab-size 4000 --tokens 768 --learning-rate 2e-3 --test-sentences 500

2.5 minutes each, 2 threads, bf16, turns of 15 s, 128 wide, 3 + 3 layers, vocabulary 4000
                                             hf_attn    transformers
target tokens/s, median of turns               4,392           1,607
steps                                            999             368
target tokens seen                           653,919         240,255
padding in target batches                       2.9%           59.4%
validation loss, nats per token                4.005           4.477
BLEU, 503 test sentences                        4.76            1.03
chrF                                           18.91           12.97
tokens/s of hf_attn over transformers: median 2.68, quartiles 2.51 to 2.96, 10 pairs of turns
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("hf_attn", "transformers")
SHAPE = {"layers": 3, "heads": 4, "dropout": 0.1, "label_smoothing": 0.1}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory with train.tsv, validation.tsv and test.tsv")
    parser.add_argument("--source", default="de", help="source language (default: de)")
    parser.add_argument("--target", default="en", help="target language (default: en)")
    parser.add_argument("--minutes", type=float, default=5, help="training time of each side (default: 5)")
    parser.add_argument("--slice-seconds", type=float, default=15, help="time of a turn (default: 15)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="number format (default: bf16)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (default: all)")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch of hf_attn, padding counted")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=400, help="steps until the learning rate is highest")
    parser.add_argument("--test-sentences", type=int, default=1000, help="sentences translated at the end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # in a child: which one it is
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- both sides ----------------------------------------------------------------------------------------------------


def encode(options: argparse.Namespace, work: Path) -> int:
    """Write the tokenizer and the encoded pairs that both sides read; returns the rows of an average token batch."""
    from hf_attn.tokenization_translator import train_tokenizer
    from hf_attn.training.data import encode_pairs, load_pairs, token_lengths
    from hf_attn.training.sampler import TokenBatchSampler

    pairs, _ = load_pairs(options.data, options.source, options.target)
    train = pairs["train"]
    tokenizer = train_tokenizer([*train["source"], *train["target"]], options.vocab_size)
    tokenizer.save_pretrained(work / "tokenizer")
    for split, dataset in pairs.items():
        encode_pairs(dataset, tokenizer, max_length=256).save_to_disk(work / split)
    encoded = encode_pairs(train, tokenizer, max_length=256)
    batches = TokenBatchSampler(*token_lengths(encoded), options.tokens, shuffle=False)
    return round(len(encoded) / len(batches))


def training_arguments(options: argparse.Namespace, rows: int) -> dict:
    """What both trainers are told alike; `rows` only counts where batches are rows."""
    return {
        "output_dir": str(options.work / options.side),
        "max_steps": 10**6,  # the other process says when the time is over
        "per_device_train_batch_size": rows,
        "learning_rate": options.learning_rate,
        "warmup_steps": options.warmup,
        "lr_scheduler_type": "inverse_sqrt",
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-9,
        "max_grad_norm": 1.0,
        "bf16": options.dtype == "bf16",
        "use_cpu": True,
        "seed": options.seed,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def hf_attn_trainer(options: argparse.Namespace, tokenizer, train, rows: int, callback):
    from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration
    from hf_attn.training.trainer import TranslatorTrainer, TranslatorTrainingArguments

    config = AttnTranslatorConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        encoder_layers=SHAPE["layers"],
        decoder_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        dropout=SHAPE["dropout"],
        label_smoothing=SHAPE["label_smoothing"],
    )
    settings = TranslatorTrainingArguments(
        **training_arguments(options, rows), max_tokens_per_batch=options.tokens, noam_factor=None
    )
    model = AttnTranslatorForConditionalGeneration(config)
    return TranslatorTrainer(model, settings, train_dataset=train, processing_class=tokenizer, callbacks=[callback])


def transformers_trainer(options: argparse.Namespace, tokenizer, train, rows: int, callback):
    from transformers import (
        DataCollatorForSeq2Seq,
        MarianConfig,
        MarianMTModel,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=options.hidden_size,
        encoder_ffn_dim=4 * options.hidden_size,
        decoder_ffn_dim=4 * options.hidden_size,
        encoder_layers=SHAPE["layers"],
        decoder_layers=SHAPE["layers"],
        encoder_attention_heads=SHAPE["heads"],
        decoder_attention_heads=SHAPE["heads"],
        dropout=SHAPE["dropout"],
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    settings = Seq2SeqTrainingArguments(
        **training_arguments(options, rows), label_smoothing_factor=SHAPE["label_smoothing"]
    )
    return Seq2SeqTrainer(
        model,
        settings,
        train_dataset=train,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        callbacks=[callback],
    )


def child(options: argparse.Namespace) -> None:
    """Train one side until told to stop, then evaluate it; writes steps.jsonl and result.json into the work folder."""
    import torch
    from datasets import load_from_disk
    from transformers import AutoTokenizer, TrainerCallback, set_seed

    torch.set_num_threads(options.threads)
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.work / "tokenizer")
    train = load_from_disk(str(options.work / "train")).select_columns(["input_ids", "labels"])
    rows = json.loads((options.work / "rows.json").read_text())
    over = False

    def stop(*_) -> None:
        nonlocal over
        over = True

    class Stepwatch(TrainerCallback):
        """Notes when each step ended; waits for its turn before the first and stops when the time is over."""

        def __init__(self):
            self.ended: list[float] = []

        def on_train_begin(self, args, state, control, **kwargs):
            signal.signal(signal.SIGUSR1, stop)
            (options.work / f"{options.side}.ready").touch()
            os.kill(os.getpid(), signal.SIGSTOP)

        def on_step_end(self, args, state, control, **kwargs):
            self.ended.append(time.monotonic())
            control.should_training_stop = over

    watch = Stepwatch()
    build = hf_attn_trainer if options.side == "hf_attn" else transformers_trainer
    trainer = build(options, tokenizer, train, rows, watch)
    tokens: list[tuple[int, int]] = []  # of each step: target tokens, and target positions with the padding
    collate = trainer.data_collator

    def counting_collate(features):
        batch = collate(features)
        tokens.append((int((batch["labels"] != -100).sum()), batch["labels"].numel()))
        return batch

    trainer.data_collator = counting_collate
    trainer.train()
    with (options.work / f"{options.side}.steps.jsonl").open("w") as file:
        for ended, (counted, padded) in zip(watch.ended, tokens, strict=False):
            file.write(json.dumps([ended, counted, padded]) + "\n")
    result = evaluate(trainer.model, tokenizer, options)
    (options.work / f"{options.side}.result.json").write_text(json.dumps(result))


def evaluate(model, tokenizer, options: argparse.Namespace) -> dict:
    """Validation loss per target token, unsmoothed, and greedy BLEU and chrF on test sentences; the same for both."""
    import torch
    from datasets import load_from_disk

    from hf_attn.training.evaluation import generate_all
    from hf_attn.training.metrics import score_translations
    from hf_attn.training.sampler import TokenBatchSampler, TranslationCollator

    model.eval()
    validation = load_from_disk(str(options.work / "validation")).select_columns(["input_ids", "labels"])
    lengths = [[len(ids) for ids in validation[column]] for column in ("input_ids", "labels")]
    collate = TranslationCollator(tokenizer)
    total = count = 0.0
    with torch.no_grad():
        for batch_rows in TokenBatchSampler(*lengths, 4096, shuffle=False):
            batch = collate([validation[row] for row in batch_rows])
            start = torch.full_like(batch["labels"][:, :1], tokenizer.bos_token_id)
            shifted = torch.cat([start, batch["labels"][:, :-1]], dim=1).masked_fill(
                torch.cat([start, batch["labels"][:, :-1]], dim=1) == -100, tokenizer.pad_token_id
            )
            labels = batch.pop("labels")
            logits = model(**batch, decoder_input_ids=shifted, use_cache=False).logits
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
            count += (labels != -100).sum().item()

    test = load_from_disk(str(options.work / "test"))
    sample = test.select(range(0, len(test), max(1, len(test) // options.test_sentences)))
    generated = generate_all(model, sample["input_ids"][:], 4096, num_beams=1, max_new_tokens=100)
    references = tokenizer.batch_decode(sample["labels"][:], skip_special_tokens=True)
    scores = score_translations(tokenizer.batch_decode(generated, skip_special_tokens=True), references)
    return {"loss": total / count, "bleu": scores["bleu"], "chrf": scores["chrf"], "sentences": len(sample)}


# --- the turns -----------------------------------------------------------------------------------------------------


def start(side: str, work: Path) -> subprocess.Popen:
    """A process that has set up one side and stopped itself before the first step."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen([sys.executable, *sys.argv, "--side", side, "--work", str(work)], env=environment)
    while not (work / f"{side}.ready").exists():
        if process.poll() is not None:
            raise SystemExit(f"{side} ended with exit code {process.returncode} before its first step")
        time.sleep(0.2)
    time.sleep(1)
    return process


def take_turns(processes: dict[str, subprocess.Popen], options: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Let each side run in turn until each had its minutes; returns (side, from, to) of all turns."""
    turns = []
    for _ in range(round(options.minutes * 60 / options.slice_seconds)):
        for side in SIDES if len(turns) % 4 == 0 else SIDES[::-1]:  # who begins alternates as well
            began = time.monotonic()
            processes[side].send_signal(signal.SIGCONT)
            time.sleep(options.slice_seconds)
            processes[side].send_signal(signal.SIGSTOP)
            turns.append((side, began, time.monotonic()))
    return turns


def report(options: argparse.Namespace, turns: list[tuple[str, float, float]], work: Path) -> None:
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    totals = {side: [0, 0, 0] for side in SIDES}
    for side in SIDES:
        steps = [json.loads(line) for line in (work / f"{side}.steps.jsonl").read_text().splitlines()]
        for _, began, ended in (turn for turn in turns if turn[0] == side):
            inside = [step for step in steps if began <= step[0] <= ended]
            if len(inside) > 1:  # from the end of the first step inside a turn to the end of the last
                speeds[side].append(sum(step[1] for step in inside[1:]) / (inside[-1][0] - inside[0][0]))
            for column, value in enumerate((1, *(sum(step[i] for step in inside) for i in (1, 2)))):
                totals[side][column] += len(inside) if column == 0 else value
    results = {side: json.loads((work / f"{side}.result.json").read_text()) for side in SIDES}

    print(
        f"\n{options.minutes:g} minutes each, {options.threads} threads, {options.dtype}, turns of "
        f"{options.slice_seconds:g} s, {options.hidden_size} wide, {SHAPE['layers']} + {SHAPE['layers']} layers, "
        f"vocabulary {options.vocab_size}"
    )
    print(f"{'':36}{SIDES[0]:>16}{SIDES[1]:>16}")
    rows = {
        "target tokens/s, median of turns": [f"{statistics.median(speeds[side]):,.0f}" for side in SIDES],
        "steps": [f"{totals[side][0]:,}" for side in SIDES],
        "target tokens seen": [f"{totals[side][1]:,}" for side in SIDES],
        "padding in target batches": [f"{1 - totals[side][1] / totals[side][2]:.1%}" for side in SIDES],
        "validation loss, nats per token": [f"{results[side]['loss']:.3f}" for side in SIDES],
        f"BLEU, {results[SIDES[0]]['sentences']} test sentences": [f"{results[side]['bleu']:.2f}" for side in SIDES],
        "chrF": [f"{results[side]['chrf']:.2f}" for side in SIDES],
    }
    for name, (ours, theirs) in rows.items():
        print(f"{name:36}{ours:>16}{theirs:>16}")
    ratios = sorted(a / b for a, b in zip(speeds[SIDES[0]], speeds[SIDES[1]], strict=False))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    print(
        f"tokens/s of {SIDES[0]} over {SIDES[1]}: median {statistics.median(ratios):.2f}, "
        f"quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}, {len(ratios)} pairs of turns"
    )


def main() -> None:
    options = arguments()
    if options.side:
        child(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print("encoding the data", flush=True)
        (work / "rows.json").write_text(json.dumps(encode(options, work)))
        processes = {}
        try:
            for side in SIDES:
                print(f"starting {side}", flush=True)
                processes[side] = start(side, work)
            print(f"training in turns: {2 * options.minutes:g} minutes", flush=True)
            turns = take_turns(processes, options)
            for side in SIDES:
                print(f"evaluating {side}", flush=True)
                processes[side].send_signal(signal.SIGUSR1)
                processes[side].send_signal(signal.SIGCONT)
                if processes[side].wait():
                    raise SystemExit(f"{side} ended with exit code {processes[side].returncode}")
            report(options, turns, work)
        finally:
            for process in processes.values():
                process.kill()


if __name__ == "__main__":
    main()
