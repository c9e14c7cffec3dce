"""Validates Kubernetes manifests: python manifests.py FOLDER_OF_CRDS < manifests.

Kubernetes' own kinds strictly against the schemas of kubernetes-validate, the Prometheus operator's against its custom resource
definitions without unknown fields. Prints one line per resource; exits with 1 if one is invalid.
"""

import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.33"

# PyYAML gives a lone = a type of its own.
yaml.SafeLoader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def closed(schema):
    """The schema without additional properties."""
    if isinstance(schema, dict):
        schema = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [closed(value) for value in schema]
    return schema


def custom(folder, kind, api):
    """The schema of a custom resource from its definition in the folder, or None."""
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
            # Not check_schema: the regular expressions of the definitions are Go's.
            jsonschema.Draft202012Validator(schema).validate(resource)
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        print(kind, resource["metadata"]["name"])


main()
