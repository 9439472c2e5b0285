"""The terminal that commands print to."""

from __future__ import annotations

from rich.console import Console

# Names and paths are printed verbatim: not wrapped, so that they can be copied, and with brackets not taken for markup.
console = Console(soft_wrap=True, markup=False, emoji=False)
