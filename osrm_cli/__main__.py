"""``python -m osrm_cli``: the same program as ``osrm``, for launchers such as ``accelerate launch -m osrm_cli``."""

from osrm_cli.cli.app import main

if __name__ == "__main__":
    main()
