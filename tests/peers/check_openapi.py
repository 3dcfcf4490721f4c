"""Checks an OpenAPI document with a validator that is not ours, and each example with its schema.

usage: check_openapi.py openapi.json
"""

import json
import sys

import jsonschema_rs
from openapi_spec_validator import OpenAPIV31SpecValidator


def main(path):
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    findings = [f"the document: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    checked = 0
    for where, schema, example in examples(document):
        checked += 1
        # The references of a schema point into the document.
        whole = {**schema, "components": document["components"]}
        validator = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        findings += [f"{where}: {error.message}" for error in validator.iter_errors(example)]
    print("\n".join(findings) or f"{checked} examples fit")
    return 1 if findings or checked == 0 else 0


def examples(document):
    for name, schema in document["components"]["schemas"].items():
        yield from of_schema(f"schema {name}", schema)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", []):
                yield from of_schema(f"{where}: {parameter['name']}", parameter["schema"])
            yield from of_content(f"{where}: body", operation.get("requestBody", {}))
            for status, response in operation["responses"].items():
                yield from of_content(f"{where}: {status}", response)


def of_content(where, holder):
    for content in holder.get("content", {}).values():
        if "example" not in content:
            # Swagger UI would make one up.
            raise SystemExit(f"{where} has no example")
        yield where, content["schema"], content["example"]


def of_schema(where, schema):
    if not isinstance(schema, dict):
        return
    if "example" in schema:
        yield where, schema, schema["example"]
    if "default" in schema:
        yield where, schema, schema["default"]
    for key in ("items", "additionalProperties"):
        yield from of_schema(f"{where}.{key}", schema.get(key))
    for key in ("oneOf", "anyOf", "allOf"):
        for one in schema.get(key, []):
            yield from of_schema(where, one)
    for name, one in schema.get("properties", {}).items():
        yield from of_schema(f"{where}.{name}", one)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
