"""timm reads Google's .npz files by itself, into its own model, and is the reference here."""

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo

from hf_attn import AttnViTConfig, AttnViTForImageClassification, AttnViTImageProcessor
from hf_attn.interchange.files import read_file
from hf_attn.interchange.importing import import_checkpoint
from hf_attn.interchange.vit_jax import JAX_FILE, processor_settings
from hf_attn.positions import grid_sinusoids
from tests.twins_vit import difference, pictures

WIDTH, HEADS, WIDE, LAYERS, PATCH, GRID = 24, 3, 40, 11, 8, 4  # eleven layers: numbers of two digits
SHAPE = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": LAYERS, "mlp_ratio": WIDE / WIDTH, "act_layer": "gelu_tanh"}
SHAPE |= {"img_size": GRID * PATCH, "patch_size": PATCH, "num_classes": 7}
PAPER = (1, 2, 3)  # how flax numbers attention, second norm and feed-forward layer
BIG_VISION = (0, 1, 0)


def attention(name: str) -> dict[str, tuple[int, ...]]:
    parts = {f"{name}/{part}/kernel": (WIDTH, HEADS, WIDTH // HEADS) for part in ("query", "key", "value")}
    parts |= {f"{name}/{part}/bias": (HEADS, WIDTH // HEADS) for part in ("query", "key", "value")}
    return {**parts, f"{name}/out/kernel": (HEADS, WIDTH // HEADS, WIDTH), f"{name}/out/bias": (WIDTH,)}


def feed_forward(name: str) -> dict[str, tuple[int, ...]]:
    kernels = {f"{name}/Dense_0/kernel": (WIDTH, WIDE), f"{name}/Dense_1/kernel": (WIDE, WIDTH)}
    return {**kernels, f"{name}/Dense_0/bias": (WIDE,), f"{name}/Dense_1/bias": (WIDTH,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}


def shapes(numbers: tuple[int, int, int], class_token: bool = True, map_head: bool = False) -> dict:
    """Google's names with their shapes."""
    names = {"embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,)}
    names |= {"head/kernel": (WIDTH, 7), "head/bias": (7,), **norm("Transformer/encoder_norm")}
    names |= {"cls": (1, 1, WIDTH)} if class_token else {}
    if map_head:
        names |= {"MAPHead_0/probe": (1, 1, WIDTH), **attention("MAPHead_0/MultiHeadDotProductAttention_0")}
        names |= {**norm("MAPHead_0/LayerNorm_0"), **feed_forward("MAPHead_0/MlpBlock_0")}
    places = ("pos_embedding", GRID**2) if numbers == BIG_VISION else ("Transformer/posembed_input/pos_embedding", 17)
    names[places[0]] = (1, places[1], WIDTH)
    for layer in range(LAYERS):
        block, (first, second, third) = f"Transformer/encoderblock_{layer}", numbers
        names |= {**norm(f"{block}/LayerNorm_0"), **norm(f"{block}/LayerNorm_{second}")}
        names |= attention(f"{block}/MultiHeadDotProductAttention_{first}") | feed_forward(f"{block}/MlpBlock_{third}")
    return names


def arrays(names: dict, prefix: str = "") -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {prefix + name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in names.items()}


def in_one_piece(apart: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As big_vision's `scan` stores its layers."""
    first = [name for name in apart if "encoderblock_0/" in name]
    stacked = {
        name.replace("_0/", "/", 1): np.stack([apart[name.replace("_0/", f"_{n}/", 1)] for n in range(LAYERS)])
        for name in first
    }
    return {name: array for name, array in apart.items() if "encoderblock_" not in name} | stacked


def of_google(path) -> AttnViTForImageClassification:
    tensors = read_file(path)
    assert JAX_FILE.recognise(tensors)
    ours = AttnViTForImageClassification(AttnViTConfig(**JAX_FILE.configure(tensors))).eval()
    ours.load_state_dict(JAX_FILE.table(ours.config, tensors).take(tensors))
    return ours


GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
FILES = {
    "the paper's": (arrays(shapes(PAPER)), {}),
    "a checkpoint of training": (arrays(shapes(PAPER), "opt/target/"), {}),
    "big_vision": (arrays(shapes(BIG_VISION), "params/"), {"no_embed_class": True}),
    "big_vision, mean": (arrays(shapes(BIG_VISION, class_token=False), "params/"), GAP),
    "big_vision, attention": (
        arrays(shapes(BIG_VISION, class_token=False, map_head=True), "params/"),
        {"class_token": False, "global_pool": "map"},
    ),
    "big_vision, in one piece": (in_one_piece(arrays(shapes(BIG_VISION, class_token=False), "params/")), GAP),
}


@pytest.mark.parametrize("name", FILES)
def test_files_give_the_logits_that_they_give_in_timm(name, tmp_path):
    stored, arguments = FILES[name]
    np.savez(tmp_path / "weights.npz", **stored)
    theirs = timm.create_model("vit_base_patch16_224", **SHAPE, **arguments).eval()
    with torch.no_grad():
        theirs.load_pretrained(str(tmp_path / "weights.npz"))
    assert difference(of_google(tmp_path / "weights.npz")(pictures()).logits, theirs(pictures())) < 1e-5


def test_there_and_back_nothing_changes(tmp_path):
    for stored, _ in FILES.values():
        np.savez(tmp_path / "weights.npz", **stored)
        ours = of_google(tmp_path / "weights.npz")
        tensors = read_file(tmp_path / "weights.npz")
        given = JAX_FILE.table(ours.config, tensors).give(ours.state_dict())
        assert given.keys() == tensors.keys()
        assert all(torch.equal(given[name], tensors[name]) for name in tensors)


def test_layers_in_one_piece_can_be_saved(tmp_path):
    stored, _ = FILES["big_vision, in one piece"]
    np.savez(tmp_path / "weights.npz", **stored)
    import_checkpoint(tmp_path / "weights.npz", tmp_path / "ours")
    ours = AttnViTForImageClassification.from_pretrained(tmp_path / "ours")
    assert difference(ours(pictures()).logits, of_google(tmp_path / "weights.npz")(pictures()).logits) == 0


def test_arrays_are_read_when_they_are_looked_at_the_largest_first(tmp_path):
    stored = {"few": np.arange(3.0), "many": np.arange(9.0), "objects": np.array([{}, {}])}
    np.savez(tmp_path / "weights.npz", **stored)
    tensors = read_file(tmp_path / "weights.npz")
    assert [name for name in tensors if name != "objects"] == ["many", "few"]
    assert tensors["many"].tolist() == stored["many"].tolist() and tensors["many"] is not tensors["many"]
    with pytest.raises(ValueError, match=r"weights.npz is damaged, or holds more than arrays"):
        tensors["objects"]
    with pytest.raises(KeyError, match="none"):
        tensors["none"]
    content = bytearray((tmp_path / "weights.npz").read_bytes())
    content[content.index(stored["many"].tobytes())] ^= 1
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.npz is damaged, or holds more than arrays \(Bad CRC-32"):
        tensors["many"]


def test_without_positions_they_are_sinusoids(tmp_path):
    """As in "Better plain ViT baselines", which stores none."""
    names = shapes(BIG_VISION, class_token=False)
    del names["pos_embedding"]
    stored = arrays(names, "params/")
    np.savez(tmp_path / "weights.npz", **stored)
    ours = of_google(tmp_path / "weights.npz")
    assert ours.config.position_embedding == "sinusoids"
    sinusoids = grid_sinusoids(GRID, GRID, WIDTH).flatten(0, 1)[None].numpy()
    np.savez(tmp_path / "weights.npz", **stored, **{"params/pos_embedding": sinusoids})
    learned = of_google(tmp_path / "weights.npz")
    assert difference(ours(pictures()).logits, learned(pictures()).logits) < 1e-5


def test_a_layer_under_the_head_is_left_aside_with_the_head(tmp_path, caplog):
    names = {**shapes(PAPER), "pre_logits/kernel": (WIDTH, WIDTH), "pre_logits/bias": (WIDTH,)}
    np.savez(tmp_path / "weights.npz", **arrays(names))
    tensors = read_file(tmp_path / "weights.npz")
    config = AttnViTConfig(**JAX_FILE.configure(tensors))
    taken = JAX_FILE.table(config, tensors).take(tensors)
    assert not any(name.startswith("classifier") for name in taken) and config.num_labels == 2
    assert "pre_logits, a layer under the head, and the head are left aside" in caplog.text


def test_hybrids_and_rectangles_are_refused():
    tensors = {name: torch.from_numpy(array) for name, array in arrays(shapes(PAPER)).items()}
    with pytest.raises(ValueError, match=r"a hybrid, with a ResNet \(conv_root\) below"):
        JAX_FILE.configure({**tensors, "conv_root/kernel": torch.zeros(1)})
    places = "Transformer/posembed_input/pos_embedding"
    with pytest.raises(ValueError, match="15 positions of patches are no square"):
        JAX_FILE.configure({**tensors, places: torch.zeros(1, 16, WIDTH)})
    assert not JAX_FILE.recognise({"cls": torch.zeros(1)})


def test_a_thousand_classes_are_imagenets_and_pictures_are_the_papers():
    tensors = {name: torch.from_numpy(array) for name, array in arrays(shapes(PAPER)).items()}
    said = JAX_FILE.configure({**tensors, "head/bias": torch.zeros(1000)})
    assert list(said["id2label"].values()) == ImageNetInfo().label_descriptions()
    settings = processor_settings(AttnViTConfig())
    assert AttnViTImageProcessor(**settings).to_dict() == AttnViTImageProcessor().to_dict()
