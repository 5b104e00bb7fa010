"""`python -m edgevlm` is the command `edgevlm`."""

from edgevlm.cli import main

if __name__ == "__main__":
    main()
