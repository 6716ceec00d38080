"""`python -m benchmarks.peers PEER GRID OUT`: run a grid as a peer would.

GRID is a JSON list of complete settings, OUT gets a JSON list of metrics.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

PEERS = {
    "loop": "benchmarks.peers.loop",
    "pool": "benchmarks.peers.pool",
    "tune": "benchmarks.peers.tune",
    "lightning": "benchmarks.peers.lightning_fit",
}
NOT_INSTALLED = 3


def main() -> int:
    """Run the command; 3 if the peer is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cores", type=int, default=1)
    given = parser.parse_args()
    runs = json.loads(given.grid.read_text(encoding="utf-8"))
    try:
        found = importlib.import_module(PEERS[given.peer]).run(runs, given.cores)
    except ModuleNotFoundError as error:
        print(f"not installed: {error.name}")
        return NOT_INSTALLED
    given.out.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
