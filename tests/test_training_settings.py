"""Settings follow from the size, data have a fingerprint, and the disk must have room for all that is to come."""

from dataclasses import asdict

import datasets
import pytest

from hf_attn import AttnTranslatorForConditionalGeneration
from hf_attn.training import settings
from hf_attn.training.optimization import noam_rate
from hf_attn.training.settings import SIZES, TranslatorSettings, fingerprint, open_run


def chosen(**changes) -> TranslatorSettings:
    return TranslatorSettings(source_language="de", target_language="en", **{"max_steps": 10, **changes})


def pairs(sources: list[str], targets: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"source": sources, "target": targets})


DATA = datasets.DatasetDict({"train": pairs(["ein Wort"], ["a word"])})


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_model_and_reaches_its_learning_rate(size):
    made = chosen(model_size=size)
    config = made.configuration(made.vocab_size)
    assert config.vocab_size == SIZES[size].vocab_size and made.save_steps == made.eval_steps
    factor = made.schedule_factor(config.hidden_size)
    assert noam_rate(made.warmup_steps, config.hidden_size, made.warmup_steps, factor) == pytest.approx(
        made.learning_rate
    )


def test_the_base_model_is_the_papers():
    made = chosen(model_size="base")
    assert made.configuration(37000).to_diff_dict() == type(made.configuration(37000))().to_diff_dict()
    assert made.schedule_factor(512) == pytest.approx(1.0)


def test_what_is_given_goes_before_the_size():
    made = chosen(model_size="tiny", vocab_size=500, warmup_steps=7, learning_rate=0.5, model_config={"dropout": 0.4})
    assert (made.vocab_size, made.warmup_steps, made.learning_rate) == (500, 7, 0.5)
    assert made.configuration(500).dropout == 0.4 and made.configuration(500).hidden_size == 256


def test_settings_filled_in_are_settings_again():
    made = chosen(model_size="small")
    assert TranslatorSettings(**asdict(made)) == made


def test_the_fingerprint_is_that_of_the_texts_and_their_order():
    one = fingerprint(pairs(["a", "b"], ["c", "d"]))
    assert one == fingerprint(pairs(["a", "b"], ["c", "d"]).add_column("group", [1, 2]))
    others = [pairs(["b", "a"], ["c", "d"]), pairs(["a", "b"], ["c", "D"]), pairs(["ab", ""], ["c", "d"])]
    assert len({one, *map(fingerprint, others)}) == 4


def test_the_room_is_what_checkpoints_and_model_take(tmp_path, monkeypatch):
    made = chosen(model_size="tiny", average_last=2, ema_decay=0.9)
    model = AttnTranslatorForConditionalGeneration(made.configuration(made.vocab_size))
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    needed = 3 * 4 * weights + 2 * weights  # one checkpoint more than is kept: weights, two moments, moving average
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(settings.shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        if fits:
            open_run(tmp_path / "fits", made, DATA, resume=False)
        else:
            with pytest.raises(OSError, match="make room, choose another directory, or lower average_last"):
                open_run(tmp_path / "does not fit", made, DATA, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


def test_what_a_run_has_on_disk_already_needs_no_more_room(tmp_path, monkeypatch):
    made = chosen(model_size="tiny")
    open_run(tmp_path, made, DATA, resume=False)
    (tmp_path / "checkpoints").mkdir()
    with (tmp_path / "checkpoints" / "optimizer.pt").open("wb") as file:
        file.truncate(10**9)  # sparse
    monkeypatch.setattr(settings.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    open_run(tmp_path, made, DATA, resume=True)


def test_a_run_of_several_processes_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"one of 2 processes.* use the model's trainer"):
        open_run(tmp_path / "run", chosen(), DATA, resume=False)
    assert not (tmp_path / "run").exists()
