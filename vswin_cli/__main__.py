"""Entry point of ``vswin`` and ``python -m vswin_cli``.

Light on purpose: nothing heavy is imported before a command runs.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from vswin_cli.cli.app import app

    app()


if __name__ == "__main__":
    main()
