"""What every job's command line shares: options, logging, and one-sentence errors."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from listing_lens.errors import LensError
from listing_lens.lake.window import Window
from listing_lens.settings import Settings


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the job's docstring; unknown arguments are passed on to Beam."""
    return argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings come from LENS_… (listing_lens/defaults.toml); other --options go to Beam, e.g. --runner.",
        allow_abbrev=False,
    )


def add_window(arguments: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --window_start and --window_end, with underscores as in Beam's and the Airflow provider's options."""
    for bound in ("start", "end"):
        arguments.add_argument(
            f"--window_{bound}",
            required=required,
            metavar="TIME",
            help=f"{bound} of the window, ISO 8601 with a zone, e.g. 2026-01-31T00:00:00Z"
            + ("" if required else " (default: all windows)"),
        )


def optional_window(arguments: argparse.Namespace) -> Window | None:
    """The window given by the arguments; None when neither bound is given.

    Raises:
        LensError: only one bound is given, or a bound is not a valid time.
    """
    bounds = {"--window_start": arguments.window_start, "--window_end": arguments.window_end}
    absent = [name for name, value in bounds.items() if value is None]
    if len(absent) == 2:
        return None
    if absent:
        raise LensError(f"{absent[0]} is missing: give both bounds of the window, or neither")
    return Window.parse(arguments.window_start, arguments.window_end)


def pipeline_options(settings: Settings, beam_arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options: the runner and options from the settings, overridden by the command line.

    Raises:
        LensError: an option is known to neither the job nor Beam, or the runner is unknown.
    """
    configured = list(_as_arguments({"runner": settings.beam_runner, **settings.beam_options}))
    known = argparse.ArgumentParser(allow_abbrev=False)
    for options_class in PipelineOptions.__subclasses__():
        options_class._add_argparse_args(known)
    if unknown := known.parse_known_args(configured)[1]:
        raise LensError(f"LENS_BEAM_OPTIONS: Beam has no option {unknown[0]}")
    if unknown := known.parse_known_args(list(beam_arguments))[1]:
        raise LensError(f"{unknown[0]} is an option of neither the job nor Beam: --help lists the job's")
    options = PipelineOptions([*configured, *beam_arguments])
    runner = options.view_as(StandardOptions).runner
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as err:
        raise LensError(
            f"Beam has no runner {runner!r}: set LENS_BEAM_RUNNER to FnApiRunner, or to one that it knows"
        ) from err
    # Jobs are modules, imported by name on the workers: nothing in __main__ needs to be pickled.
    options.view_as(SetupOptions).save_main_session = False
    return options


def _as_arguments(options: Mapping[str, object]) -> Iterator[str]:
    """Options by name, as command-line arguments."""
    for name, value in options.items():
        if value is True:
            yield f"--{name}"
        elif isinstance(value, list):
            yield from (f"--{name}={item}" for item in value)
        elif value is not None and value is not False:
            yield f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"


def launch(main: Callable[[Sequence[str] | None], object]) -> None:
    """Run a job's `main` as a program: log to standard error; on a LensError, exit with status 1 and its message."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("apache_beam", "httpx", "elastic_transport"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # The Airflow operator finds the Dataflow job by the id in this logger's output.
    logging.getLogger("apache_beam.runners.dataflow").setLevel(logging.INFO)
    try:
        _importable(main)(None)
    except Exception as err:
        sentence = refusal(err)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _importable(main: Callable[[Sequence[str] | None], object]) -> Callable[[Sequence[str] | None], object]:
    """A job's `main`, imported from the module under its own name.

    A worker cannot find what the job defines in `__main__`: there, `__main__` is a different program.
    """
    if main.__module__ != "__main__":
        return main
    name = Path(str(sys.modules["__main__"].__file__)).stem
    found: Callable[[Sequence[str] | None], object] = importlib.import_module(f"beam_jobs.{name}").main
    return found


def refusal(err: BaseException) -> str | None:
    """The message of the LensError that ended a job; None when something else did.

    A runner reports a worker's exception as text, so the message is parsed back out of it.
    """
    text = f"LensError: {err}" if isinstance(err, LensError) else str(err)
    found = re.search(r"LensError: (.+?)(?= \[while running|\n|\\n|$)", text)
    return found.group(1) if found else None
