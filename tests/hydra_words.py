"""Words of a command line that are hard to quote, and what Hydra makes of words."""

from __future__ import annotations

from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

HOSTILE = (
    *("a b", " a ", "it's", 'say "x"', "'q'", "$HOME", "${seed}", "$(touch PWNED)", "`touch PWNED`", "a;touch PWNED"),
    *("a&&touch PWNED", "a|touch PWNED", ">PWNED", "back\\slash", "end\\", "\\'", "(a)", "^([^_]+)_", "[1,2]", "{a:b}"),
    *("k=v", "a,b", "größe", "細胞", "#x", "wow!!", "*", "~", "-m", "null", "true", "1e3", "0012", "a:b", "%d", "a@b"),
    "\ta",
)


def values(words: list[str]) -> dict[str, Any]:
    """What Hydra makes of words: its options that choose files, and the value of each override."""
    read = get_args_parser().parse_args(words)
    found = {name: getattr(read, name) for name in ("config_dir", "config_name") if getattr(read, name)}
    for override in OverridesParser.create().parse_overrides(read.overrides):
        found[override.get_key_element()] = as_configured(override.value())
    return found


def as_configured(value: Any) -> Any:
    """A value that Hydra has parsed, as OmegaConf gives it to the product."""
    container: Any = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)
    return container["value"]
