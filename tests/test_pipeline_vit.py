"""The ViT where transformers expects a model: pipeline, automatic classes, Trainer; no flag for another size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_attn import (
    AttnViTBackbone,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTImageProcessor,
    AttnViTModel,
)
from tests.tiny import tiny_vit

NAMES = {0: "stripes across", 1: "stripes down", 2: "noise"}


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 40), seed: int = 0) -> Image.Image:
    """Noise of (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def saved(directory: Path, size: dict[str, int] | None = None, **fields) -> AttnViTForImageClassification:
    model = tiny_vit(id2label=NAMES, label2id={name: index for index, name in NAMES.items()}, **fields)
    model.save_pretrained(directory)
    AttnViTImageProcessor(size=size or {"height": 32, "width": 32}).save_pretrained(directory)
    return model


def by_hand(directory: Path, model: AttnViTForImageClassification, image: Image.Image) -> torch.Tensor:
    """(classes,) logits of one picture, without any pipeline."""
    with torch.no_grad():
        return model(AutoImageProcessor.from_pretrained(directory)(image, return_tensors="pt").pixel_values).logits[0]


# --- the pipeline ----------------------------------------------------------------------------------------------------


def test_a_directory_classifies_pictures(tmp_path):
    model = saved(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    found = classify(picture(), top_k=3)
    shares = by_hand(tmp_path, model, picture()).softmax(dim=-1)
    assert [answer["label"] for answer in found] == [NAMES[i] for i in shares.argsort(descending=True).tolist()]
    assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(
        {NAMES[i]: share for i, share in enumerate(shares.tolist())}, abs=1e-5
    )
    assert len(classify(picture(), top_k=1)) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_is_classified_as_each_picture_alone(tmp_path, batch_size):
    saved(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    pictures = [picture(size=size, seed=i) for i, size in enumerate([(50, 40), (32, 32), (7, 90), (40, 50), (33, 31)])]
    together = classify(pictures, batch_size=batch_size, top_k=3)
    for image, found in zip(pictures, together, strict=True):
        for answer, alone in zip(found, classify(image, top_k=3), strict=True):
            assert answer["label"] == alone["label"]
            assert answer["score"] == pytest.approx(alone["score"], abs=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_any_mode_are_classified(tmp_path, mode):
    saved(tmp_path)
    found = pipeline("image-classification", model=str(tmp_path))(picture(mode), top_k=3)
    assert sum(answer["score"] for answer in found) == pytest.approx(1.0, abs=1e-5)


def test_a_picture_from_a_file(tmp_path):
    saved(tmp_path)
    picture().save(tmp_path / "noise.png")
    classify = pipeline("image-classification", model=str(tmp_path))
    assert classify(str(tmp_path / "noise.png")) == classify(picture())


@pytest.mark.parametrize("size", [{"height": 48, "width": 48}, {"height": 24, "width": 72}], ids=str)
def test_another_resolution_needs_no_flag(tmp_path, size):
    model = saved(tmp_path, size)
    found = pipeline("image-classification", model=str(tmp_path))(picture(), top_k=3)
    shares = by_hand(tmp_path, model, picture()).softmax(dim=-1)
    assert found[0]["score"] == pytest.approx(shares.max().item(), abs=1e-5)


def test_several_answers_and_numbers(tmp_path):
    model = saved(tmp_path, problem_type="multi_label_classification")
    found = pipeline("image-classification", model=str(tmp_path))(picture(), top_k=3)
    expected = by_hand(tmp_path, model, picture()).sigmoid()
    assert sorted(answer["score"] for answer in found) == pytest.approx(sorted(expected.tolist()), abs=1e-5)
    chosen = pipeline("image-classification", model=str(tmp_path), function_to_apply="none")(picture(), top_k=3)
    logits = by_hand(tmp_path, model, picture())
    assert sorted(answer["score"] for answer in chosen) == pytest.approx(sorted(logits.tolist()), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(tmp_path, dtype):
    saved(tmp_path)
    expected = pipeline("image-classification", model=str(tmp_path))(picture(), top_k=3)
    found = pipeline("image-classification", model=str(tmp_path), dtype=dtype)(picture(), top_k=3)
    shares = {answer["label"]: answer["score"] for answer in expected}
    assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(shares, abs=0.05)


def test_a_model_and_a_processor_that_are_there_already(tmp_path):
    model = saved(tmp_path)
    classify = pipeline("image-classification", model=model, image_processor=AttnViTImageProcessor(size=32))
    assert classify(picture()) == pipeline("image-classification", model=str(tmp_path))(picture())


def test_features_come_out_of_the_pipeline_for_them(tmp_path):
    model = saved(tmp_path)
    features = pipeline("image-feature-extraction", model=str(tmp_path))(picture())
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(picture(), return_tensors="pt").pixel_values
    with torch.no_grad():
        assert_close(torch.tensor(features), model.model(pixels).last_hidden_state, rtol=1e-4, atol=1e-5)


# --- the automatic classes -------------------------------------------------------------------------------------------


def test_the_automatic_classes_know_every_part(tmp_path):
    saved(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is AttnViTConfig
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), AttnViTImageProcessor)
    for automatic, model_class in (
        (AutoModel, AttnViTModel),
        (AutoModelForImageClassification, AttnViTForImageClassification),
        (AutoModelForMaskedImageModeling, AttnViTForMaskedImageModeling),
        (AutoBackbone, AttnViTBackbone),
    ):
        assert type(automatic.from_config(config)) is model_class
        if automatic is not AutoBackbone:  # asks the Hub even for a directory, for every model of transformers 5.24
            assert type(automatic.from_pretrained(tmp_path)) is model_class


def test_labels_keep_their_names(tmp_path):
    saved(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == NAMES
    assert config.label2id["noise"] == 2
    assert config.num_labels == 3


# --- Trainer ---------------------------------------------------------------------------------------------------------


def striped(label: int, seed: int) -> torch.Tensor:
    """(3, 32, 32): stripes across, stripes down, or noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 32, 32, generator=generator)
    stripes = torch.linspace(0, 20, 32).sin().expand(3, 32, 32) * 2
    return noise + (stripes.transpose(1, 2), stripes, torch.zeros(3, 32, 32))[label]


def test_trainer_learns_evaluates_saves_and_the_pipeline_reads_it(tmp_path):
    rows = [{"pixel_values": striped(i % 3, i), "labels": i % 3} for i in range(48)]
    config = tiny_vit(id2label=NAMES, pooling="mean").config
    torch.manual_seed(0)
    model = AttnViTForImageClassification(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        num_train_epochs=15,
        learning_rate=0.01,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )

    def accuracy(prediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    processor = AttnViTImageProcessor(size=32)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows[:24],
        compute_metrics=accuracy,
        processing_class=processor,
    )
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(np.log(3), abs=1e-4)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > 0.9
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    with torch.no_grad():
        assert_close(loaded(pixels).logits, model.eval()(pixels).logits)
    answer = pipeline("image-classification", model=str(tmp_path))(picture())[0]
    assert answer["label"] in NAMES.values()
