"""Holds events to their schema: reads a list of details, and says what is wrong with each."""

import json
import sys

from jsonschema import Draft202012Validator

with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
# A consumer passes over fields that it does not know; what we send is written down, all of it.
schema["unevaluatedProperties"] = False
validator = Draft202012Validator(schema)
faults = [
    f"{detail.get('type')}: {error.json_path}: {error.message} {[e.message for e in error.context]}"
    for detail in json.load(sys.stdin)
    for error in validator.iter_errors(detail)
]
json.dump(faults, sys.stdout)
