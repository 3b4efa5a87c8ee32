"""What the commands that read folders of people share."""

from __future__ import annotations

import click

allow_duplicates_option = click.option(
    "--allow-duplicates",
    is_flag=True,
    help="Take files that are the same, by content, in two people's folders; they are refused otherwise.",
)
no_cache_option = click.option("--no-cache", is_flag=True, help="Compute all anew, and keep nothing for another run.")
