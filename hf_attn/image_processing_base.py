"""What the image processors of this package have in common: settings, reading, and values that a model wants."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from .image_processing_inputs import Picture, list_pictures, read_picture
from .image_processing_resize import RESAMPLING

BOOKKEEPING = ("auto_map", "feature_extractor_type", "image_processor_type", "processor_class")  # in files beside them


class PictureProcessor(BaseImageProcessor):
    """A base: reads pictures of any kind, and brings values to 0..1 and to mean 0 and deviation 1.

    A subclass has `settings`, the names of all its own, each an argument and an attribute; `name`, that of its PIL
    backend, which files name; and `backends`, for AutoImageProcessor.
    """

    settings: tuple[str, ...] = ()
    name = ""
    backend = "pil"
    translations = ""  # where settings of other libraries' processors are understood, for an error
    # Reads the settings of another library's repository that has no file of them; only the package itself has it
    load_foreign: ClassVar[Callable[..., dict[str, Any] | None] | None] = None

    def __init__(self, bookkeeping: dict[str, Any]) -> None:
        super().__init__()
        unknown = sorted(set(bookkeeping) - set(BOOKKEEPING))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no setting {', '.join(unknown)}; it has {', '.join(self.settings)}"
                f"{self.translations}"
            )

    def set_values(
        self,
        do_resize: bool,
        resample: int | str,
        do_rescale: bool,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        num_channels: int,
        background: Sequence[int] | None,
    ) -> None:
        """Check and keep the settings that all processors have.

        Raises:
            ValueError: for a setting that is unknown or out of range.
        """
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels {num_channels!r} must be 3 for RGB or 1 for grey")
        self.do_resize = choice("do_resize", do_resize, (True, False))
        self.resample = _resampling(resample)
        self.do_rescale = choice("do_rescale", do_rescale, (True, False))
        self.do_normalize = choice("do_normalize", do_normalize, (True, False))
        self.image_mean = _by_channel("image_mean", image_mean, num_channels)
        self.image_std = _by_channel("image_std", image_std, num_channels)
        if not all(deviation > 0 for deviation in self.image_std):
            raise ValueError(f"image_std {self.image_std} must be above 0: values are divided by it")
        self.num_channels = num_channels
        self.background = _background(background)

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> Any:
        """One that does the same as a processor of transformers, of which these are the settings.

        Raises:
            ValueError: for a setting that cannot be expressed.
        """
        raise NotImplementedError

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What preprocessor_config.json holds, or what another library says elsewhere; and the other `kwargs`."""
        try:
            return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            settings = None if cls.load_foreign is None else cls.load_foreign(pretrained_model_name_or_path, **kwargs)
            if settings is None:
                raise
            return settings, {name: value for name, value in kwargs.items() if name in cls.settings}

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Built from what a file holds, ours or one of transformers' own, with the settings in `kwargs` instead.

        Called by `from_pretrained`; other `kwargs` are not ours, and `return_unused_kwargs=True` gives them back.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        stored = image_processor_dict
        kind = stored.get("image_processor_type") or stored.get("feature_extractor_type") or cls.name
        changes = {name: kwargs.pop(name) for name in cls.settings if name in kwargs}
        if kind == cls.name:
            processor = cls(**{**stored, **changes})
        else:
            processor = cls.from_transformers(stored)
            processor = processor.changed(changes) if changes else processor
        return (processor, kwargs) if return_unused else processor

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds. It names one class whatever the backend, which the reader chooses."""
        stored = {name: getattr(self, name) for name in self.settings}
        stored["resample"] = int(self.resample)
        stored["image_processor_type"] = self.name
        if self._auto_class is not None:  # set by register_for_auto_class: the code is saved beside the file
            module = type(self).__module__.rsplit(".", 1)[-1]
            stored["auto_map"] = {
                self._auto_class: {name: f"{module}.{kind.__name__}" for name, kind in self.backends().items()}
            }
        return stored

    @classmethod
    def backends(cls) -> Mapping[str, type]:
        """The classes for AutoImageProcessor, by the name of the backend."""
        return {"pil": cls}

    def changed(self, settings: dict[str, Any]) -> Any:
        """This processor with some settings changed."""
        return type(self)(**{**{name: getattr(self, name) for name in self.settings}, **settings})

    def read(self, images: Any, input_data_format: str | None) -> list[Picture]:
        """The pictures in one, in a batch or in lists, upright, in `num_channels` channels."""
        return [
            self._checked(read_picture(image, self.num_channels, self.background, input_data_format))
            for image in list_pictures(images)
        ]

    def _checked(self, picture: Picture) -> Picture:
        levels = isinstance(picture, Image.Image) or picture.dtype == torch.uint8
        if levels and not self.do_rescale:
            raise ValueError(
                "do_rescale=False takes pictures that are floats in [0, 1] already, and this one has grey levels 0 to "
                "255; leave do_rescale as it is (True), which does not rescale floats in [0, 1] again"
            )
        return picture

    def _standardized(self, pictures: list[torch.Tensor], device: str | torch.device | None) -> Any:
        """Float32 values: one batch where all pictures have one shape, else a list."""
        groups = same_shape(pictures)
        standardized: list[torch.Tensor] = list(pictures)
        for places in groups:
            batch = torch.stack([pictures[place] for place in places]).to(device)
            batch = batch.float().div_(255) if batch.dtype == torch.uint8 else batch
            if self.do_normalize:
                mean = torch.tensor(self.image_mean, device=batch.device).view(-1, 1, 1)
                std = torch.tensor(self.image_std, device=batch.device).view(-1, 1, 1)
                batch = batch.sub_(mean).div_(std)
            if len(groups) == 1:
                return batch
            for place, picture in zip(places, batch, strict=True):
                standardized[place] = picture
        return standardized


def same_shape(pictures: Sequence[torch.Tensor]) -> list[list[int]]:
    """The places of the pictures that can be stacked, group by group."""
    groups: dict[Any, list[int]] = {}
    for place, picture in enumerate(pictures):
        groups.setdefault((picture.shape, picture.dtype, picture.device), []).append(place)
    return list(groups.values())


def check_equal_sizes(pictures: Sequence[torch.Tensor], remedy: str) -> None:
    sizes = sorted({tuple(picture.shape[1:]) for picture in pictures})
    if len(sizes) > 1:
        named = ", ".join(f"{height}x{width}" for height, width in sizes[:5]) + (", ..." if len(sizes) > 5 else "")
        raise ValueError(
            f"pictures of {len(sizes)} sizes ({named}, height x width) do not fit into one tensor; {remedy}, or leave "
            "return_tensors out"
        )


def choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is unknown; it must be one of {', '.join(map(repr, choices))}")
    return value


def _resampling(resample: Any) -> Image.Resampling:
    for known in RESAMPLING:
        if resample in (known, known.name.lower()) and not isinstance(resample, bool):
            return known
    names = ", ".join(f"'{known.name.lower()}' ({int(known)})" for known in RESAMPLING)
    raise ValueError(f"resample {resample!r} is unknown; it must be one of {names}")


def _by_channel(name: str, values: Any, num_channels: int) -> list[float]:
    values = list(values) if isinstance(values, Sequence) else [values] * num_channels
    if len(values) != num_channels or not all(isinstance(value, (int, float)) for value in values):
        raise ValueError(f"{name} {values} must be one number, or {num_channels}, one for each of num_channels")
    return [float(value) for value in values]


def _background(levels: Sequence[int] | None) -> list[int] | None:
    if levels is None:
        return None
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ValueError(
            f"background {levels!r} must be three grey levels from 0 to 255, as [255, 255, 255] for white"
        )
    return list(levels)
