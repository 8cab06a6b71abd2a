"""Trains the same tiny model again and again: killed at another place each time and then resumed, and shared by two
processes.

    python training_runs.py translator <directory>     leaves <directory>/<name of the run>/ for each, and
    python training_runs.py vit <directory>            outcomes.json; so does detr

A script of its own, because it kills itself: each training is a fork of a process that has imported everything once.
"""

import gc
import json
import os
import random
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.training import checkpoints, resumable
from hf_attn.training import trainer as trainer_module
from hf_attn.training.callbacks import TrainingInterrupted
from hf_attn.training.detection_augmentation import DetectionCollator, detection_transform
from hf_attn.training.detection_rows import DetectionRows
from hf_attn.training.detr_evaluation import EvaluationCollator
from hf_attn.training.detr_trainer import DetrTrainer, DetrTrainingArguments
from hf_attn.training.sampler import TranslationCollator
from hf_attn.training.trainer import TranslatorTrainer, TranslatorTrainingArguments
from hf_attn.training.vit_trainer import ViTTrainer, ViTTrainingArguments
from tests.detection_shapes import SHAPES, scenes
from tests.tiny import tiny_detr, tiny_translator, tiny_vit

COLLATOR = TranslationCollator(SimpleNamespace(pad_token_id=1))
STEPS = 14
INTERRUPTED = 3  # exit code


