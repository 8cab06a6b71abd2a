"""Other people's checkpoints by their names on a Hub, here one on loopback, give transformers' numbers."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    DetrForObjectDetection,
    DetrImageProcessor,
    MarianMTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_attn import AttnViTForImageClassification
from hf_attn.interchange.checkpoints import BOT, BOTS_TITLE
from tests.foreign_detr import foreign_detr
from tests.loopback_hub import LoopbackHub
from tests.opus import marian_tokenizer, save_marian
from tests.test_hub import commands, run
from tests.tiny import randomise

pytestmark = pytest.mark.slow  # four processes
OPUS, VIT, DETR = "Helsinki-NLP/opus-mt-xx", "google/vit-tiny", "facebook/detr-x"
PICKLED, PICKLED_TOO = "Helsinki-NLP/opus-mt-old", "somebody/opus-mt-old"  # the one with an offer of the Hub's bot
SENTENCES = ["Der Hund läuft über die Straße.", "Wir fahren morgen mit dem Zug."]

LOAD = """
    import sys
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer
    from hf_attn import AttnDetrForObjectDetection, AttnViTForImageClassification
    from hf_attn import AttnTranslatorForConditionalGeneration as Translator
    from tests.test_interchange_hub import DETR, OPUS, PICKLED, PICKLED_TOO, SENTENCES, VIT, picture

    first, out = sys.argv[1:]
    found = {}
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(OPUS)(SENTENCES, padding=True, return_tensors="pt")
        found["ids"] = batch["input_ids"]
        found["translations"] = Translator.from_pretrained(OPUS).generate(**batch)
        for key, name, kind, revision in (
            ("vit", VIT, AttnViTForImageClassification, "main"),
            ("first vit", VIT, AttnViTForImageClassification, first),
            ("detr", DETR, AttnDetrForObjectDetection, "main"),
        ):
            pixels = AutoImageProcessor.from_pretrained(name, revision=revision)(picture(), return_tensors="pt")
            model = kind.from_pretrained(name, revision=revision).eval()
            found[key] = model(pixels["pixel_values"]).logits
    model = Translator.from_pretrained(PICKLED)
    found["offered"] = model.model.encoder.layers[0].feed_forward.up_proj.weight
    try:
        Translator.from_pretrained(PICKLED_TOO)
    except OSError as error:
        print(error)
    torch.save(found, out)
"""


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((48, 32)).convert("RGB")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """The checkpoints of these names in directories, and the first one that the ViT had."""
    root = tmp_path_factory.mktemp("foreign")
    save_marian(root / "opus")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    for seed, name in enumerate(("vit", "first vit")):
        vit = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, num_labels=4))
        randomise(vit, seed, std=0.1).save_pretrained(root / name)
        ViTImageProcessor(size=32, image_mean=[0.4, 0.5, 0.6 - 0.1 * seed]).save_pretrained(root / name)
    foreign_detr().save_pretrained(root / "detr")
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(root / "detr")
    return {OPUS: root / "opus", VIT: root / "vit", "first": root / "first vit", DETR: root / "detr"}


@pytest.fixture(scope="module")
def hub(places, tmp_path_factory):
    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in places[name].iterdir()}

    with LoopbackHub() as hub:
        for name in (OPUS, VIT, DETR, PICKLED, PICKLED_TOO):
            hub.create(name)
        hub.commit(VIT, files("first"))
        for name in (OPUS, VIT, DETR):
            hub.commit(name, files(name))
        weights = tmp_path_factory.mktemp("pickled") / "pytorch_model.bin"
        torch.save(load_file(places[OPUS] / "model.safetensors"), weights)
        for name, author in ((PICKLED, BOT), (PICKLED_TOO, "somebody")):
            safe = {"model.safetensors": (stored := files(OPUS)).pop("model.safetensors")}
            hub.commit(name, {**stored, weights.name: weights.read_bytes()})
            hub.offer(name, safe, BOTS_TITLE, author)
        yield hub


@torch.no_grad()
def test_numbers_tokens_and_pictures_are_transformers(hub, places, tmp_path):
    first = hub.history(VIT)[1]
    said = run(hub, tmp_path / "home", LOAD, first.sha, str(tmp_path / "found.pt"))
    found = torch.load(tmp_path / "found.pt")
    batch = marian_tokenizer(places[OPUS])(SENTENCES, padding=True, return_tensors="pt")
    assert torch.equal(found["ids"], batch["input_ids"])
    translator = MarianMTModel.from_pretrained(places[OPUS]).eval()
    assert torch.equal(found["translations"], translator.generate(**batch))
    for key, name, kind, processor in (
        ("vit", VIT, ViTForImageClassification, ViTImageProcessor),
        ("first vit", "first", ViTForImageClassification, ViTImageProcessor),
        ("detr", DETR, DetrForObjectDetection, DetrImageProcessor),
    ):
        pixels = processor.from_pretrained(places[name])(picture(), return_tensors="pt")["pixel_values"]
        expected = kind.from_pretrained(places[name]).eval()(pixels).logits
        assert_close(found[key], expected, rtol=0, atol=1e-5)
    assert (found["vit"] - found["first vit"]).abs().max() > 0.1
    assert torch.equal(found["offered"], translator.model.encoder.layers[0].fc1.weight)
    assert f"{PICKLED_TOO} has no weights as safetensors, only pickled ones" in said


@torch.no_grad()
def test_import_takes_a_name_and_a_revision(hub, places, tmp_path):
    first = hub.history(VIT)[1]
    lines = (f"hf-attn import {PICKLED_TOO} mt --quiet", f"hf-attn import {VIT} vit --revision {first.sha}")
    said = commands(hub, tmp_path, *lines)
    assert "mt: AttnTranslatorForConditionalGeneration" in said and "OpusTokenizer" in said
    assert "vit: AttnViTForImageClassification" in said and "AttnViTImageProcessor" in said
    pixels = torch.randn(1, 3, 32, 32)
    expected = ViTForImageClassification.from_pretrained(places["first"]).eval()(pixels).logits
    ours = AttnViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    assert_close(ours(pixels).logits, expected, rtol=0, atol=1e-5)
    assert f"base_model: {VIT}" in (tmp_path / "vit" / "README.md").read_text()
