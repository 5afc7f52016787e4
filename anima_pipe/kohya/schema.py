"""JSON Schemas of the configuration files, by which editors complete and underline keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from anima_pipe.kohya.dataset_keys import DATASET_KEYS, DATASETS, GENERAL, SUBSETS
from anima_pipe.kohya.explain import fate
from anima_pipe.kohya.options import options_of
from anima_pipe.kohya.rows import TRAIN, Honoured, Kind, Option, Refused

Schema = dict[str, object]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_SIZE: Final[Schema] = {
    "oneOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^\s*\d+\s*(,\s*\d+\s*)?$"},
        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2},
    ]
}
_RANGE: Final[Schema] = {
    "oneOf": [
        {"type": "string", "pattern": r"^[^,]+,[^,]+$"},
        {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0},
            "minItems": 2,
            "maxItems": 2,
        },
    ]
}
_COUNT_OR_SHARE: Final[Schema] = {
    "oneOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%\s*$"}]
}
_TEXTS: Final[Schema] = {"type": "array", "items": {"type": "string"}}

_TYPES: Final[Mapping[Kind, Schema]] = {
    Kind.TEXT: {"type": "string"},
    Kind.PATH: {"type": "string"},
    Kind.PLACE: {"type": "string"},
    Kind.FLAG: {"type": "boolean"},
    Kind.INTEGER: {"type": "integer"},
    Kind.NUMBER: {"type": "number"},
    Kind.COUNT_OR_SHARE: _COUNT_OR_SHARE,
    Kind.SIZE: _SIZE,
    Kind.RANGE: _RANGE,
    Kind.TEXTS: _TEXTS,
    Kind.TABLE: {"type": "object"},
    Kind.PAIRS: {"type": "array", "items": {"type": "string", "pattern": "^[^=]+="}},
}


def train_args_schema() -> Schema:
    """Return the schema of train_args.toml: any option, in sections of any name or in none."""
    properties = {
        spelling: _property(option) for option in options_of(TRAIN) for spelling in option.spellings
    }
    return {
        "$schema": DIALECT,
        "title": "anima-pipe: train_args.toml",
        "type": "object",
        "properties": properties,
        # A heading makes a table; what stands in it is an option again.
        "additionalProperties": {"type": "object", "$ref": "#"},
    }


def dataset_schema() -> Schema:
    """Return the schema of dataset.toml."""
    subset = _level(SUBSETS)
    dataset = _level(DATASETS, subsets=_tables(subset))
    return {
        "$schema": DIALECT,
        "title": "anima-pipe: dataset.toml",
        "type": "object",
        "properties": {"general": _level(GENERAL), "datasets": _tables(dataset)},
        "required": ["datasets"],
        "additionalProperties": False,
    }


def _level(level: str, **more: Schema) -> Schema:
    properties = {
        key.name: _property(key.row) for key in DATASET_KEYS.values() if level in key.levels
    }
    return {"type": "object", "properties": properties | more, "additionalProperties": False}


def _tables(table: Schema) -> Schema:
    return {"type": "array", "items": table, "minItems": 1}


def _property(option: Option) -> Schema:
    if isinstance(option.status, Refused):
        return _off(option)
    schema: Schema = {"description": option.help, **_TYPES[option.kind]}
    if option.choices:
        schema["enum"] = ["", *option.choices, *option.same_as, *option.stand_ins]
    for limit in ("minimum", "maximum"):
        if (value := getattr(option, limit)) is not None:
            schema[limit] = value
    if isinstance(option.default, bool | int | float | str):
        schema["default"] = option.default
    if not isinstance(option.status, Honoured):
        schema |= {"description": f"{option.help} ({fate(option)})", "deprecated": True}
    return schema


def _off(option: Option) -> Schema:
    """Return the schema of a refused option: it may be written out as switched off."""
    off = [value for value in (option.default, *option.asks_nothing, "") if value is not None]
    description = f"{option.help} ({fate(option)})"
    return {"description": description, "enum": [*off, []], "deprecated": True}