def pairs(number: int, seed: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(seed)

    def ids() -> list[int]:
        length = int(torch.randint(1, 12, (1,), generator=generator))
        return [*torch.randint(4, 41, (length,), generator=generator).tolist(), 2]

    return [{"input_ids": ids(), "labels": ids()} for _ in range(number)]


def translator(directory: Path, gradient_accumulation_steps: int = 2, dropout: float = 0.2) -> TranslatorTrainer:
    """Dropout, accumulation over several epochs, all averages, early stopping: everything that has a state."""
    arguments = TranslatorTrainingArguments(
        output_dir=str(directory),
        max_tokens_per_batch=64,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_steps=STEPS,
        noam_factor=0.3,
        warmup_steps=5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=3,
        logging_steps=2,
        average_last=2,
        ema_decay=0.9,
        early_stopping_patience=4,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny_translator(dropout=dropout, attention_dropout=dropout)
    made = TranslatorTrainer(model, arguments, COLLATOR, pairs(40, seed=1), pairs(8, seed=2))
    made.remove_callback(PrinterCallback)
    return made


class ChangedPictures(torch.utils.data.Dataset):
    """Noise of three classes, changed at random each time it is read, by all three generators that there are."""

    def __init__(self, number: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.pictures = torch.randn(number, 3, 32, 32, generator=generator)
        self.labels = torch.randint(3, (number,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        shift = random.randrange(32)
        return self.pictures[row].roll(shift, -1) * np.random.rand() + torch.randn(3, 1, 1), self.labels[row]


def stack(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pictures, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(pictures), "labels": torch.stack(labels)}


def mix(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The batch mixed with itself backwards, by a share that is drawn in the collator, with soft labels."""
    batch, share = stack(rows), np.random.beta(0.4, 0.4)
    soft = torch.nn.functional.one_hot(batch["labels"], 3).float()
    mixed = {"pixel_values": batch["pixel_values"], "labels": soft}
    return {name: share * value + (1 - share) * value.flip(0) for name, value in mixed.items()}


def vit(directory: Path, workers: int = 0, dropout: float = 0.2, **changes) -> ViTTrainer:
    """Random augmentation and mixup besides dropout; epochs of 6 steps, the last of them with fewer pictures."""
    settings = {"gradient_accumulation_steps": 2, **changes}
    arguments = ViTTrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=4,
        max_steps=STEPS,
        layer_decay=0.8,
        ema_decay=0.9,
        average_last=2,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        logging_steps=2,
        dataloader_num_workers=workers,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    model = tiny_vit(dropout=dropout, drop_path_rate=dropout)
    rows, unseen = ChangedPictures(44, seed=1), ChangedPictures(10, seed=2)
    made = ViTTrainer(model, arguments, mix, rows, unseen, eval_collator=stack)
    made.remove_callback(PrinterCallback)
    return made


def detr(directory: Path, workers: int = 0, dropout: float = 0.2, **changes) -> DetrTrainer:
    """Live batch norm, denoising, dropout and random crops: whatever draws or keeps something."""
    usual = {"gradient_accumulation_steps": 2, "backbone_learning_rate": 1e-3, "frozen_batch_norm": False}
    settings = {**usual, **changes}
    frozen = settings.pop("frozen_batch_norm")
    arguments = DetrTrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        learning_rate=1e-3,
        ema_decay=0.9,
        average_last=2,
        eval_strategy="steps",
        eval_steps=7,
        save_strategy="steps",
        save_steps=3,
        logging_steps=2,
        dataloader_num_workers=workers,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    noise = {} if frozen else {"denoising_groups": 2, "conditional_attention": True}
    numbers = {name: number for number, name in enumerate(SHAPES)}
    names = {"id2label": dict(enumerate(SHAPES)), "label2id": numbers}
    model = tiny_detr(dropout=dropout, frozen_batch_norm=frozen, **names, **noise)
    processor = AttnDetrImageProcessor(size={"longest_edge": 32})
    transform = detection_transform(scales=(24, 32), longest_edge=32, crop=(0.5, 1.0), crop_scales=None)
    rows = {
        split: DetectionRows(scenes(number, 32, first), split, numbers)
        for split, number, first in (("train", 22, 0), ("validation", 3, 100))
    }
    made = DetrTrainer(
        model,
        arguments,
        data_collator=DetectionCollator(processor, transform),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        eval_collator=EvaluationCollator(processor),
    )
    made.remove_callback(PrinterCallback)
    return made


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class At(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event: str, step: int, action):
        setattr(self, event, lambda args, state, control, **_: action() if state.global_step == step else None)


def killing_at(run: Trainer, step: int, function):
    """The same function, which kills when it is called at that step."""

    def killing(*args, **kwargs):
        if run.state.global_step == step:
            kill()
        return function(*args, **kwargs)

    return killing


def after_step(run: Trainer) -> None:
    run.add_callback(At("on_step_end", 4, kill))


def before_any_checkpoint(run: Trainer) -> None:
    run.add_callback(At("on_step_end", 2, kill))


def in_accumulation(run: Trainer) -> None:
    run.add_callback(At("on_substep_end", 6, kill))


def in_evaluation(run: Trainer) -> None:
    run.add_callback(At("on_prediction_step", 8, kill))


def in_checkpoint(run: Trainer) -> None:
    run._save_rng_state = killing_at(run, 6, run._save_rng_state)


def before_renaming(run: Trainer) -> None:
    checkpoints._to_disk = killing_at(run, 9, checkpoints._to_disk)


def in_rotation(run: Trainer) -> None:
    """An old checkpoint loses its weights, and then the power goes."""

    def half_remove(path: Path, *args, **kwargs):
        if "old-checkpoint" in path.name and (path / "model.safetensors").exists():
            (path / "model.safetensors").unlink()
            kill()
        return remove(path, *args, **kwargs)

    remove = shutil.rmtree
    checkpoints.shutil = SimpleNamespace(rmtree=half_remove)


def after_last_step(run: Trainer) -> None:
    run.add_callback(At("on_train_end", STEPS, kill))


def ctrl_c(run: Trainer) -> None:
    run.add_callback(At("on_step_begin", 7, lambda: os.kill(os.getpid(), signal.SIGINT)))


def terminated(run: Trainer) -> None:
    run.add_callback(At("on_step_begin", 10, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def ctrl_c_at_a_terminal(run: Trainer) -> None:
    """The signal reaches the data loader's workers too."""
    run.add_callback(At("on_step_begin", 7, lambda: os.killpg(0, signal.SIGINT)))


KILLS = {
    function.__name__: function
    for function in (
        after_step,
        before_any_checkpoint,
        in_accumulation,
        in_evaluation,
        in_checkpoint,
        before_renaming,
        in_rotation,
        after_last_step,
        ctrl_c,
        terminated,
    )
}


VIT_KILLS = {function.__name__: function for function in (after_step, ctrl_c_at_a_terminal)}
WORKERS = {"alone": 0, "with_workers": 2}


def train(directory: Path, disturb=None, make=translator, **settings) -> int:
    """Train in a forked process, from the last checkpoint if there is one. Returns its exit code, -9 if killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.setpgid(0, 0)
    finish(directory, make(directory, **settings), disturb)


def finish(directory: Path, run: Trainer, disturb=None) -> None:
    """Train, from the last checkpoint if there is one, save both averages, and end the process."""
    if disturb is not None:
        disturb(run)
    try:
        run.train(resume_from_checkpoint=bool(checkpoints.complete_checkpoints(directory)))
    except TrainingInterrupted as interrupted:
        print(interrupted, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)
    if run.is_world_process_zero():
        run.save_final_model(directory / "moving_average")
        checkpoints.average_checkpoints(run.checkpoints_to_average(), directory / "average", type(run.model))
    os._exit(0)


def train_on_two(directory: Path, disturb=None, make=translator) -> list[int]:
    """The same on two processes that share the batches, without dropout. Returns both exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in ("0", "1"):
        children.append(os.fork())
        if not children[-1]:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", **place)
            finish(directory, make(directory, gradient_accumulation_steps=1, dropout=0.0), disturb)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def translator_as_two(directory: Path) -> TranslatorTrainer:
    """Has the batches of two processes to itself, two accumulated in each step."""
    sampler = trainer_module.TokenBatchSampler
    trainer_module.TokenBatchSampler = lambda *args, **kwargs: sampler(*args, **{**kwargs, "num_processes": 2})
    return translator(directory, dropout=0.0)


def vit_as_two(directory: Path) -> ViTTrainer:
    batches = resumable.RowBatches
    resumable.RowBatches = lambda rows, size, seed, processes, drop_last: batches(rows, size, seed, 2, drop_last)
    return vit(directory, dropout=0.0)


def translator_runs(directory: Path) -> dict[str, list[int]]:
    outcomes = {"undisturbed": [train(directory / "undisturbed")]}
    for name, disturb in KILLS.items():
        outcomes[name] = [train(directory / name, disturb), train(directory / name)]
    outcomes["one_as_two"] = [train(directory / "one_as_two", make=translator_as_two)]
    outcomes["two"] = train_on_two(directory / "two")
    outcomes["two_killed"] = train_on_two(directory / "two_killed", after_step)
    outcomes["two_killed"] += train_on_two(directory / "two_killed")
    return outcomes


def vit_in_a_hurry(directory: Path, **settings) -> ViTTrainer:
    """Has a minute, and needs ten seconds for a step by the clock of the first process, but none by the other's."""
    run = vit(directory, max_minutes=1, **settings)
    pace = 10.0 if run.is_world_process_zero() else 0.0
    run.time_limit.clock = lambda: pace * run.state.global_step
    return run


def vit_runs(directory: Path) -> dict[str, list[int]]:
    outcomes = {}
    for company, workers in WORKERS.items():
        settings = {"make": vit, "workers": workers}
        outcomes[f"undisturbed_{company}"] = [train(directory / f"undisturbed_{company}", **settings)]
        for name, disturb in VIT_KILLS.items():
            place = directory / f"{name}_{company}"
            outcomes[place.name] = [train(place, disturb, **settings), train(place, **settings)]
    outcomes["one_as_two"] = [train(directory / "one_as_two", make=vit_as_two)]
    outcomes["two"] = train_on_two(directory / "two", make=vit)
    outcomes["two_in_a_hurry"] = train_on_two(directory / "two_in_a_hurry", make=vit_in_a_hurry)
    return outcomes


def detr_as_two(directory: Path) -> DetrTrainer:
    batches = resumable.RowBatches
    resumable.RowBatches = lambda rows, size, seed, processes, drop_last: batches(rows, size, seed, 2, drop_last)
    return detr(directory, dropout=0.0, frozen_batch_norm=True)


def detr_frozen(directory: Path, **settings) -> DetrTrainer:
    """What one process and two do alike: batch norm would see other batches."""
    return detr(directory, frozen_batch_norm=True, **settings)


def detr_runs(directory: Path) -> dict[str, list[int]]:
    outcomes = {"undisturbed": [train(directory / "undisturbed", make=detr)]}
    for name, disturb in VIT_KILLS.items():
        outcomes[name] = [train(directory / name, disturb, detr), train(directory / name, make=detr)]
    outcomes["one_as_two"] = [train(directory / "one_as_two", make=detr_as_two)]
    outcomes["two"] = train_on_two(directory / "two", make=detr_frozen)
    return outcomes


def main(model: str, directory: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage; each fork would search all that was imported
    outcomes = {"translator": translator_runs, "vit": vit_runs, "detr": detr_runs}[model](directory)
    (directory / "outcomes.json").write_text(json.dumps(outcomes))
    os._exit(0)  # what was frozen cannot be taken down in order


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
