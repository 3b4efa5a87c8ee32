"""Options of the commands that read a folder with one folder per person."""

from __future__ import annotations

import click

allow_duplicates_option = click.option(
    "--allow-duplicates",
    is_flag=True,
    help="Accept files with the same content in two people's folders; without this they are refused.",
)
no_cache_option = click.option(
    "--no-cache", is_flag=True, help="Compute everything anew, and keep nothing for the next run."
)
