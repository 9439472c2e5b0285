"""Preparation: the pixels that a model was trained with, for photos of any shape.

Scaling leaves bytes, which threads prepare; the rest is a map that the network begins with. Transformers' own processors are the
reference, with the preprocessing that each family is published with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.encoders.preparation import Preparation

HALF = [0.5, 0.5, 0.5]
STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 0.00392156862745098}
DINOV2 = STEPS | {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"shortest_edge": 256},
}

# preprocessor_config.json as the model is published with it, the class that computes it, and the side that images are scaled to.
PUBLISHED: dict[str, tuple[dict[str, Any], Any, int]] = {
    "google/siglip-base-patch16-256-multilingual": (
        STEPS
        | {
            "image_mean": HALF,
            "image_processor_type": "SiglipImageProcessor",
            "image_std": HALF,
            "processor_class": "SiglipProcessor",
            "resample": 3,
            "size": {"height": 256, "width": 256},
        },
        SiglipImageProcessorPil,
        256,
    ),
    # Of a fixed size, SigLIP 2 has SigLIP's processor; it scales bilinearly.
    "google/siglip2-base-patch16-256": (
        STEPS
        | {
            "do_convert_rgb": None,
            "image_mean": HALF,
            "image_processor_type": "SiglipImageProcessor",
            "image_std": HALF,
            "processor_class": "SiglipProcessor",
            "resample": 2,
            "size": {"height": 256, "width": 256},
        },
        SiglipImageProcessorPil,
        256,
    ),
    # From before there were image processors.
    "openai/clip-vit-base-patch32": (
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 224,
        },
        CLIPImageProcessorPil,
        224,
    ),
    "google/mobilenet_v2_1.0_224": (
        STEPS
        | {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "image_mean": HALF,
            "image_processor_type": "MobileNetV2ImageProcessor",
            "image_std": HALF,
            "resample": 2,
            "size": {"shortest_edge": 256},
        },
        MobileNetV2ImageProcessorPil,
        256,
    ),
    "facebook/dinov2-base": (DINOV2, BitImageProcessorPil, 256),
    "facebook/dinov2-with-registers-base": (DINOV2, BitImageProcessorPil, 256),
}


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Soft shades with noise, as an encoder is given it: always RGB."""
    chance = np.random.default_rng(width * height)
    shades = Image.fromarray(chance.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height))
    noise = chance.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(shades) + noise, 0, 255).astype(np.uint8)).convert(mode).convert("RGB")


PHOTOS = {
    "portrait": photo(333, 701),
    "landscape": photo(1023, 517),
    "square": photo(256, 256),
    "tiny": photo(7, 5),
    "a line": photo(600, 3),
    "grey": photo(321, 243, "L"),
    "large": photo(2401, 1801),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_gives_the_pixels_that_the_published_processor_gives(tmp_path: Path, name: str) -> None:
    config, processor_class, side = PUBLISHED[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = Preparation.load(name, tmp_path)
    assert found.side == side
    kinds = ("image_processor_type", "feature_extractor_type", "processor_class")
    reference = processor_class(**{key: value for key, value in config.items() if key not in kinds})
    for shape, image in PHOTOS.items():
        prepared = found.prepare(image)
        assert prepared.dtype == np.uint8
        wanted = reference(images=image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(prepared * found.scale + found.shift, wanted, atol=1e-5, rtol=0, err_msg=shape)


def test_by_a_processor_that_does_more_is_left_to_it(tmp_path: Path) -> None:
    # Rescaling that is off leaves 0 to 255, normalised by means of 0 to 1: no such model exists, but it must be obeyed.
    SiglipImageProcessorPil(size={"height": 64, "width": 64}, do_rescale=False).save_pretrained(tmp_path)
    found = Preparation.load("one of its own", tmp_path)
    wanted = SiglipImageProcessorPil(size={"height": 64, "width": 64}, do_rescale=False)(
        images=PHOTOS["portrait"], return_tensors="np"
    )
    pixels = found.prepare(PHOTOS["portrait"]) * found.scale + found.shift
    np.testing.assert_allclose(pixels, wanted["pixel_values"][0], atol=1e-3, rtol=1e-5)
