"""clip-retrieval's inference worker on a folder of images, one pass per line of standard input.

Runs in its own virtual environment, with clip-retrieval but without this project: see benchmarks/clip_retrieval.py.
Prints the seconds of each pass. The model is open_clip's SigLIP base/16-256, with random weights and without the tokenizer,
which would have to be downloaded.
"""

import multiprocessing
import sys
import tempfile
import time
from importlib.metadata import version

import open_clip
import torch
from clip_retrieval.clip_inference import worker as inference

_create = open_clip.create_model_and_transforms


def _untrained(name, pretrained=None, **options):
    options.pop("cache_dir", None)
    return _create(name, pretrained=None, **options)


class _NoLog:
    """Its logger runs in a process that takes seconds to start: it is left out, in clip-retrieval's favour."""

    def __init__(self, **_) -> None: ...
    def start(self) -> None: ...
    def __call__(self, _) -> None: ...
    def end(self) -> None: ...


inference.LoggerWriter = _NoLog
open_clip.create_model_and_transforms = _untrained
open_clip.get_tokenizer = lambda name: lambda texts: torch.zeros(len(texts), 64, dtype=torch.long)


def main() -> None:
    # Fork its loader processes, so that importing torch again is not part of the measurement.
    multiprocessing.set_start_method("fork", force=True)
    folder, batch, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(f"versions: clip-retrieval {version('clip-retrieval')}, torch {torch.__version__}", flush=True)
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as output:
            start = time.perf_counter()
            inference.worker(
                tasks=[0],
                input_dataset=folder,
                output_folder=output,
                output_partition_count=1,
                batch_size=batch,
                num_prepro_workers=workers,
                enable_text=False,
                clip_model="open_clip:ViT-B-16-SigLIP-256/untrained",
                use_jit=False,
            )
            print(f"seconds: {time.perf_counter() - start}", flush=True)


if __name__ == "__main__":
    main()
