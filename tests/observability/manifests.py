"""Checks Kubernetes manifests against the schemas: python manifests.py FOLDER_OF_CRDS < manifests.

Kubernetes' own kinds against kubernetes-validate's schemas, strictly; the Prometheus operator's against its custom resource
definitions, in which nothing unknown is allowed either. Prints a line for each resource, or ends with 1.
"""

import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.33"

# To PyYAML a lone = is more than a text.
yaml.SafeLoader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def closed(schema):
    """The schema, with nothing allowed that it does not name."""
    if isinstance(schema, dict):
        schema = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [closed(value) for value in schema]
    return schema


def custom(folder, kind, api):
    """The schema of a custom resource, from its definition in a folder; None where that is not there."""
    group, version = api.split("/") if "/" in api else ("", api)
    file = pathlib.Path(folder, f"{group}_{kind.lower()}s.yaml")
    if not file.exists():
        return None
    versions = yaml.safe_load(file.read_text())["spec"]["versions"]
    schema = next(found["schema"]["openAPIV3Schema"] for found in versions if found["name"] == version)
    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def main():
    for resource in yaml.safe_load_all(sys.stdin):
        kind, api = resource["kind"], resource["apiVersion"]
        schema = custom(sys.argv[1], kind, api)
        if schema:
            # Without a check of the schema itself, whose regular expressions are Go's.
            jsonschema.Draft202012Validator(schema).validate(resource)
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        print(kind, resource["metadata"]["name"])


main()
