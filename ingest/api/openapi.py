"""/openapi.json (OpenAPI 3.1), generated from the declarations that check requests, and /docs, which renders it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from http import HTTPStatus
from importlib import resources
from typing import Any, Final, get_args

import msgspec
import orjson

from ingest.api.operations import FORM, JSON, Documented, Operation, Parameters
from ingest.http.answers import PROBLEM

_REF: Final = "#/components/schemas/{name}"
_SECURITY_SCHEMES: Final = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key from `ingest keys create`, or a JWT"},
    "header_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same API key"},
    "session": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Session-Token",
        "description": "An onboarding session",
    },
}
_ABOUT: Final = """\
Events, leads, onboarding and experiments in your own Postgres. Errors are problem+json (RFC 9457) with a `code` for
programs and a `detail` for people; 429 and 503 carry `Retry-After`.
"""


class FieldProblem(msgspec.Struct):
    """What is wrong with one field."""

    field: str
    message: str


class ProblemDocument(msgspec.Struct):
    """An error (RFC 9457). `message` repeats `detail`, for SDKs that look there."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    message: str
    errors: list[FieldProblem] | msgspec.UnsetType = msgspec.UNSET


_PROBLEM_ANSWER: Final = {PROBLEM: {"schema": {"$ref": _REF.format(name="ProblemDocument")}}}


def document(
    operations: Sequence[Operation], others: Mapping[str, Mapping[str, Any]], version: str
) -> dict[str, Any]:
    """The OpenAPI document. `others`: path items (path -> method -> operation) written by hand."""
    structs = [ProblemDocument, *_structs(operations)]
    _, schemas = msgspec.json.schema_components(structs, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {path: dict(item) for path, item in others.items()}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    tags = dict.fromkeys(found["tags"][0] for item in paths.values() for found in item.values())
    return {
        "openapi": "3.1.0",
        "info": {"title": "ingest", "version": version, "description": _ABOUT, "license": {"name": "MIT"}},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY_SCHEMES},
    }


def _structs(operations: Iterable[Operation]) -> list[Any]:
    found: dict[Any, None] = {}
    for operation in operations:
        for one in (operation.parameters, operation.query, operation.body):
            if isinstance(one, type):
                found[one] = None
        for answer in operation.answers.values():
            for one in (answer.body, *get_args(answer.body)):
                if isinstance(one, type) and issubclass(one, msgspec.Struct):
                    found[one] = None
    return list(found)


def _operation(operation: Operation, schemas: Mapping[str, Any]) -> dict[str, Any]:
    item: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": _identifier(operation),
        "security": _security(operation),
        "responses": {
            **{str(status): _answer(status, answer) for status, answer in operation.answers.items()},
            **{
                str(status): {"description": HTTPStatus(status).phrase, "content": _PROBLEM_ANSWER}
                for status in _problems(operation)
                if status not in operation.answers
            },
        },
    }
    if operation.description:
        item["description"] = operation.description
    parameters = [
        *_parameters(operation.parameters, "path", schemas),
        *_parameters(operation.query, "query", schemas),
    ]
    if parameters:
        item["parameters"] = parameters
    if operation.body is not None:
        name = operation.body.__name__
        content: dict[str, Any] = {JSON: {"schema": {"$ref": _REF.format(name=name)}}}
        if operation.forms:
            content[FORM] = {"schema": _form(schemas[name])}
        item["requestBody"] = {"required": not operation.body_optional, "content": content}
    return item


def _identifier(operation: Operation) -> str:
    words = re.findall(r"[a-z0-9]+", operation.path.removeprefix("/v1").lower())
    return "_".join([operation.method.lower(), *words])


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.session:
        return [{"session": []}]
    keys: list[dict[str, list[str]]] = [{"key": []}, {"header_key": []}]
    return keys if operation.scope is not None else [{}, *keys]


def _problems(operation: Operation) -> list[int]:
    """The errors that every operation of this kind has."""
    found = [401, 422, 429, 503]
    if operation.scope is not None:
        found.append(403)
    if operation.body is not None:
        found += [400, 408, 413, 415]
    return sorted(found)


def _answer(status: int, answer: Documented) -> dict[str, Any]:
    documented: dict[str, Any] = {"description": answer.description}
    if answer.body is not None:
        schema, _ = _schema(answer.body)
        documented["content"] = {answer.content_type: {"schema": schema}}
    elif status >= 400:
        documented["content"] = _PROBLEM_ANSWER
    elif answer.content_type != JSON:
        documented["content"] = {
            each: {"schema": {"type": "string"}} for each in answer.content_type.split(", ") if each
        }
    return documented


def _schema(type_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), components = msgspec.json.schema_components([type_], ref_template=_REF)
    return schema, components


