"""The database's schemas as TypeScript: the `Database` type that supabase-js takes as its parameter.

The shape is that of `supabase gen types typescript`. Everything is sorted by name, so that the same schema always
gives the same text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from textwrap import indent
from typing import Any, Final, NamedTuple

import asyncpg
import orjson

from ingest.postgres.queries import load_queries

SCHEMAS: Final = ("analytics", "experiments", "marketing", "onboarding", "public", "whatsapp")
"""The schemas for applications; `ingest` is internal to the service."""

Row = Mapping[str, Any]

# As PostgREST writes them into JSON. Types that are missing here become `unknown`.
_SCALARS: Final = {
    **dict.fromkeys(("int2", "int4", "int8", "float4", "float8", "numeric", "oid"), "number"),
    **dict.fromkeys(("json", "jsonb"), "Json"),
    **dict.fromkeys(
        ("text", "varchar", "bpchar", "char", "name", "citext", "uuid", "bytea", "inet", "cidr"), "string"
    ),
    **dict.fromkeys(
        ("date", "time", "timetz", "timestamp", "timestamptz", "interval", "regclass", "regrole"), "string"
    ),
    "bool": "boolean",
    "void": "undefined",
    "record": "Record<string, unknown>",
}


class Catalogue(NamedTuple):
    """The rows of the queries in sql/queries/types.sql, by query name."""

    types: list[Row]
    columns: list[Row]
    relationships: list[Row]
    enums: list[Row]
    functions: list[Row]


async def read_catalogue(connection: asyncpg.Connection, schemas: Iterable[str] = SCHEMAS) -> Catalogue:
    """The contents of these schemas, readable by any role; a missing schema is empty."""
    queries = load_queries("types")
    names = list(schemas)
    # One snapshot: else a type that a migration creates meanwhile could be known to one query and not to another.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        types = await connection.fetch(queries.pop("types"))
        rows = {name: await connection.fetch(query, names) for name, query in queries.items()}
    return Catalogue(types=types, **rows)


def write_types(catalogue: Catalogue, schemas: Iterable[str] = SCHEMAS) -> str:
    """The TypeScript module."""
    type_of = _Types(catalogue.types)
    of_schema = {name: _of_schema(catalogue, name) for name in sorted(schemas)}
    database = _object((_key(name), _schema(own, type_of)) for name, own in of_schema.items())
    return f"{_HEAD}\nexport type Database = {database}\n{_SHORTCUTS}"


def _of_schema(catalogue: Catalogue, schema: str) -> Catalogue:
    rows = {name: [row for row in rows if row["schema"] == schema] for name, rows in catalogue._asdict().items()}
    return Catalogue(**rows)


def _schema(own: Catalogue, type_of: _Types) -> str:
    """One schema; `own` is its part of the catalogue."""
    tables: dict[str, list[Row]] = defaultdict(list)
    views: dict[str, list[Row]] = defaultdict(list)
    composites: dict[str, list[Row]] = defaultdict(list)
    for column in own.columns:
        kind = {"c": composites, "v": views, "m": views}.get(column["relation_kind"], tables)
        kind[column["relation"]].append(column)
    overloads: dict[str, list[str]] = defaultdict(list)
    for function in own.functions:
        if _is_callable(function):
            overloads[function["name"]].append(_function(function, type_of))
    return _object(
        [
            ("Tables", _object((_key(n), _relation(n, of, own, type_of)) for n, of in tables.items())),
            ("Views", _object((_key(n), _relation(n, of, own, type_of)) for n, of in views.items())),
            ("Functions", _object((_key(n), " | ".join(forms)) for n, forms in overloads.items())),
            ("Enums", _object((_key(row["name"]), _union(row["labels"])) for row in own.enums)),
            ("CompositeTypes", _object((_key(n), _fields(of, type_of)) for n, of in composites.items())),
        ]
    )


def _relation(name: str, columns: list[Row], own: Catalogue, type_of: _Types) -> str:
    """A table or view; Insert and Update are there only if it accepts them."""
    parts = [("Row", _fields(columns, type_of))]
    if columns[0]["takes_insert"]:
        parts.append(("Insert", _writable(columns, type_of, all_optional=False)))
    if columns[0]["takes_update"]:
        parts.append(("Update", _writable(columns, type_of, all_optional=True)))
    relationships = [_relationship(row) for row in own.relationships if row["relation"] == name]
    parts.append(("Relationships", f"[{', '.join(relationships)}]"))
    return _object(parts)


def _fields(columns: list[Row], type_of: _Types) -> str:
    return _object((_key(column["name"]), _column_type(column, type_of)) for column in columns)


def _writable(columns: list[Row], type_of: _Types, *, all_optional: bool) -> str:
    members = []
    for column in columns:
        if column["is_generated_always"] or not column["is_writable"]:
            members.append((f"{_key(column['name'])}?", "never"))
            continue
        optional = all_optional or column["is_nullable"] or column["has_default"]
        members.append((_key(column["name"]) + ("?" if optional else ""), _column_type(column, type_of)))
    return _object(members)


def _column_type(column: Row, type_of: _Types) -> str:
    return type_of(column["type"]) + (" | null" if column["is_nullable"] else "")


def _relationship(row: Row) -> str:
    return _object(
        [
            ("foreignKeyName", _text(row["name"])),
            ("columns", f"[{', '.join(map(_text, row['columns']))}]"),
            ("isOneToOne", "true" if row["is_one_to_one"] else "false"),
            ("referencedRelation", _text(row["referenced"])),
            ("referencedColumns", f"[{', '.join(map(_text, row['referenced_columns']))}]"),
        ]
    )


# Functions.


class _Argument(NamedTuple):
    name: str
    type: int
    mode: str

    @property
    def is_given(self) -> bool:
        return self.mode in "ibv"


def _arguments(function: Row) -> list[_Argument]:
    types = function["types"]
    names = function["names"] or [""] * len(types)
    modes = function["modes"] or ["i"] * len(types)
    return [_Argument(*argument) for argument in zip(names, types, modes, strict=True)]


def _is_callable(function: Row) -> bool:
    """Arguments are passed by name, so they must have names, unless there is only one."""
    given = [argument for argument in _arguments(function) if argument.is_given]
    return len(given) == 1 or all(argument.name for argument in given)


def _function(function: Row, type_of: _Types) -> str:
    arguments = _arguments(function)
    given = [argument for argument in arguments if argument.is_given]
    required = len(given) - function["defaults"]
    members = [
        (_key(argument.name) + ("?" if place >= required else ""), type_of(argument.type))
        for place, argument in enumerate(given)
    ]
    results = [argument for argument in arguments if argument.mode in "bot"]
    # Several results, or a table of one column, are returned as a row.
    if len(results) > 1 or (results and results[0].mode == "t"):
        result = _object((_key(argument.name), type_of(argument.type)) for argument in results)
    else:
        result = type_of(function["result"])
    if function["returns_set"]:
        result = f"{_bracketed(result)}[]"
    return _object([("Args", _object(sorted(members)) if members else "never"), ("Returns", result)])


# Types.


class _Types:
    """oid -> the TypeScript of that type."""

    def __init__(self, rows: list[Row]) -> None:
        self._by_oid = {row["oid"]: row for row in rows}

    def __call__(self, oid: int) -> str:
        row = self._by_oid[oid]
        if row["element"] is not None:
            return f"{_bracketed(self(row['element']))}[]"
        if row["base"] is not None:
            return self(row["base"])
        if row["schema"] == "pg_catalog":
            return _SCALARS.get(row["name"], "unknown")
        place = f"Database[{_text(row['schema'])}]"
        if row["schema"] not in SCHEMAS:
            return "unknown"
        if row["kind"] == "e":
            return f"{place}[{_text('Enums')}][{_text(row['name'])}]"
        if row["kind"] == "c":
            part = {"c": "CompositeTypes", "v": "Views", "m": "Views"}.get(row["relation_kind"], "Tables")
            whole = f"{place}[{_text(part)}][{_text(row['name'])}]"
            return whole if part == "CompositeTypes" else f'{whole}["Row"]'
        return "unknown"


# Syntax.


def _object(members: Iterable[tuple[str, str]]) -> str:
    lines = [f"{key}: {value}" for key, value in members] or ["[_ in never]: never"]
    return "{\n" + "".join(f"{indent(line, '  ')}\n" for line in lines) + "}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_$][\w$]*", name, re.ASCII) else _text(name)


def _text(value: str) -> str:
    return orjson.dumps(value).decode()


def _union(values: Iterable[str]) -> str:
    return " | ".join(map(_text, values))


def _bracketed(type_: str) -> str:
    return f"({type_})" if " | " in type_ else type_


_HEAD: Final = """\
// Generated by `ingest types` from the database's catalogue; run it again after a migration.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[]
"""

_SHORTCUTS: Final = """
type Schemas = keyof Database
type In<S extends Schemas, Kind extends keyof Database[S]> = keyof Database[S][Kind]

