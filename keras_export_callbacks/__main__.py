"""Runs ``keras-exports`` as ``python -m keras_export_callbacks``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="keras-exports")
