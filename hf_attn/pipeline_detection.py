"""pipeline("object-detection") for the detectors of this package: pictures of different sizes in one batch.

transformers' own pipeline puts the pictures of a batch together as they are, which fails unless all have one size.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from transformers import ObjectDetectionPipeline, pipelines
from transformers.image_utils import load_image

from .configuration_detr import AttnDetrConfig
from .image_processing_base import PictureProcessor
from .image_processing_inputs import Picture
from .image_processing_resize import pad_pictures, size_of


class DetectionPipeline(ObjectDetectionPipeline):
    """transformers' `ObjectDetectionPipeline`; with a DETR of this package, pictures of a batch may differ in size.

        detect = pipeline("object-detection", model="directory or name")
        detect("picture.png")      # [{"score": 0.98, "label": "cat", "box": {"xmin": 3, "ymin": 5, ...}}, ...]
        detect(["one.png", "another.png"], batch_size=2, threshold=0.7)      # such a list for each

    A picture's boxes are those that it has alone, whatever the batch. With other models nothing changes.
    """

    def check_model_type(self, supported_models: Any) -> None:
        if not self._is_ours():  # transformers' list has its own models only, and an error would be logged
            super().check_model_type(supported_models)

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:
        if not self._is_ours():
            return super().preprocess(image, timeout)
        picture = self._read(image, timeout)
        pixel_values = self.image_processor(images=[picture], return_tensors="pt", do_pad=False)["pixel_values"]
        # what is in a list is left as it is when transformers makes a batch
        return {"pictures": [pixel_values[0].to(self.dtype)], "target_size": torch.tensor([size_of(picture)])}

    def _read(self, image: Any, timeout: float | None) -> Picture:
        """With a processor of this package as that reads it: 16 bits stay, transparency meets its background."""
        is_file = isinstance(image, (str, os.PathLike)) and os.path.isfile(image)
        if isinstance(self.image_processor, PictureProcessor) and (is_file or isinstance(image, Image.Image)):
            return self.image_processor.read(image, None)[0]
        return load_image(image, timeout=timeout)

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        if not self._is_ours():
            return super()._forward(model_inputs)
        pixel_values, pixel_mask = pad_pictures(list(_flat(model_inputs["pictures"])))
        outputs = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        of_pictures = {name: outputs[name] for name in ("logits", "pred_boxes", "scores")}
        return type(outputs)({"target_size": model_inputs["target_size"], **of_pictures})

    def _is_ours(self) -> bool:
        return self.model.config.model_type == AttnDetrConfig.model_type


def _flat(pictures: Any) -> Iterator[torch.Tensor]:
    """The pictures of a batch, where each is in a list of its own, and of a batch of one, which is that list."""
    for picture in pictures:
        if isinstance(picture, torch.Tensor):
            yield picture
        else:
            yield from picture


def register_detection_pipeline() -> None:
    """Make `pipeline("object-detection")` mean `DetectionPipeline`.

    Only the class of the task is exchanged: `register_pipeline` would warn, and forget the task's default model.
    """
    pipelines.PIPELINE_REGISTRY.supported_tasks["object-detection"]["impl"] = DetectionPipeline
