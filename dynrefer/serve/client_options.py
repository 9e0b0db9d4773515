"""What clients may set of the model's options, and OpenAI's sampling settings as such options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dynrefer.errors import shown, suggestion
from dynrefer.models.options import LOCAL, Options, make_options

from .settings import Settings, invalid

MOST_LETTERS = 100_000  # in a request's options


def open_names(kind: type[Options]) -> list[str]:
    """Options that clients may set: all but those that concern the machine."""
    return [each.name for each in dataclasses.fields(kind) if not LOCAL.items() <= each.metadata.items()]


def client_options(given: Mapping[str, Any], base: Options, settings: Settings, where: str = "options") -> Options:
    """The server's options with a client's; Refusal 400 for one that is unknown, closed, wrong or too costly."""
    kind = type(base)
    names = open_names(kind)
    for name in given:
        if name not in names:
            known = ", ".join(names) or "none"
            raise invalid(f"{where}: unknown option {shown(name)}.{suggestion(name, names)} Options: {known}.", where)
    words, letters = _size(dict(given))
    if words > settings.max_words or letters > MOST_LETTERS:
        raise invalid(
            f"{where}: {words} values of {letters} letters; at most {settings.max_words} of {MOST_LETTERS}", where
        )
    for name, most in (("max_new_tokens", settings.max_new_tokens), ("num_beams", settings.max_beams)):
        value = given.get(name)
        if isinstance(value, int) and value > most:
            raise invalid(f"{where}: {name} {value}; this server allows at most {most}", f"{where}.{name}")
    try:
        return make_options(kind, given, base)
    except ValueError as error:
        raise invalid(f"{where}: {error}", where) from None


def _size(value: Any) -> tuple[int, int]:
    """(values, letters) within lists and objects."""
    if isinstance(value, dict):
        value = [*value.values(), *value]
    if isinstance(value, list):
        sizes = [_size(one) for one in value]
        return sum(words for words, _ in sizes) + 1, sum(letters for _, letters in sizes)
    return 1, len(value) if isinstance(value, str) else 1


def sampling(
    kind: type[Options],
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> tuple[dict[str, Any], int | None]:
    """(options, seed) of OpenAI's settings; Refusal 400 for one that a family without such an option cannot honour.

    temperature 0 takes the likeliest token each time, any other draws; so does top_p below 1. Of a family that never
    draws, temperature 0, top_p 1 and any seed change nothing and are taken.
    """
    names, options = open_names(kind), {}
    draws = {"do_sample", "temperature"} <= set(names)
    if not draws:
        for name, value, harmless in (("temperature", temperature, 0), ("top_p", top_p, 1)):
            if value not in (None, harmless):
                raise invalid(
                    f"{name} {value}: this model draws nothing at random; leave it out", name, "unsupported_value"
                )
        seed = None
    elif temperature == 0:
        options |= {"do_sample": False}
    elif temperature is not None or (top_p is not None and top_p < 1):
        options |= {"do_sample": True, "temperature": 1.0 if temperature is None else temperature}
        options |= {} if top_p is None else {"top_p": top_p}
        options |= {"num_beams": 1} if "num_beams" in names else {}
    if max_tokens is not None:
        if "max_new_tokens" not in names:
            raise invalid(
                f"max_tokens {max_tokens}: this model writes no text of a chosen length; leave it out",
                "max_tokens",
                "unsupported_value",
            )
        options["max_new_tokens"] = max_tokens
    return options, seed
