#!/usr/bin/env python3
"""Say by the exit status whether a server is well: ``healthy URL [COMPONENT]``.

The address must answer 200. With a component, the answer must be Airflow's health report (``/api/v2/monitor/health``)
and name that component healthy: the scheduler, the triggerer and the DAG processor have no address of their own, they
report to the database. `airflow jobs check` would say the same after five seconds of imports.
"""

from __future__ import annotations

import json
import sys
import urllib.request


def main(url: str, component: str = "") -> int:
    """Return the exit status; a server that cannot be reached raises, which is not 0 either."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        report = answer.read()
    if not component:
        return 0
    status = json.loads(report)[component]["status"]
    print(f"{component}: {status}")
    return 0 if status == "healthy" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
