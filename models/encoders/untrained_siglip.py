"""A small, untrained SigLIP for machines without a GPU, with a tokenizer that knows the catalog's words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

from models.encoders.conv_siglip import ConvSiglipConfig, ConvSiglipModel

transformers_logging.disable_progress_bar()

SIDE = 96
_DIMS = 192
_TITLE_TOKENS = 32
_VOCABULARY = 2048
# Pairs per batch when it is trained.
_BATCH = 128
_PAD, _END = "<pad>", "</s>"


def save_untrained_siglip(folder: Path, titles: Iterable[str] = (), *, seed: int = 0) -> Path:
    """Write a SigLIP of about 3 million parameters (192-d, 96-pixel images) with random weights to a folder.

    Args:
        folder: to write weights, preprocessing and tokenizer to.
        titles: the tokenizer learns its words from them; without any, it knows only bytes.
        seed: the same seed and titles give the same encoder id.
    """
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
        vision_config={
            "embedding_size": 48,
            "hidden_sizes": [48, 96, 192, 256],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ConvSiglipModel(config)
    # A title's embedding is read at its last position, which is padding: starting from zero, it holds only what attention
    # brings there from the words.
    with torch.no_grad():
        # The published start, −10, is the share of pairs that belong together in a batch of 32,768. In a batch of
        # hundreds, all pairs would attract at first, until every embedding is the same.
        model.logit_bias.fill_(-math.log(_BATCH))
        model.text_model.embeddings.position_embedding.weight.zero_()
        model.text_model.embeddings.token_embedding.weight[tokenizer.pad_token_id].zero_()
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
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
