"""``python -m keras_export_callbacks``, the same as ``keras-exports``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="keras-exports")
