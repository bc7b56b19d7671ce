"""``python -m osrm_cli``, and the program ``osrm``: ended at once while it is still importing."""

import gc
import sys


def main() -> None:
    """Import and run the program."""
    gc.set_threshold(10_000)  # imports make objects by the million, and no garbage to look for after every 700
    try:
        from osrm_cli.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