/** A row as it is read: Tables<{ schema: "marketing" }, "leads">, or in `public` just Tables<"audit_logs">. */
export type Tables<
  Place extends keyof Readable<"public"> | { schema: Schemas },
  Name extends Place extends { schema: infer S extends Schemas } ? keyof Readable<S> : never = never,
> = Place extends { schema: infer S extends Schemas }
  ? Part<Readable<S>, Name, "Row">
  : Part<Readable<"public">, Place, "Row">

/** What an INSERT takes. */
export type TablesInsert<
  Place extends In<"public", "Tables"> | { schema: Schemas },
  Name extends Place extends { schema: infer S extends Schemas } ? In<S, "Tables"> : never = never,
> = Place extends { schema: infer S extends Schemas }
  ? Part<Database[S]["Tables"], Name, "Insert">
  : Part<Database["public"]["Tables"], Place, "Insert">

/** What an UPDATE takes. */
export type TablesUpdate<
  Place extends In<"public", "Tables"> | { schema: Schemas },
  Name extends Place extends { schema: infer S extends Schemas } ? In<S, "Tables"> : never = never,
> = Place extends { schema: infer S extends Schemas }
  ? Part<Database[S]["Tables"], Name, "Update">
  : Part<Database["public"]["Tables"], Place, "Update">

/** The labels of an enum: Enums<{ schema: "marketing" }, "lead_status">. */
export type Enums<
  Place extends In<"public", "Enums"> | { schema: Schemas },
  Name extends Place extends { schema: infer S extends Schemas } ? In<S, "Enums"> : never = never,
> = Place extends { schema: infer S extends Schemas }
  ? Of<Database[S]["Enums"], Name>
  : Of<Database["public"]["Enums"], Place>

type Readable<S extends Schemas> = Database[S]["Tables"] & Database[S]["Views"]
type Of<Names, Name> = Name extends keyof Names ? Names[Name] : never
type Part<Relations, Name, Side extends string> = Name extends keyof Relations
  ? Relations[Name] extends { [_ in Side]: infer Found }
    ? Found
    : never
  : never
"""
