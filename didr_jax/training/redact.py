"""What of a config is written down: all of it but secrets.

Keys of tracking services and hubs belong into the environment.  Should one find its way into a config (a user's own
file, a path with a password in it), it does not reach config.json, the saves or a message.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_WORDS = {"password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials"}
_ENDS = ("api_key", "access_key", "private_key", "secret_key")
_IN_URL = re.compile(r"://[^/@\s]+@")  # user:password of a host
SHORTEST = 8  # characters of a value in the environment that is looked for: a shorter one stands in many words


def is_secret(name: str) -> bool:
    """Whether a name says that its value is not for others: `wandb_api_key`, `HF_TOKEN`; not `clip_tokenizer`."""
    name = name.lower()
    return bool(_WORDS & set(re.split(r"[^a-z]+", name))) or name.endswith(_ENDS)


def redacted(content: Any) -> Any:
    """The same nested dicts and values, those that are secret hidden, by their names or by what the environment holds."""
    return _redacted(content, [value for name, value in os.environ.items() if is_secret(name) and len(value) >= SHORTEST])


def _redacted(content: Any, known: list[str]) -> Any:
    if isinstance(content, Mapping):
        return {k: HIDDEN if is_secret(str(k)) and v else _redacted(v, known) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_redacted(value, known) for value in content)
    if not isinstance(content, str):
        return content
    for value in known:
        content = content.replace(value, HIDDEN)
    return _IN_URL.sub(f"://{HIDDEN}@", content)