def _parameters(
    model: type[msgspec.Struct] | Parameters | None, place: str, schemas: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if model is None:
        return []
    if isinstance(model, Parameters):
        return [{"name": each["name"], "in": place, **each} for each in model.documented]
    schema = schemas[model.__name__]
    required = schema.get("required", ())
    found = []
    for name, of_field in schema["properties"].items():
        constraints = {key: value for key, value in of_field.items() if key != "default" or value is not None}
        found.append(
            {
                "name": name,
                "in": place,
                "required": name in required or place == "path",
                **({"description": constraints.pop("description")} if "description" in constraints else {}),
                "schema": _without_null(constraints),
            }
        )
    return found


def _form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields in a form: none is null, a blank one counts as missing, one text is a list of one, and the
    field `b` of an object `a` is called `a.b`."""
    fields: dict[str, Any] = {}
    within: dict[str, Any] = {}
    for name, of_field in schema["properties"].items():
        if of_field.get("type") == "object":
            inner = of_field["propertyNames"]["pattern"].removeprefix("^")
            within[rf"^{name}\.{inner}"] = {"enum": ["on", "true"], "description": of_field.get("description", "")}
        else:
            filled_in = _without_null({key: value for key, value in of_field.items() if key != "default"})
            choices = [filled_in] + ([filled_in["items"]] if "items" in filled_in else [])
            blank = [] if name in schema["required"] else [{"const": ""}]
            fields[name] = {"anyOf": [*choices, *blank]}
    kept = {key: schema[key] for key in ("description", "required") if key in schema}
    return {
        "type": "object",
        **kept,
        "properties": fields,
        "patternProperties": within,
        "additionalProperties": False,
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is absent rather than null."""
    choices = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if not choices:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest, **choices[0]} if len(choices) == 1 else {**rest, "anyOf": choices}


# The page for people.

_STYLE: Final = resources.files("ingest").joinpath("web", "docs.css").read_text(encoding="utf-8")


def page(spec: Mapping[str, Any]) -> str:
    """The document as one self-contained HTML page, without scripts."""
    schemas = spec["components"]["schemas"]
    sections = []
    for tag in spec["tags"]:
        rows = [
            _shown(path, method, operation, schemas)
            for path, item in spec["paths"].items()
            for method, operation in item.items()
            if operation["tags"] == [tag["name"]]
        ]
        sections.append(f"<h2>{escape(tag['name'])}</h2>{''.join(rows)}")
    title = f"{spec['info']['title']} {spec['info']['version']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{escape(title)}</h1>'
        f"<p>{escape(spec['info']['description'])}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI {spec["openapi"]})</p>{"".join(sections)}'
    )


def _shown(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    verb = method.upper()
    parts = [f"<p>{escape(operation.get('description', ''))}</p>", f"<p><small>{escape(_who(operation))}</small></p>"]
    rows = [
        _row(each["name"], each["schema"], schemas, each["required"], f"{each.get('description', '')} ({each['in']})")
        for each in operation.get("parameters", ())
    ]
    for content_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body: <code>{escape(content_type)}</code></p>")
        schema = _resolved(content["schema"], schemas)
        if not rows or content_type == JSON:
            needed = schema.get("required", ())
            rows += [
                _row(name, one, schemas, name in needed, _resolved(one, schemas).get("description", ""))
                for name, one in schema.get("properties", {}).items()
            ]
    if rows:
        parts.append(f"<table><tr><th>Field<th>Type<th>Description</tr>{''.join(rows)}</table>")
    answers = "".join(
        f"<tr><td>{escape(status)}<td>{escape(answer['description'])}<td>{_example(answer, schemas)}</tr>"
        for status, answer in operation["responses"].items()
    )
    parts.append(f"<table><tr><th>Status<th>Meaning<th>Body</tr>{answers}</table>")
    return (
        f'<details><summary><span class="m {verb}">{verb}</span> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary><div>{''.join(parts)}</div></details>"
    )


def _who(operation: Mapping[str, Any]) -> str:
    security = operation.get("security", ())
    if {"session": []} in security:
        return "Needs X-Session-Token."
    if security and {} not in security:
        return "Needs an API key or a JWT."
    return "Open to everybody."


def _row(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any], required: bool, text: str) -> str:
    mark = " *" if required else ""
    return f"<tr><td><code>{escape(name)}</code>{mark}<td>{escape(_type_of(schema, schemas))}<td>{escape(text)}</tr>"


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    return schemas[reference.rpartition("/")[2]] if reference else schema


def _type_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type_of(one, schemas) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(one) for one in schema["enum"])
    found = str(schema.get("type", "anything"))
    if found == "array":
        found = f"array of {_type_of(schema.get('items', {}), schemas)}"
    bounds = [
        f"{word} {schema[key]:g}"
        for key, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most"))
        if key in schema
    ]
    return " ".join([found, str(schema.get("format", "")), *bounds]).strip()


def _example(answer: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    found = []
    for content_type, content in answer.get("content", {}).items():
        if content_type == PROBLEM:
            return "problem details"
        schema = content["schema"]
        name = _type_of(schema, schemas)
        members = ", ".join(_resolved(schema, schemas).get("properties", ()))
        found.append(f"<code>{escape(content_type)}</code> {escape(name)}{': ' + escape(members) if members else ''}")
    return "<br>".join(found)


def rendered(spec: Mapping[str, Any]) -> bytes:
    """The document as it is served."""
    return orjson.dumps(spec, option=orjson.OPT_INDENT_2)
