"""The command ``hanax``: answers at once, loads what a command needs when it runs."""

from __future__ import annotations

from hanax.experiments._cli import main

if __name__ == "__main__":
    main()
