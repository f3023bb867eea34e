"""What HTML pages are made of, which need no other file: an environment of templates, and pictures in addresses.

Short, because it lies below the counts and the reports of studies, which share it and import nothing of each other.
"""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2


def templates(folder: Path) -> jinja2.Environment:
    """The templates in a folder: values are escaped in ``.html`` alone, and one that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(kind: str, content: bytes) -> str:
    """A picture as an address: ``data:image/KIND;base64,…``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
