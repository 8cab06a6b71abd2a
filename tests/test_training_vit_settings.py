"""Settings follow from the preset, each can be changed, and data are known again by what they hold."""

from dataclasses import asdict

import datasets
import pytest

from hf_attn import AttnViTForImageClassification
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.training.vit_settings import PRESETS, ViTSettings, check_picture_data, picture_fingerprint
from tests.shapes import SHAPES, pictures, pictures_of_several
from tests.tiny import tiny_vit

FROM_SCRATCH = ["tiny", "small", "big_vision_s16"]


@pytest.mark.parametrize("preset", FROM_SCRATCH)
def test_every_preset_is_a_model_with_a_source(preset):
    made = ViTSettings(preset=preset)
    config = made.configuration(SHAPES, multi_label=False)
    assert config.num_labels == 3 and config.label2id["cross"] == 2
    assert made.num_train_epochs == PRESETS[preset].settings["num_train_epochs"]
    assert config.drop_path_rate == made.drop_path_rate and config.label_smoothing == made.label_smoothing
    AttnViTImageProcessor(size=config.image_size, **PRESETS[preset].processor)
    assert len(PRESETS[preset].source) > 20


def test_big_vision_s16_is_the_papers():
    made = ViTSettings(preset="big_vision_s16")
    config = made.configuration([str(number) for number in range(1000)], multi_label=False)
    parameters = made.count_weights(datasets.DatasetDict(train=pictures(3)))
    assert parameters == AttnViTForImageClassification(made.configuration(SHAPES, False)).num_parameters()
    # The paper's S/16 has 22 million weights; big_vision's decay of 1e-4 is not multiplied by the learning rate
    assert parameters + 385 * 997 == pytest.approx(22e6, rel=0.01)
    assert made.weight_decay * made.learning_rate == pytest.approx(1e-4)
    assert (config.pooling, config.position_embedding, made.randaugment, made.mixup) == (
        "mean",
        "sinusoids",
        (2, 10),
        0.2,
    )


def test_what_is_given_goes_before_the_preset():
    made = ViTSettings(
        preset="small", image_size=64, patch_size=8, mixup=0.0, model_config={"hidden_size": 128}, max_steps=3
    )
    config = made.configuration(SHAPES, multi_label=True)
    assert (config.image_size, config.patch_size, config.hidden_size) == (64, 8, 128)
    assert config.num_hidden_layers == 7 and config.problem_type == "multi_label_classification"
    assert made.mixup == 0 and made.cutmix == 1 and made.num_train_epochs is None


def test_settings_filled_in_are_settings_again():
    made = ViTSettings(preset="small", image_size=[32, 64])
    assert ViTSettings(**asdict(made)) == made and made.image_size == (32, 64)


def test_a_base_model_keeps_its_shape_but_for_what_is_asked(tmp_path):
    tiny_vit(pooling="mean").save_pretrained(tmp_path)
    made = ViTSettings(preset="higher_resolution", base_model=tmp_path, image_size=64)
    config = made.configuration(["a", "b"], multi_label=False)
    assert (config.hidden_size, config.pooling, config.image_size, config.num_labels) == (16, "mean", 64, 2)
    assert config.drop_path_rate == 0.1 and made.layer_decay == 0.75
    assert ViTSettings(preset="small", base_model=tmp_path).configuration(SHAPES, False).image_size == 32
    assert ViTSettings(preset="small", base_model=tmp_path, freeze_body=True).drop_path_rate == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "higher_resolution"}, "goes on from a trained model; give base_model"),
        ({"preset": "fine_tuning"}, "goes on from a trained model; give base_model"),
        ({"freeze_body": True}, "freeze_body without base_model would leave the body as random as it begins"),
        ({"crop": "centre"}, "crop 'centre' is unknown; use inception, pad, none"),
        ({"in_memory": "yes"}, "in_memory 'yes' is unknown"),
        ({"in_memory": True}, "in_memory needs crop 'pad' or 'none' and no randaugment"),
        ({"rotation": 10}, "rotation and zoom are for pictures in memory, without randaugment or crop 'inception'"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is not below 1"),
        ({"mixup": -0.1}, "mixup -0.1 is below 0"),
        ({"batch_size": 0}, "batch_size 0 is not above 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan is not above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTSettings(**{"preset": "small", **changes})


def test_the_fingerprint_is_that_of_pictures_and_labels_in_their_order(tmp_path):
    data = pictures(4)
    one = picture_fingerprint(data)
    assert one == picture_fingerprint(pictures(4).remove_columns("index"))
    others = [
        data.select([1, 0, 2, 3]),
        data.select(range(3)),
        pictures(4, 1),
        pictures(4, names=("square", "disc", "cross")),
    ]
    assert len({one, *map(picture_fingerprint, others)}) == 5


def test_files_are_known_by_name_and_size(tmp_path):
    def only_paths() -> datasets.Dataset:
        paths = [str(tmp_path / f"{number}.png") for number in range(3)]
        columns = {"image": paths, "label": [0, 1, 2]}
        return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())

    for number, image in enumerate(pictures(3)["image"]):
        image.save(tmp_path / f"{number}.png")
    one = picture_fingerprint(only_paths())
    assert one == picture_fingerprint(only_paths())
    with (tmp_path / "1.png").open("ab") as file:
        file.write(b"more")
    changed = picture_fingerprint(only_paths())
    (tmp_path / "1.png").unlink()
    assert len({one, changed, picture_fingerprint(only_paths())}) == 3


def test_splits_of_different_kinds_are_refused():
    data = datasets.DatasetDict(train=pictures(6), test=pictures_of_several(7))
    with pytest.raises(
        ValueError, match="a picture of the test split has a list of classes, one of the train split one"
    ):
        check_picture_data(data, ViTSettings(preset="tiny"))


def test_a_base_model_is_fine_tuned_gently_unless_another_preset_is_chosen(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    assert ViTSettings().preset == "small"
    made = ViTSettings(base_model=tmp_path)
    assert (made.preset, made.mixup, made.cutmix, made.randaugment, made.layer_decay) == (
        "fine_tuning",
        0,
        0,
        (0, 0),
        0.75,
    )
    assert ViTSettings(base_model=tmp_path, preset="tiny").preset == "tiny"
