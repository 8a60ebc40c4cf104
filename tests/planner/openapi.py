"""Holds HTTP requests and answers to an OpenAPI 3.1 document. What does not fit is a Violation that names the place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012

SPECS = Path(__file__).parent / "specs"
ROOT = "urn:openapi"

formats = FormatChecker(formats=())


@formats.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or ("T" in value and datetime.fromisoformat(value).tzinfo is not None)


@formats.checks("uri")
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:\S+$", value) is not None


class Violation(AssertionError):
    """Something that the document does not allow."""


Query = Mapping[str, Any] | Iterable[tuple[str, str]]
Node = dict[str, Any]


class Document:
    """One OpenAPI document. Paths are whole, as they stand in the document: `/v2/pods/abc`, without host and query."""

    def __init__(self, path: Path) -> None:
        self.content: Node = json.loads(path.read_text())
        self._registry: Registry[Any] = Registry().with_resource(ROOT, DRAFT202012.create_resource(self.content))

    def check_request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> str:
        """Check a request; gives its operationId.

        `body`: the parsed JSON, None if there is none. Stricter than the document in one way: query parameters and members
        of the body that it does not name are refused even where it leaves objects open, since a server may ignore them.
        """
        where, operation, variables = self._operation(method, path)
        names = {name.lower(): value for name, value in (headers or {}).items()}
        self._check_security(where, operation, names)
        given = {
            "path": variables,
            "query": _grouped(query),
            "header": {name: [value] for name, value in names.items()},
        }
        parameters = self._parameters(where, operation)
        for place, parameter in parameters:
            self._check_parameter(place, parameter, given[parameter["in"]])
        known = {parameter["name"] for _, parameter in parameters if parameter["in"] == "query"}
        if strange := sorted(set(given["query"]) - known):
            raise Violation(f"{self._name(where)}: query parameters {strange} are not in the document")
        self._check_body(where, operation, body)
        return str(operation.get("operationId", self._name(where)))

    def check_response(self, method: str, path: str, status: int, body: Any = None, content_type: str = "") -> None:
        """Check an answer. `body`: parsed JSON, text where the document says text, None if there is none."""
        where, operation, _ = self._operation(method, path)
        responses = operation["responses"]
        code = next((code for code in (str(status), f"{status // 100}XX", "default") if code in responses), None)
        if code is None:
            raise Violation(f"{self._name(where)}: status {status} is not one of {sorted(responses)}")
        where, response = self._resolve((*where, "responses", code), responses[code])
        content = response.get("content", {})
        if body is None or not content:
            if bool(content) != (body is not None):
                raise Violation(
                    f"{self._name(where)}: {'a body is missing' if content else 'a body came that must not'}"
                )
            return
        self._check_content((*where, "content"), content, content_type, body)

    # --- Finding things ---------------------------------------------------------------------------------------------

    @cached_property
    def _templates(self) -> list[tuple[str, re.Pattern[str]]]:
        """Path templates; those with fewer variables first, as OpenAPI asks."""
        paths = sorted(self.content["paths"], key=lambda path: (path.count("{"), path))
        return [
            (path, re.compile(re.sub(r"\\\{([A-Za-z_]\w*)\\\}", r"(?P<\1>[^/]+)", re.escape(path)))) for path in paths
        ]

    def _operation(self, method: str, path: str) -> tuple[tuple[str, ...], Node, dict[str, list[str]]]:
        for template, pattern in self._templates:
            if found := pattern.fullmatch(path):
                operation = self.content["paths"][template].get(method.lower())
                if operation is None:
                    raise Violation(f"{method.upper()} {template}: the document has no such method")
                variables = {name: [unquote(value)] for name, value in found.groupdict().items()}
                return ("paths", template, method.lower()), operation, variables
        raise Violation(f"{method.upper()} {path}: the document has no such path")

    def _parameters(self, where: tuple[str, ...], operation: Node) -> list[tuple[tuple[str, ...], Node]]:
        """The operation's, and those of its path that it does not replace."""
        found: dict[tuple[str, str], tuple[tuple[str, ...], Node]] = {}
        shared = self.content["paths"][where[1]].get("parameters", [])
        for base, nodes in ((where[:2], shared), (where, operation.get("parameters", []))):
            for index, node in enumerate(nodes):
                place, parameter = self._resolve((*base, "parameters", str(index)), node)
                found[parameter["in"], parameter["name"]] = place, parameter
        return [entry for entry in found.values() if entry[1]["in"] in ("path", "query", "header")]

    def _resolve(self, where: tuple[str, ...], node: Node) -> tuple[tuple[str, ...], Node]:
        """Follow references of the document; schemas are followed by jsonschema."""
        while "$ref" in node:
            where = tuple(_unescape(part) for part in node["$ref"].removeprefix("#/").split("/"))
            node = self.content
            for part in where:
                node = node[part]
        return where, node

    @staticmethod
    def _name(where: tuple[str, ...]) -> str:
        return " ".join((where[2].upper(), where[1], *where[3:])) if where[0] == "paths" else "/".join(where)

    # --- Checking things --------------------------------------------------------------------------------------------

    def _check_security(self, where: tuple[str, ...], operation: Node, headers: Mapping[str, str]) -> None:
        wanted = operation.get("security", self.content.get("security", []))
        if not wanted or {} in wanted:
            return
        kinds = self.content["components"]["securitySchemes"]
        schemes = {kinds[name].get("scheme", "").lower() for choice in wanted for name in choice}
        kind, _, credential = headers.get("authorization", "").partition(" ")
        if kind.lower() not in schemes or not credential.strip():
            raise Violation(f"{self._name(where)}: Authorization must be one of {sorted(schemes)} with a credential")

    def _check_parameter(self, where: tuple[str, ...], parameter: Node, given: Mapping[str, list[str]]) -> None:
        name = parameter["name"].lower() if parameter["in"] == "header" else parameter["name"]
        label = f"{self._name(where)} ({parameter['in']} parameter {name})"
        if name not in given:
            if parameter.get("required"):
                raise Violation(f"{label}: is required")
            return
        _, schema = self._resolve(where, parameter["schema"])
        values = given[name]
        if _takes(self, schema, "array"):
            if not parameter.get("explode", True):
                values = [part for value in values for part in value.split(",")]
            _, items = self._resolve(where, schema.get("items", {}))
            self._check_schema((*where, "schema"), [_parsed(self, items, value) for value in values], label)
        elif len(values) > 1:
            raise Violation(f"{label}: is given {len(values)} times")
        else:
            self._check_schema((*where, "schema"), _parsed(self, schema, values[0]), label)

    def _check_body(self, where: tuple[str, ...], operation: Node, body: Any) -> None:
        if "requestBody" not in operation:
            if body is not None:
                raise Violation(f"{self._name(where)}: a body was sent, the document has none")
            return
        where, wanted = self._resolve((*where, "requestBody"), operation["requestBody"])
        if body is not None:
            self._check_content((*where, "content"), wanted["content"], "application/json", body, closed=True)
        elif wanted.get("required"):
            raise Violation(f"{self._name(where)}: a body is required")

    def _check_content(
        self, where: tuple[str, ...], content: Node, content_type: str, body: Any, *, closed: bool = False
    ) -> None:
        kind = content_type.partition(";")[0].strip() or next(iter(content))
        if kind not in content:
            raise Violation(f"{self._name(where)}: content type {kind} is not one of {sorted(content)}")
        if "schema" in content[kind]:
            self._check_schema((*where, kind, "schema"), body, self._name(where), closed=closed)

    def _check_schema(self, where: tuple[str, ...], value: Any, label: str, *, closed: bool = False) -> None:
        pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in where)
        schema: Node = {"$ref": f"{ROOT}#/{pointer}".replace("{", "%7B").replace("}", "%7D")}
        if closed:
            schema["unevaluatedProperties"] = False
        validator = Draft202012Validator(schema, registry=self._registry, format_checker=formats)
        errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
        if errors:
            lines = [f"at {error.json_path}: {_reason(error)}" for error in errors[:5]]
            raise Violation("\n  ".join([f"{label}: does not fit", *lines]))


