"""What the graphs of our models give in onnxruntime, or another runtime, beside what the models give in PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_attn.interchange.onnx_graphs import stride

TOLERANCE = 1e-4  # of the larger of 1 and the largest output

Tensors = Mapping[str, torch.Tensor]
Run = Callable[[str, Tensors], dict[str, np.ndarray]]  # name of a graph, inputs → outputs
Compared = Iterator[tuple[str, torch.Tensor, np.ndarray]]  # what it is, of the model, of the graph


def largest_difference(compared: Compared, library: str = "ONNX", makers: str = "onnxruntime and onnxscript") -> float:
    """Of all that is compared, each divided by its largest value, where that is above 1.

    Args:
        library: what the graphs are of.
        makers: the packages that make and run them.

    Raises:
        ValueError: if it is more than 1e-4, or shapes differ.
    """
    worst = 0.0
    for what, expected, found in compared:
        if tuple(expected.shape) != found.shape:
            raise ValueError(f"{what} are {found.shape} in {library} and {tuple(expected.shape)} in PyTorch")
        largest = max(1.0, float(expected.abs().max()))
        difference = float((torch.from_numpy(found) - expected).abs().max()) / largest
        if not difference <= TOLERANCE:  # nor NaN
            raise ValueError(
                f"{what} differ by {difference:.1e} between {library} and PyTorch, more than {TOLERANCE:.0e}; other "
                f"releases of {makers} may do better"
            )
        worst = max(worst, difference)
    return worst


class Sessions:
    """Runs the graphs of a directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.opened: dict[str, Any] = {}

    def run(self, name: str, inputs: Tensors) -> dict[str, np.ndarray]:
        import onnxruntime

        if name not in self.opened:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors
            self.opened[name] = onnxruntime.InferenceSession(
                str(self.directory / name), options, providers=["CPUExecutionProvider"]
            )
        session = self.opened[name]
        names = [output.name for output in session.get_outputs()]
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return dict(zip(names, session.run(names, given), strict=True))


def compare_translator(model: Any, run: Run) -> Compared:
    """Token after token beside all at once; sources with and without padding."""
    config, random = model.config, torch.Generator().manual_seed(0)
    for batch, longest, words in ((3, 7, 4), (1, 12, 6)):
        ids = torch.randint(config.vocab_size, (batch, longest), generator=random)
        lengths = torch.arange(longest, longest - 2 * batch, -2)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        target = torch.randint(config.target_vocab_size, (batch, words), generator=random)
        expected = model(ids, mask, target)
        encoded = run("encoder.onnx", {"input_ids": ids, "attention_mask": mask})
        visible = mask[..., None]  # what padding reads matters to nobody
        memory = encoded.pop("last_hidden_state")
        yield "memories", expected.encoder_last_hidden_state * visible, memory * visible.numpy()
        logits = _decode(run, config, target, mask, encoded)
        yield f"logits of {words} tokens", expected.logits, logits


def _decode(run: Run, config: Any, target: torch.Tensor, mask: torch.Tensor, encoded: dict[str, np.ndarray]):
    """(batch, words, vocabulary) logits, one token after the other."""
    memory = {name.replace("present", "past_key_values"): torch.from_numpy(keys) for name, keys in encoded.items()}
    heads = config.num_attention_heads
    nothing = torch.zeros(len(target), heads, 0, config.hidden_size // heads)
    past = {name.replace("encoder", "decoder"): nothing for name in memory}
    logits = []
    for word in target.unbind(1):
        outputs = run("decoder.onnx", {"input_ids": word[:, None], "encoder_attention_mask": mask, **past, **memory})
        logits.append(outputs.pop("logits"))
        past = {name.replace("present", "past_key_values"): torch.from_numpy(keys) for name, keys in outputs.items()}
    return np.concatenate(logits, axis=1)


def compare_vit(model: Any, run: Run) -> Compared:
    config = model.config
    (rows, columns), (height, width) = config.grid_shape, config.patch_shape
    sizes = [(rows * height, columns * width), ((rows + 1) * height, (columns + 3) * width)]
    for pixels in _pictures(config.num_channels, sizes):
        expected = model(pixels)
        for name, found in run("model.onnx", {"pixel_values": pixels}).items():
            yield f"{name} of pictures {tuple(pixels.shape)}", expected[name], found


def compare_detr(model: Any, run: Run) -> Compared:
    backbone = model.model.backbone
    height, width = backbone.body.config.patch_shape if backbone.is_vit else (stride(backbone),) * 2
    part = 1 if backbone.is_vit else 2  # a picture need not end where a cell of the feature map does
    sizes = [(4 * height, 5 * width), (4 * height + height // part, 2 * width + width // part)]
    for pixels in _pictures(model.config.num_channels, sizes):
        expected = model(pixels)
        mask = torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long)
        for name, found in run("model.onnx", {"pixel_values": pixels, "pixel_mask": mask}).items():
            yield f"{name} of pictures {tuple(pixels.shape)}", expected[name], found


def _pictures(channels: int, sizes: Iterable[tuple[int, int]]) -> Iterator[torch.Tensor]:
    """One picture of the first size, three of the second: normalised pixels, as good as any."""
    random = torch.Generator().manual_seed(0)
    for batch, size in zip((1, 3), sizes, strict=True):
        yield torch.randn(batch, channels, *size, generator=random)
