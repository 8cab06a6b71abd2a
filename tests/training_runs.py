"""Trains the same tiny translator again and again: killed at another place each time and then resumed, and shared by
two processes.

    python training_runs.py <directory>     leaves <directory>/<name of the run>/ for each, and outcomes.json

A script of its own, because it kills itself: each training is a fork of a process that has imported everything once.
"""

import gc
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import PrinterCallback, TrainerCallback

from hf_attn.training import checkpoints
from hf_attn.training import trainer as trainer_module
from hf_attn.training.callbacks import TrainingInterrupted
from hf_attn.training.sampler import TranslationCollator
from hf_attn.training.trainer import TranslatorTrainer, TranslatorTrainingArguments
from tests.tiny import tiny_translator

COLLATOR = TranslationCollator(SimpleNamespace(pad_token_id=1))
STEPS = 14
INTERRUPTED = 3  # exit code


def pairs(number: int, seed: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(seed)

    def ids() -> list[int]:
        length = int(torch.randint(1, 12, (1,), generator=generator))
        return [*torch.randint(4, 41, (length,), generator=generator).tolist(), 2]

    return [{"input_ids": ids(), "labels": ids()} for _ in range(number)]


def trainer(directory: Path, gradient_accumulation_steps: int = 2, dropout: float = 0.2) -> TranslatorTrainer:
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


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class At(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event: str, step: int, action):
        setattr(self, event, lambda args, state, control, **_: action() if state.global_step == step else None)


def killing_at(run: TranslatorTrainer, step: int, function):
    """The same function, which kills when it is called at that step."""

    def killing(*args, **kwargs):
        if run.state.global_step == step:
            kill()
        return function(*args, **kwargs)

    return killing


def after_step(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_step_end", 4, kill))


def before_any_checkpoint(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_step_end", 2, kill))


def in_accumulation(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_substep_end", 6, kill))


def in_evaluation(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_prediction_step", 8, kill))


def in_checkpoint(run: TranslatorTrainer) -> None:
    run._save_rng_state = killing_at(run, 6, run._save_rng_state)


def before_renaming(run: TranslatorTrainer) -> None:
    checkpoints._to_disk = killing_at(run, 9, checkpoints._to_disk)


def in_rotation(run: TranslatorTrainer) -> None:
    """An old checkpoint loses its weights, and then the power goes."""

    def half_remove(path: Path, *args, **kwargs):
        if "old-checkpoint" in path.name and (path / "model.safetensors").exists():
            (path / "model.safetensors").unlink()
            kill()
        return remove(path, *args, **kwargs)

    remove = shutil.rmtree
    checkpoints.shutil = SimpleNamespace(rmtree=half_remove)


def after_last_step(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_train_end", STEPS, kill))


def ctrl_c(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_step_begin", 7, lambda: os.kill(os.getpid(), signal.SIGINT)))


def terminated(run: TranslatorTrainer) -> None:
    run.add_callback(At("on_step_begin", 10, lambda: os.kill(os.getpid(), signal.SIGTERM)))


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


def train(directory: Path, disturb=None) -> int:
    """Train in a forked process, from the last checkpoint if there is one. Returns its exit code, -9 if killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finish(directory, trainer(directory), disturb)


def finish(directory: Path, run: TranslatorTrainer, disturb=None) -> None:
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
        checkpoints.average_checkpoints(run.checkpoints_to_average(), directory / "average")
    os._exit(0)


def train_on_two(directory: Path, disturb=None) -> list[int]:
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
            finish(directory, trainer(directory, gradient_accumulation_steps=1, dropout=0.0), disturb)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train_as_two(directory: Path) -> int:
    """The batches of two processes, accumulated by one."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sampler = trainer_module.TokenBatchSampler
    trainer_module.TokenBatchSampler = lambda *args, **kwargs: sampler(*args, **{**kwargs, "num_processes": 2})
    finish(directory, trainer(directory, dropout=0.0))


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage; each fork would search all that was imported
    outcomes = {"undisturbed": [train(directory / "undisturbed")]}
    for name, disturb in KILLS.items():
        outcomes[name] = [train(directory / name, disturb), train(directory / name)]
    outcomes["one_as_two"] = [train_as_two(directory / "one_as_two")]
    outcomes["two"] = train_on_two(directory / "two")
    outcomes["two_killed"] = train_on_two(directory / "two_killed", after_step)
    outcomes["two_killed"] += train_on_two(directory / "two_killed")
    (directory / "outcomes.json").write_text(json.dumps(outcomes))
    os._exit(0)  # what was frozen cannot be taken down in order


if __name__ == "__main__":
    main(Path(sys.argv[1]))