def _reason(error: Any) -> str:
    """The message, and for a choice what each of its branches minds."""
    branches = [f"{inner.json_path}: {inner.message}" for inner in error.context][:6]
    return "; ".join([error.message[:300], *(branch[:200] for branch in branches)])


def _grouped(query: Query | None) -> dict[str, list[str]]:
    """Values by name; a mapping may hold lists, and a multi-dict its repeated names."""
    pairs = query.items() if isinstance(query, Mapping) else (query or ())
    grouped: dict[str, list[str]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).extend(map(str, value) if isinstance(value, list | tuple) else [str(value)])
    return grouped


def _takes(document: Document, schema: Node, kind: str) -> bool:
    """Whether a schema of a parameter allows values of a type."""
    types = schema.get("type")
    if types is not None:
        return kind in ([types] if isinstance(types, str) else types)
    branches = [branch for word in ("allOf", "anyOf", "oneOf") for branch in schema.get(word, [])]
    return any(_takes(document, document._resolve((), branch)[1], kind) for branch in branches)


def _parsed(document: Document, schema: Node, text: str) -> Any:
    """A parameter's text as the type that its schema names; what does not parse stays text, and fails the schema."""
    if _takes(document, schema, "boolean") and text in ("true", "false"):
        return text == "true"
    if _takes(document, schema, "integer") and re.fullmatch(r"-?\d+", text):
        return int(text)
    if _takes(document, schema, "number") and re.fullmatch(r"-?\d+(\.\d+)?", text):
        return float(text)
    return text


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
