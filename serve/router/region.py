"""Countries of addresses, from a GeoIP2 database."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from engines.errors import UserError


def open_database(path: str) -> Callable[[str], str]:
    """A lookup of an address's country, ISO 3166-1 alpha-2, or "" where the database has none."""
    import maxminddb

    try:
        reader = maxminddb.open_database(path)
    except FileNotFoundError:
        raise UserError(f"no region database {path}: expected a GeoIP2 country database (.mmdb)") from None
    except (maxminddb.InvalidDatabaseError, OSError) as error:
        raise UserError(f"{path} is not a GeoIP2 database: {error}") from None

    @lru_cache(maxsize=65_536)  # a connection asks again with each of its requests
    def country(address: str) -> str:
        found: Any = reader.get(address)
        return str(found.get("country", {}).get("iso_code", "")) if found else ""

    return country
