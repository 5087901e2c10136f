"""`python -m siitjax COMMAND ...`, which is `siitjax COMMAND ...`."""

from siitjax.cli.main import main

if __name__ == "__main__":
    main()
