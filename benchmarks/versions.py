"""Which versions of the peers figures stand beside, each read in its own environment."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import mergekit
from benchmarks.peers import fusion_bench

READ = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
# By the name that rows give a peer: its distribution, and the Python that has it.
PEERS: dict[str, tuple[str, Callable[[], Path | None]]] = {
    "PEFT": ("peft", lambda: Path(sys.executable)),
    "mergekit": ("mergekit", mergekit.python),
    "fusion_bench": ("fusion-bench", fusion_bench.program),
}


def installed(peers: Iterable[str]) -> dict[str, str]:
    """Versions of those that are meant, by name.

    Args:
        peers: As rows have them: a name, perhaps with more behind it.
    """
    meant = {peer.replace(",", " ").split()[0] for peer in peers if peer}
    return {name: _version(*found) for name, found in PEERS.items() if name in meant}


def _version(distribution: str, find: Callable[[], Path | None]) -> str:
    words = [str(find()), "-c", READ, distribution]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
