"""Checks whether Weights & Biases would start without asking for a key, which wandb itself cannot tell beforehand."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

HOST = "https://api.wandb.ai"
NEEDS_NO_LOGIN = ("offline", "disabled", "dryrun")


def wandb_is_ready() -> bool:
    """Whether the environment, wandb's settings or ~/.netrc hold a key, or a mode that needs none."""
    settings = _settings()
    if os.environ.get("WANDB_MODE", settings.get("mode", "online")) in NEEDS_NO_LOGIN:
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", settings.get("base_url", HOST))).netloc
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_has_login(path, host) for path in files)


def _settings() -> dict[str, str]:
    """Settings from ``wandb login --host`` and ``wandb offline``; those of the working folder override the user's."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb") / "settings"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([user, Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"])
    except configparser.Error:  # wandb will say so
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _has_login(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):  # there is no file, or wandb could not read it either
        return False
