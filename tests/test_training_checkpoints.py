"""Directories that are whole or not there, rotation, and the law of averaging: the mean, and tied weights tied."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import logging

from hf_attn.training import checkpoints
from hf_attn.training.checkpoints import (
    average_checkpoints,
    checkpoint_step,
    complete_checkpoints,
    keep_last,
    mark_off_schedule,
    move_files,
    no_progress_bars,
    remove_unfinished,
    save_with_weights,
    whole_directory,
    whole_file,
)
from tests.tiny import tiny_translator


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def save(directory: Path, **overrides) -> Path:
    tiny_translator(**overrides).save_pretrained(directory)
    return directory


def load_average(directories: list[Path], output: Path) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_pretrained(average_checkpoints(directories, output, AutoModelForSeq2SeqLM))


# Averaging


@pytest.mark.parametrize(
    "config", [{}, {"tie_word_embeddings": False, "share_embeddings": False}, {"logits_bias": True}]
)
def test_the_average_is_the_mean_of_the_weights(tmp_path, config):
    saved = [save(tmp_path / str(seed), seed=seed, **config) for seed in range(3)]
    average = load_average(saved, tmp_path / "average").state_dict()
    states = [AutoModelForSeq2SeqLM.from_pretrained(path).state_dict() for path in saved]
    for name, value in average.items():
        expected = torch.stack([state[name] for state in states]).double().mean(0).float()
        assert_close(value, expected, rtol=0, atol=0, msg=name)


def test_tied_weights_stay_tied(tmp_path):
    saved = [save(tmp_path / str(seed), seed=seed) for seed in range(2)]
    model = load_average(saved, tmp_path / "average")
    assert model.lm_head.weight is model.model.encoder.embed_tokens.weight is model.model.decoder.embed_tokens.weight


def test_the_average_of_one_is_itself_and_keeps_its_type(tmp_path):
    tiny_translator().bfloat16().save_pretrained(tmp_path / "one")
    average_checkpoints([tmp_path / "one"], tmp_path / "average", AutoModelForSeq2SeqLM)
    one, average = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "average"))
    assert one.keys() == average.keys()
    assert all(torch.equal(one[name], average[name]) and average[name].dtype == torch.bfloat16 for name in one)


def test_many_low_precision_weights_are_summed_in_high_precision(tmp_path):
    saved = []
    for seed in range(20):
        tiny_translator(seed=seed).bfloat16().save_pretrained(tmp_path / str(seed))
        saved.append(tmp_path / str(seed))
    average = load_file(average_checkpoints(saved, tmp_path / "average", AutoModelForSeq2SeqLM) / "model.safetensors")
    weights = [load_file(path / "model.safetensors") for path in saved]
    for name, value in average.items():
        expected = torch.stack([each[name].double() for each in weights]).mean(0)
        assert (value.double() - expected).abs().max() <= expected.abs().max() * 2**-8, name  # half a unit of bfloat16


def test_the_generation_settings_travel_with_the_average(tmp_path):
    model = tiny_translator()
    model.generation_config.update(num_beams=4, gnmt_alpha=0.6)
    model.save_pretrained(tmp_path / "one")
    average = load_average([tmp_path / "one"], tmp_path / "average")
    assert average.generation_config.num_beams == 4 and average.generation_config.gnmt_alpha == 0.6


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"intermediate_size": 48}, r"\(16, 48\) in .*two but \(16, 32\) in .*one; average models of one shape"),
        ({"decoder_layers": 1}, "do not both have the weight model.decoder.layers.1"),
        ({"logits_bias": True}, "do not both have the weight logits_bias"),
    ],
)
def test_models_of_different_shapes_are_refused(tmp_path, other, message):
    saved = [save(tmp_path / "one"), save(tmp_path / "two", **other)]
    with pytest.raises(ValueError, match=message):
        average_checkpoints(saved, tmp_path / "average", AutoModelForSeq2SeqLM)
    assert names(tmp_path) == ["one", "two"]


def test_nothing_to_average_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 checkpoints to average"):
        average_checkpoints([], tmp_path / "average", AutoModelForSeq2SeqLM)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/model.safetensors is not there"):
        average_checkpoints([tmp_path / "empty"], tmp_path / "average", AutoModelForSeq2SeqLM)


def test_a_model_saved_with_other_weights_keeps_its_own(tmp_path):
    model, other = tiny_translator(seed=0), tiny_translator(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_with_weights(model, dict(other.named_parameters()), tmp_path / "other")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "other").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in other.state_dict().items())


# Whole or not at all


def test_a_directory_appears_when_all_of_it_is_written(tmp_path):
    with whole_directory(tmp_path / "checkpoint-3") as temporary:
        (temporary / "weights").write_text("new")
        assert not (tmp_path / "checkpoint-3").exists() and complete_checkpoints(tmp_path) == []
    assert (tmp_path / "checkpoint-3" / "weights").read_text() == "new"


def test_a_directory_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with whole_directory(tmp_path / "checkpoint-3") as temporary:
            (temporary / text).write_text(text)
    assert names(tmp_path) == ["checkpoint-3"] and names(tmp_path / "checkpoint-3") == ["new"]


def test_an_error_leaves_the_old_directory_and_nothing_else(tmp_path):
    with whole_directory(tmp_path / "checkpoint-3") as temporary:
        (temporary / "weights").write_text("old")
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "checkpoint-3") as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["checkpoint-3"]
    assert (tmp_path / "checkpoint-3" / "weights").read_text() == "old"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "card").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "card") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["card"] and (tmp_path / "card").read_text() == "old"


def test_what_a_kill_left_is_no_checkpoint_and_is_removed(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *_, **__: None)  # killed while deleting
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "checkpoint-2"):
        raise RuntimeError
    monkeypatch.undo()
    (tmp_path / ".unfinished-README.md").write_text("half")
    assert complete_checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    removed = [path.name for path in remove_unfinished(tmp_path)]
    assert removed == [".unfinished-README.md", ".unfinished-checkpoint-2"] and names(tmp_path) == ["checkpoint-1"]
    assert remove_unfinished(tmp_path / "not there") == []


def test_files_are_moved_over_their_namesakes(tmp_path):
    for place, text in (("from", "new"), ("to", "old")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(text)
    (tmp_path / "to" / "other").write_text("kept")
    move_files(tmp_path / "from", tmp_path / "to")
    assert names(tmp_path / "from") == [] and names(tmp_path / "to") == ["config.json", "other"]
    assert (tmp_path / "to" / "config.json").read_text() == "new"


# Rotation


def make(directory: Path, *steps: int) -> None:
    for step in steps:
        (directory / f"checkpoint-{step}").mkdir()


def steps_left(directory: Path) -> list[int]:
    return [checkpoint_step(path) for path in complete_checkpoints(directory)]


def test_checkpoints_are_sorted_by_their_numbers(tmp_path):
    make(tmp_path, 100, 20, 3)
    (tmp_path / "checkpoint-7.bak").mkdir()
    (tmp_path / "checkpoint-8").write_text("a file")
    assert steps_left(tmp_path) == [3, 20, 100]
    assert complete_checkpoints(tmp_path / "not there") == []
    with pytest.raises(ValueError, match="must be checkpoint-<step>"):
        checkpoint_step(tmp_path / "checkpoint-best")


def test_the_last_are_kept(tmp_path):
    make(tmp_path, 1, 2, 3, 4, 5)
    keep_last(tmp_path, 2, protected=tmp_path / "checkpoint-2")
    assert steps_left(tmp_path) == [2, 4, 5]


def test_a_checkpoint_off_schedule_goes_with_the_next_one(tmp_path):
    make(tmp_path, 10, 20, 23)
    mark_off_schedule(tmp_path / "checkpoint-23")
    keep_last(tmp_path, 3)
    assert steps_left(tmp_path) == [10, 20, 23]
    make(tmp_path, 30)
    keep_last(tmp_path, 3)
    assert steps_left(tmp_path) == [10, 20, 30]


def test_bars_are_as_they_were_before(tmp_path):
    for shown in (True, False):
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with no_progress_bars():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() == shown
    logging.enable_progress_bar()
