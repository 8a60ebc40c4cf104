"""What `kubectl kustomize` makes of a folder, for the few features that deploy/kubernetes uses; any other is refused.

A stand-in for machines without kubectl. Where there is one, test_kubernetes.py compares the two.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
# Digits and vowels that would make words, as kustomize writes a hash.
LETTERS = str.maketrans("013ae", "ghkmt")
HASH_LENGTH = 10
WITH_IMAGES = ("containers", "initContainers")
REFERENCES = ("configMapRef", "configMapKeyRef", "configMap")


class Unknown(Exception):
    """Something that this renderer does not know, or a document that is wrong."""


@dataclass
class Rendering:
    objects: list[Object] = field(default_factory=list)
    generated: dict[tuple[str, str], bool] = field(default_factory=dict)
    """ConfigMaps by namespace and name; whether a hash goes behind the name."""

    def add(self, new: Object) -> None:
        if identity(new) in map(identity, self.objects):
            raise Unknown(f"{identity(new)} is there twice")
        self.objects.append(new)


def render(folder: Path) -> list[Object]:
    """All objects. Error: Unknown."""
    rendering = Rendering()
    _into(rendering, folder, "Kustomization")
    _name_by_hash(rendering)
    return rendering.objects


def identity(found: Object) -> tuple[str, str, str, str]:
    metadata = found["metadata"]
    return found["apiVersion"], found["kind"], metadata.get("namespace", ""), metadata["name"]


def _into(rendering: Rendering, folder: Path, kind: str) -> None:
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if said.get("kind") != kind or said.get("apiVersion") != KINDS[kind]:
        raise Unknown(f"{folder}: not a {kind}")
    steps: dict[str, Callable[[Any], None]] = {
        "resources": lambda name: _resource(rendering, folder / name),
        "components": lambda name: _into(rendering, folder / name, "Component"),
        "configMapGenerator": lambda one: _generate(rendering, folder, one),
        "patches": lambda one: _patch(rendering, _only(one, {"target", "patch"})),
        "images": lambda one: _set_image(rendering, _only(one, {"name", "newName", "newTag"})),
        "replacements": lambda one: _replace(rendering, _only(one, {"source", "targets"})),
    }
    _only(said, {"apiVersion", "kind", *steps})
    for key, step in steps.items():  # in this order, whatever the file's is
        for one in said.get(key, []):
            step(one)


def _resource(rendering: Rendering, path: Path) -> None:
    if path.is_dir():
        return _into(rendering, path, "Kustomization")
    for one in yaml.safe_load_all(path.read_text()):
        rendering.add(one)
    return None


def _only(said: Object, known: set[str]) -> Object:
    if strange := said.keys() - known:
        raise Unknown(f"unknown: {sorted(strange)}")
    return said


def _generate(rendering: Rendering, folder: Path, said: Object) -> None:
    _only(said, {"name", "namespace", "behavior", "envs", "files", "options"})
    options = _only(said.get("options", {}), {"disableNameSuffixHash"})
    data: dict[str, str] = {}
    for name in said.get("envs", []):
        data |= _variables((folder / name).read_text())
    data |= {name: (folder / name).read_text() for name in said.get("files", [])}
    key = (said["namespace"], said["name"])
    match said.get("behavior", "create"):
        case "create":
            metadata = {"name": said["name"], "namespace": said["namespace"]}
            rendering.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
            rendering.generated[key] = not options.get("disableNameSuffixHash", False)
        case "merge":
            if key not in rendering.generated:
                raise Unknown(f"{key} cannot be merged into: no generator made it")
            (found,) = (one for one in rendering.objects if identity(one) == ("v1", "ConfigMap", *key))
            found["data"] |= data
        case other:
            raise Unknown(f"behavior {other}")


def _variables(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if any("=" not in line for line in lines):
        raise Unknown("a line without = is taken from the environment")
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _selected(rendering: Rendering, target: Object) -> list[Object]:
    """Names and kinds of a target are expressions that match the whole."""
    _only(target, {"group", "version", "kind", "name", "namespace"})
    found = []
    for one in rendering.objects:
        group, _, version = one["apiVersion"].rpartition("/")
        has = {"group": group, "version": version, "kind": one["kind"], **one["metadata"]}
        if all(re.fullmatch(wanted, has.get(key, "")) for key, wanted in target.items()):
            found.append(one)
    if not found:
        raise Unknown(f"nothing is {target}")
    return found


def _patch(rendering: Rendering, said: Object) -> None:
    operations = yaml.safe_load(said["patch"])
    if not isinstance(operations, list):
        raise Unknown("only JSON patches are known here")
    for one in _selected(rendering, said["target"]):
        for operation in operations:
            _operate(one, _only(operation, {"op", "path", "value"}))


def _operate(found: Object, said: Object) -> None:
    """RFC 6902, of which `add`, `replace` and `remove`."""
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in said["path"].split("/")[1:])
    here: Any = found
    for part in way:
        here = here[int(part)] if isinstance(here, list) else here[part]
    value = copy.deepcopy(said.get("value"))
    match said["op"], here:
        case "add", list() if last == "-":
            here.append(value)
        case "add", dict():
            here[last] = value
        case "replace", dict() if last in here:
            here[last] = value
        case "remove", dict() if last in here:
            del here[last]
        case _:
            raise Unknown(f"{said['op']} at {said['path']}")


def _containers(value: Any) -> Iterator[Object]:
    if isinstance(value, list):
        for inner in value:
            yield from _containers(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in WITH_IMAGES:
                yield from inner
            else:
                yield from _containers(inner)


def _set_image(rendering: Rendering, said: Object) -> None:
    for one in rendering.objects:
        for container in _containers(one):
            name, _, tag = container["image"].partition(":")
            if name == said["name"]:
                container["image"] = f"{said.get('newName', name)}:{said.get('newTag', tag)}"


def _replace(rendering: Rendering, said: Object) -> None:
    source = _only(said["source"], {"kind", "name", "fieldPath"})
    (giver,) = (one for one in rendering.objects if (one["kind"], one["metadata"]["name"]) == _kind_and_name(source))
    here, key = _place(giver, source["fieldPath"])
    value = here[key]
    for target in said["targets"]:
        _only(target, {"select", "fieldPaths"})
        for one in rendering.objects:
            if (one["kind"], one["metadata"]["name"]) == _kind_and_name(_only(target["select"], {"kind", "name"})):
                for path in target["fieldPaths"]:
                    there, key = _place(one, path)
                    there[key] = value


def _kind_and_name(said: Object) -> tuple[str, str]:
    return said["kind"], said["name"]


def _place(found: Object, path: str) -> tuple[Any, Any]:
    """Where `a.b.0.[name=x].c` leads; it must be there."""
    here: Any = found
    *way, last = re.findall(r"\[[^\]]*\]|[^.]+", path)
    for part in way:
        if match := re.fullmatch(r"\[(\w+)=(.*)\]", part):
            (here,) = (one for one in here if one[match[1]] == match[2])
        else:
            here = here[int(part)] if isinstance(here, list) else here[part]
    if last not in here:
        raise Unknown(f"nothing is at {path}")
    return here, last


def _name_by_hash(rendering: Rendering) -> None:
    renamed: dict[tuple[str, str], str] = {}
    for one in rendering.objects:
        key = (one["metadata"].get("namespace", ""), one["metadata"]["name"])
        if one["kind"] == "ConfigMap" and rendering.generated.get(key, False):
            renamed[key] = one["metadata"]["name"] = f"{key[1]}-{_hash(one)}"
    for one in rendering.objects:
        _refer(one, one["metadata"].get("namespace", ""), renamed)


def _hash(config_map: Object) -> str:
    said = {"data": config_map["data"], "kind": "ConfigMap", "name": ""}  # without the name, as kustomize does it
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":  # Go escapes them in JSON
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH].translate(LETTERS)


def _refer(value: Any, namespace: str, renamed: dict[tuple[str, str], str]) -> None:
    if isinstance(value, list):
        for inner in value:
            _refer(inner, namespace, renamed)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in REFERENCES and isinstance(inner, dict) and "name" in inner:
                inner["name"] = renamed.get((namespace, inner["name"]), inner["name"])
            _refer(inner, namespace, renamed)
