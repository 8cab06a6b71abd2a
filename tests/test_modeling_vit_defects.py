"""What goes wrong with transformers 5.24's own ViT, in silence or with a crash, goes right here: one test a defect.

Each test's comment says what happens there.
"""

import math

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, mse_loss
from torch.testing import assert_close
from transformers import AutoModel, Trainer, TrainingArguments, pipeline

from hf_attn import (
    AttnViTBackbone,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTImageProcessor,
    record_attention,
)
from tests.tiny import randomise, tiny_vit

LABELS = torch.tensor([2, 0])
SHARES = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])


def pictures(height: int = 32, width: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# --- attention -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_asked_for_under_sdpa_is_there():
    # there: an empty tuple and a warning
    model = tiny_vit()
    assert model.config._attn_implementation == "sdpa"
    attentions = model(pictures(), output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(2, 2, 17, 17)] * 2


@torch.no_grad()
def test_the_last_layer_s_attention_alone_can_be_had():
    # there: all layers, all heads and all queries, or none
    model = tiny_vit(num_hidden_layers=3)
    whole = model(pictures(), output_attentions=True).attentions
    with record_attention(model, layers=[-1], heads=[1], queries=[0]) as record:
        model(pictures())
    ((row,),) = record.maps.values()
    assert row.shape == (2, 1, 1, 17)
    assert_close(row, whole[-1][:, 1:2, :1])


def test_heads_that_do_not_divide_the_width_are_refused():
    # there: 5 heads on 32 become a 30-dimensional attention
    with pytest.raises(ValueError, match="hidden_size 32 is not a multiple of num_attention_heads 5"):
        AttnViTConfig(hidden_size=32, num_attention_heads=5)


@torch.no_grad()
def test_compiled_as_a_whole_the_first_call_may_ask_for_hidden_states():
    # there: an unsupported lock, taken when the first call installs the hooks
    torch.compiler.reset()
    model = tiny_vit(num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = compiled(pictures(), output_hidden_states=True).hidden_states
    assert_close(found, model(pictures(), output_hidden_states=True).hidden_states)


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (48, 48)], ids=str)
@torch.no_grad()
def test_a_rectangular_native_size_is_resampled(size):
    # there: RuntimeError, even at the native size
    model = tiny_vit(image_size=[32, 64])
    logits = model(pictures(*size)).logits
    if size == (32, 64):
        positions = model.model.embeddings.positions
        patches = model.model.embeddings.patch_embedding(pictures(*size)).flatten(2).transpose(1, 2)
        tokens = model.model.embeddings(pictures(*size))[:, 1:]
        assert_close(tokens, patches + positions.flatten(0, 1))
    assert logits.isfinite().all()


@torch.no_grad()
def test_a_patch_size_in_a_list_is_resampled():
    # there: TypeError, an integer divided by a list
    listed, plain = tiny_vit(patch_size=[8, 8]), tiny_vit(patch_size=8)
    assert torch.equal(listed(pictures(48, 24)).logits, plain(pictures(48, 24)).logits)


def test_a_size_that_the_patch_does_not_divide_is_refused():
    # there: the rest is cut off
    with pytest.raises(ValueError, match=r"44x50 .* is not a multiple of patch_size 8x8"):
        tiny_vit()(pictures(44, 50))


def test_a_native_size_that_the_patch_does_not_divide_is_refused():
    # there: the rest is cut off
    with pytest.raises(ValueError, match=r"image_size 30x30 .* is not a multiple of patch_size 8x8"):
        AttnViTConfig(image_size=30, patch_size=8)


@pytest.mark.parametrize("size", [(48, 48), (32, 64), (16, 24)], ids=str)
def test_masked_image_modelling_at_another_size(size):
    # there: RuntimeError; and rectangular, at any size
    model = randomise(AttnViTForMaskedImageModeling(tiny_vit().config))
    masked = torch.arange(size[0] * size[1] // 64).remainder(2).bool().expand(2, -1)
    outputs = model(pictures(*size), bool_masked_pos=masked)
    outputs.loss.backward()
    assert outputs.reconstruction.shape == (2, 3, *size)
    assert model.model.embeddings.positions.grad.abs().sum() > 0


def test_the_pipeline_classifies_at_another_size(tmp_path):
    # there: it takes no flag to resample by, and without the flag the model refuses the size
    model = tiny_vit()
    processor = AttnViTImageProcessor(size={"height": 48, "width": 64})
    image = Image.linear_gradient("L").convert("RGB")
    found = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=3)
    with torch.no_grad():
        shares = model(processor(image, return_tensors="pt").pixel_values).logits.softmax(dim=-1)
    assert found[0]["score"] == pytest.approx(shares.max().item(), abs=1e-5)


