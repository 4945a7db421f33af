"""JSON Schema of a job file, so that an editor completes and checks it."""

from typing import Any

from transfusion.spec.job import JobFile
from transfusion.spec.stages import find_stage, known_stages
from transfusion.stage import ANY_ROLE, Stage


def job_schema() -> dict[str, Any]:
    """The schema, with one alternative for each stage that a job may use."""
    schema = JobFile.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    alternatives = [_stage_schema(uses, find_stage(uses), definitions) for uses in known_stages()]
    definitions["StageSpec"] = {"oneOf": alternatives}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transfusion job",
        **schema,
    }


def _stage_schema(uses: str, stage: Stage, definitions: dict[str, Any]) -> dict[str, Any]:
    config = stage.config.model_json_schema(ref_template="#/$defs/{model}")
    definitions.update(config.pop("$defs", {}))
    roles = {role: {"type": "string"} for role in stage.inputs if role != ANY_ROLE}
    required = [
        role for role, wanted in stage.inputs.items() if wanted.required and role != ANY_ROLE
    ]
    inputs = {
        "type": "object",
        "properties": roles,
        "required": required,
        "additionalProperties": {"type": "string"} if ANY_ROLE in stage.inputs else False,
    }
    return {
        "type": "object",
        "description": stage.summary,
        "properties": {"uses": {"const": uses}, "inputs": inputs, "config": config},
        "required": [
            "uses",
            *(["inputs"] if required else []),
            *(["config"] if "required" in config else []),
        ],
        "additionalProperties": False,
    }
