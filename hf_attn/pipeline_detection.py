"""pipeline("object-detection") for the detectors of this package: pictures of different sizes in one batch.

transformers' own pipeline puts the pictures of a batch together as they are, which fails unless all have one size.
"""

from typing import Any

import torch
from transformers import pipelines
from transformers.image_utils import load_image
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from .configuration_detr import AttnDetrConfig
from .image_processing_detr import pad_pictures


class DetectionPipeline(pipelines.ObjectDetectionPipeline):
    """transformers' `ObjectDetectionPipeline`; with a DETR of this package, pictures of a batch may differ in size.

    A picture's boxes are those that it has alone, whatever the batch. Other models are treated as ever.
    """

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        if not self._is_ours():
            return super().preprocess(image, timeout)
        picture = load_image(image, timeout=timeout)
        pixel_values = self.image_processor(images=picture, return_tensors=None, do_pad=False)["pixel_values"][0]
        # in lists, which transformers does not try to put together
        return {
            "pictures": [pixel_values.to(self.dtype)],
            "target_size": torch.tensor([[picture.height, picture.width]]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        if not self._is_ours():
            return super()._forward(model_inputs)
        pictures = [picture for one in _in_lists(model_inputs["pictures"]) for picture in one]
        pixel_values, pixel_mask = pad_pictures(pictures)
        outputs = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        kept = {name: outputs[name] for name in ("logits", "pred_boxes", "scores")}
        return outputs.__class__({**kept, "target_size": model_inputs["target_size"]})

    def _is_ours(self) -> bool:
        return self.model.config.model_type == AttnDetrConfig.model_type


def _in_lists(pictures: list[Any]) -> list[list[torch.Tensor]]:
    """One list for each picture of the batch: a batch of one comes as its only list."""
    return [pictures] if isinstance(pictures[0], torch.Tensor) else pictures


def register_detection_pipeline() -> None:
    """Make `pipeline("object-detection")` mean `DetectionPipeline`, and know our model, whose name it would else call
    unsupported in the log."""
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[AttnDetrConfig.model_type] = "AttnDetrForObjectDetection"
    pipelines.PIPELINE_REGISTRY.supported_tasks["object-detection"]["impl"] = DetectionPipeline
