"""JSON Schemas for editors, and a description of every field that a user writes."""

import json
import subprocess
import sys

import forked_commands
import pytest
from pydantic import BaseModel

from furnace_hpc.config.parsing.validation import _model_inside
from furnace_hpc.schema import KINDS


def printed(kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "furnace_hpc.schema", kind]
    return forked_commands.run(command)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_json_and_allow_no_other_key(kind):
    schema = json.loads(printed(kind).stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(KINDS[kind].model_fields)


def test_the_grids_schema_has_the_keys_of_base():
    base = json.loads(printed("grid").stdout)["properties"]["base"]["properties"]
    assert {"optimizer", "loss", "steps", "deepspeed"} <= base.keys()
    assert {"type": "string"} in base["deepspeed"]["anyOf"]


def test_editors_accept_lists_and_numbers():
    """Where a list or a number is stored as text."""
    properties = json.loads(printed("cluster").stdout)["properties"]
    partition = {"type": "array", "items": {"type": "string"}}
    assert partition in properties["partition"]["anyOf"]
    kinds = [one["type"] for one in properties["sbatch"]["additionalProperties"]["anyOf"]]
    assert kinds == ["string", "integer", "boolean", "array", "null"]


def test_an_unknown_kind_is_refused():
    done = printed("gird")
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown kind 'gird'; did you mean 'grid'? "
        "(valid: cluster, config, deepspeed, grid)\n"
    )


def undescribed(model: type[BaseModel]) -> list[str]:
    missing = []
    for name, field in model.model_fields.items():
        inner = _model_inside(field.annotation)
        if inner:
            missing += undescribed(inner)
        elif not field.description and name != "format":
            missing.append(f"{model.__name__}.{name}")
    return missing


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_description(kind):
    assert undescribed(KINDS[kind]) == []
