"""Write nested plain data as TOML 1.0; `tomllib` gives equal data back (the standard library only reads)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(data: Mapping[str, object]) -> str:
    """Return ``data`` as TOML: values of a table first, then its sub-tables, in the order given.

    Args:
        data: str, bool, finite int and float, sequences of these, and mappings. Keys with the value ``None`` are left
            out: TOML has no null, so their reader must default to it.

    Raises:
        TypeError: a value of another type.
    """
    return "\n".join(_table(data, ())).strip() + "\n"


def _table(data: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    lines = [
        f"{_key(key)} = {_value(value)}"
        for key, value in data.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    for key, value in data.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            lines += ["", f"[{'.'.join(map(_key, inner))}]", *_table(value, inner)]
    return lines


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _string(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except for DEL, which TOML wants escaped as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
