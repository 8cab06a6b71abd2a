"""Evaluation transforms of timm and image processors of transformers, in the words of those of this package."""

from collections.abc import Mapping
from typing import Any

from .image_processing_resize import size_before_crop

TIMM_CROP_MODES = {"center": "shortest_edge", "squash": "exact", "border": "longest_edge"}
# timm's own defaults, `timm.data.constants`: ImageNet's mean and deviation
TIMM_DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}

# Entries of transformers' files that say nothing about the result, or what is always so here.
TRANSFORMERS_BOOKKEEPING = (
    "_valid_processor_keys",
    "auto_map",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "feature_extractor_type",
    "image_processor_type",
    "input_data_format",
    "processor_class",
    "return_tensors",
)
VALUE_SETTINGS = ("do_convert_rgb", "do_rescale", "rescale_factor")
SQUARE_BY_DEFAULT = ("ViT", "DeiT")  # whose files of version 4 may hold one number for a square

DETR_KINDS = ("Detr", "ConditionalDetr", "DeformableDetr")  # which all resize by one rule; YOLOS' is another
DETR_BOOKKEEPING = ("do_convert_annotations", "format", "return_segmentation_masks")
DETR_LONGEST_EDGE = 1333  # where a file holds only the shortest
DETR_SETTINGS = ("do_normalize", "do_pad", "do_resize", "image_mean", "image_std", "pad_size", "resample", "size")


def from_timm_settings(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a crop mode or border that is not known here."""
    config: dict[str, Any] = {name: data_config.get(name) or default for name, default in TIMM_DEFAULTS.items()}
    if config["crop_mode"] not in TIMM_CROP_MODES:
        raise ValueError(f"crop_mode {config['crop_mode']!r} is unknown; timm has {', '.join(TIMM_CROP_MODES)}")
    if data_config.get("crop_border_pixels"):
        raise ValueError(
            f"crop_border_pixels {data_config['crop_border_pixels']}: no border is trimmed here; crop first"
        )
    channels, height, width = config["input_size"]
    return {
        "size": {"height": height, "width": width},
        "resize_mode": TIMM_CROP_MODES[config["crop_mode"]],
        "crop_pct": config["crop_pct"],
        "resample": config["interpolation"],
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
        "num_channels": channels,
    }


def from_transformers_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a setting that `AttnViTImageProcessor` cannot express."""
    given = {
        name: value
        for name, value in settings.items()
        if value is not None and value is not False and name not in (*TRANSFORMERS_BOOKKEEPING, *VALUE_SETTINGS)
    }
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    translated: dict[str, Any] = {"crop_offset": "floor"}
    for name in ("do_resize", "do_normalize"):
        translated[name] = settings.get(name) is not False
        given.pop(name, None)
    translated.update(_value_settings(settings))
    for name in ("image_mean", "image_std", "resample"):
        if name in given:
            translated[name] = given.pop(name)
    crop = given.pop("crop_size", None)
    if not given.pop("do_center_crop", False):
        crop = None
    elif not translated["do_resize"]:
        raise ValueError("do_center_crop without do_resize cannot be expressed here; crop first")
    translated.update(_size_settings(given.pop("size", 224), crop, square=kind.startswith(SQUARE_BY_DEFAULT)))
    if given:
        raise ValueError(f"{kind or 'the processor'}'s {', '.join(sorted(given))} cannot be expressed here")
    return translated


def from_detr_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of transformers' DetrImageProcessor, or of its DetrFeatureExtractor of old.

    What they say of annotations is left out: here boxes become fractions of the visible picture whatever they say, and
    panoptic segments are not read.

    Raises:
        ValueError: for a setting that `AttnDetrImageProcessor` cannot express.
    """
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "DetrImageProcessor"
    if not kind.startswith(DETR_KINDS):
        raise ValueError(f"{kind} may resize by another rule than DETR's; set size, image_mean, ... yourself")
    left_out = (*TRANSFORMERS_BOOKKEEPING, *VALUE_SETTINGS, *DETR_BOOKKEEPING)
    given = {name: value for name, value in settings.items() if value is not None and name not in left_out}
    translated = _value_settings(settings)
    if "pad_and_return_pixel_mask" in given:
        given.setdefault("do_pad", given.pop("pad_and_return_pixel_mask"))
    longest_edge = given.pop("max_size", DETR_LONGEST_EDGE)
    if isinstance(given.get("size"), int):
        given["size"] = {"shortest_edge": given["size"], "longest_edge": longest_edge}
    for name in ("size", "pad_size"):
        if name in given:
            given[name] = {edge: pixels for edge, pixels in dict(given[name]).items() if pixels is not None}
    if set(given.get("size", ())) == {"shortest_edge"}:
        given["size"]["longest_edge"] = longest_edge
    translated.update({name: given.pop(name) for name in DETR_SETTINGS if name in given})
    if given:
        raise ValueError(f"{kind}'s {', '.join(sorted(given))} cannot be expressed here")
    return translated


def _value_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    factor = settings.get("rescale_factor")
    if settings.get("do_rescale") is False or (factor is not None and abs(factor * 255 - 1) > 1e-6):
        raise ValueError("values must be rescaled by 1/255; these settings do not, so the result would be another")
    white = settings.get("do_convert_rgb")  # what transformers then lays under transparent pictures
    return {"background": [255, 255, 255]} if white else {}


def _size_settings(size: Any, crop: Any, square: bool) -> dict[str, Any]:
    """size, resize_mode and crop_pct that resize to transformers' `size` and crop to its `crop_size`."""
    if isinstance(size, int) and not square:
        raise ValueError(f"size {size} may be a square or a shortest edge; write it as a dictionary that says which")
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        target, mode = (size["shortest_edge"], size["shortest_edge"]), "shortest_edge"
        if crop is None:
            raise ValueError(f"size {size} without a centre crop gives pictures that differ in size; give crop_size")
    else:
        target, mode = _height_width(size), "exact"
    kept = target if crop is None else _height_width(crop)
    return {"size": list(kept), "resize_mode": mode, "crop_pct": _crop_percentage(kept, target)}


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    edges = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else tuple(size)
    if len(edges) != 2 or None in edges:
        raise ValueError(f"size {size} cannot be expressed here; it must have height and width, or shortest_edge")
    return edges


def _crop_percentage(kept: tuple[int, int], target: tuple[int, int]) -> float:
    """The crop_pct that resizes to `target` before `kept` is cropped out of it."""
    for percentage in (kept[0] / target[0], kept[0] / (target[0] + 0.5)):
        if 0 < percentage <= 1 and size_before_crop(kept, percentage) == target:
            return percentage
    raise ValueError(f"no crop_pct makes {kept} out of {target} (height, width)")