def test_another_size_in_the_config_does_not_begin_positions_anew(tmp_path):
    # there: a mismatch, and with ignore_mismatched_sizes a random start
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    loaded = AttnViTForImageClassification.from_pretrained(tmp_path, image_size=48, ignore_mismatched_sizes=True)
    assert_close(loaded(pictures(48, 48)).logits, model(pictures(48, 48)).logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_half_precision_does_not_coarsen_the_resampling():
    # there: positions are resampled in the precision of the weights
    model = tiny_vit(num_hidden_layers=1)
    half = tiny_vit(num_hidden_layers=1).bfloat16()
    embeddings, halved = model.model.embeddings, half.model.embeddings
    for layer in (embeddings, halved):
        layer.patch_embedding.weight.zero_()
        layer.patch_embedding.bias.zero_()
    embeddings.positions.copy_(halved.positions)
    exact = embeddings(pictures(48, 24))[:, 1:]
    assert torch.equal(halved(pictures(48, 24))[:, 1:], exact.bfloat16())


@torch.no_grad()
def test_a_model_loaded_for_a_size_is_exported_without_resampling(tmp_path):
    # there: the resampling goes into the graph, and exporters stumble over it
    tiny_vit().save_pretrained(tmp_path)
    model = AttnViTForImageClassification.from_pretrained(tmp_path, image_size=48)
    graph = torch.export.export(model, (pictures(48, 48),)).graph
    assert not any("bicubic" in str(node.target) for node in graph.nodes)


# --- loss ------------------------------------------------------------------------------------------------------------


def test_soft_labels_are_cross_entropy():
    # there: binary cross-entropy, and the config says multi-label from then on
    model = tiny_vit()
    outputs = model(pictures(), labels=SHARES)
    assert_close(outputs.loss, cross_entropy(outputs.logits, SHARES))
    assert model.config.problem_type is None
    assert_close(model(pictures(), labels=LABELS).loss, cross_entropy(outputs.logits, LABELS))


def test_soft_labels_of_a_single_label_problem():
    # there: ValueError
    outputs = tiny_vit(problem_type="single_label_classification")(pictures(), labels=SHARES)
    assert_close(outputs.loss, cross_entropy(outputs.logits, SHARES))


def test_integer_labels_for_one_output_are_asked_about():
    # there: squared error between the logit and the number of the class
    with pytest.raises(ValueError, match=r"integer labels for a model of 1 output: .* set num_labels .* regression"):
        tiny_vit(num_labels=1)(pictures(), labels=torch.tensor([0, 1]))
    model = tiny_vit(num_labels=1)
    outputs = model(pictures(), labels=torch.tensor([0.0, 1.0]))
    assert_close(outputs.loss, mse_loss(outputs.logits.squeeze(1), torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("multi_label_classification", torch.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]] + torch.eye(3)[[1] * 8] > 0),
        ("regression", torch.linspace(-2, 2, 24).reshape(8, 3)),
    ],
)
def test_accumulated_gradients_are_not_too_large(tmp_path, problem_type, labels):
    # there: as many times too large as batches are accumulated
    rows = [{"pixel_values": pictures(batch=8)[i], "labels": labels[i].float()} for i in range(8)]
    norms = []
    for batch, accumulation in ((8, 1), (2, 4)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(tiny_vit(problem_type=problem_type), arguments, train_dataset=rows)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_a_class_name_does_not_choose_the_loss():
    # there: a class whose name lacks "ForImageClassification" gets the loss of a language model
    class Judge(AttnViTForImageClassification):
        pass

    torch.manual_seed(0)
    outputs = Judge(tiny_vit().config)(pictures(), labels=LABELS)
    assert_close(outputs.loss, cross_entropy(outputs.logits, LABELS))


# --- weights ---------------------------------------------------------------------------------------------------------


def test_nothing_in_the_base_model_of_a_classifier_is_untrained(tmp_path):
    # there: an untrained pooler, which only the loading report mentions
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    base, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert_close(model.classifier(base(pictures()).pooler_output), model(pictures()).logits)


def test_norms_have_the_epsilon_of_the_originals():
    # there: 1e-12, which half precision rounds to zero
    assert AttnViTConfig().layer_norm_eps == 1e-6
    norms = [m for m in tiny_vit(query_key_norm=True).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    blank = torch.zeros(1, 3, 32, 32, dtype=torch.float16)
    assert AttnViTForImageClassification(tiny_vit().config).half().eval()(blank).logits.isfinite().all()


def test_drop_path_is_a_field():
    # there: none
    rates = [layer.drop_path.rate for layer in tiny_vit(num_hidden_layers=3, drop_path_rate=0.2).model.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@torch.no_grad()
def test_there_is_a_backbone_and_it_loads_from_a_directory(tmp_path):
    # there: none for the plain ViT; AutoBackbone asks the Hub for a local path, for any model
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    backbone = AttnViTBackbone.from_pretrained(tmp_path, out_features=["stage1", "stage2"])
    maps = backbone(pictures(24, 48)).feature_maps
    assert [features.shape for features in maps] == [(2, 16, 3, 6)] * 2
    patches = model.model(pictures(24, 48)).last_hidden_state[:, 1:]
    assert_close(maps[1].flatten(2).transpose(1, 2), patches)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_a_picture_of_another_mode_is_converted(mode):
    # there: ValueError about the number of means
    grey = Image.linear_gradient("L")
    pixels = AttnViTImageProcessor(size=32)(grey.convert(mode), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, 0, 0].mean() < -0.8 and pixels[0, 0, -1].mean() > 0.8  # black above, white below


def test_floats_from_zero_to_one_are_not_scaled_again():
    # there: divided by 255 once more, so that every picture is nearly black
    values = torch.linspace(0, 1, 32 * 32).reshape(32, 32).expand(3, 32, 32)
    pixels = AttnViTImageProcessor(size=32)(values, return_tensors="pt").pixel_values
    assert_close(pixels[0], values * 2 - 1, rtol=0, atol=2 / 255)
    assert math.isclose(pixels.std(), 2 * values.std(), rel_tol=0.01)
