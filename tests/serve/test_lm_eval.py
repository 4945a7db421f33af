"""lm-evaluation-harness' `local-completions`, unchanged, scores as the model asked directly does.

Of a tiny model, or of a package: TRANSFUSION_TEST_PACKAGE=FOLDER pytest tests/serve/test_lm_eval.py
"""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.serve.serving import serving
from tests.tiny import hidden_behind, tiny_package
from transfusion.package.load import load_package
from transfusion.sample.reading import TextPart
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.service import Service

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'transfusion[lm-eval]'")

CONTEXTS = ["a red", "a green circle left", "two blue", "and a square of", "triangle", "red and"]
CHOICES = [" circle", " square", " green triangle", " left of two"]
CHOICE_TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITING_TASK = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 5, do_sample: false, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def logprobs(sampler: Sampler, ids: list[int]) -> torch.Tensor:
    """Of what comes behind some ids, read anew."""
    config, model = sampler.package.config, sampler.package.model
    hidden = hidden_behind(model, config, [TextPart((config.special.bos, *ids))])
    return model.logits(hidden[None]).log_softmax(-1)[0]


def score(sampler: Sampler, context: str, choice: str) -> float:
    encode = sampler.package.tokenizer.encode
    whole, known = encode(context + choice).tolist(), len(encode(context))
    return sum(logprobs(sampler, whole[:at])[whole[at]].item() for at in range(known, len(whole)))


def written(sampler: Sampler, context: str, count: int) -> str:
    """The likeliest token behind each other."""
    package = sampler.package
    ids = package.tokenizer.encode(context).tolist()
    known = len(ids)
    for _ in range(count):
        scores = logprobs(sampler, ids)
        best = int(scores[: package.config.num_pieces].argmax())
        if scores[package.config.special.eos] > scores[best]:
            break
        ids.append(best)
    return package.tokenizer.decode(ids[known:])


def write(folder: Path, name: str, task: str, rows: list[dict]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(task.format(data=data))


@torch.no_grad()
def test_choices_and_writing_score_as_the_model_does_asked_directly(tmp_path, monkeypatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    given = os.environ.get("TRANSFUSION_TEST_PACKAGE")
    sampler = Sampler(load_package(Path(given) if given else tiny_package(tmp_path)))
    scores = [[score(sampler, context, choice) for choice in CHOICES] for context in CONTEXTS]
    chosen = [row.index(max(row)) for row in scores]
    # The truth is what the model says for two of three, so that its accuracy is neither 0 nor 1.
    labels = [pick if at % 3 else (pick + 1) % 4 for at, pick in enumerate(chosen)]
    texts = [written(sampler, context, 5) for context in CONTEXTS]
    targets = [text if at % 2 else text + "!" for at, text in enumerate(texts)]
    write(
        tmp_path, "choice", CHOICE_TASK,
        [
            {"context": context, "choices": CHOICES, "label": label}
            for context, label in zip(CONTEXTS, labels, strict=True)
        ],
    )  # fmt: skip
    write(
        tmp_path, "writing", WRITING_TASK,
        [
            {"context": context, "target": target}
            for context, target in zip(CONTEXTS, targets, strict=True)
        ],
    )  # fmt: skip
    with serving(Service(sampler, EndpointConfig())) as address:
        told = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": sampler.package.config.name, "base_url": f"{address}v1/completions", "max_length": 64,
                "max_gen_toks": 5, "num_concurrent": 1,
            },
            batch_size=4,
            tasks=["tiny_choice", "tiny_writing"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            bootstrap_iters=0,
        )  # fmt: skip
    samples = told["samples"]
    for sample in samples["tiny_choice"]:
        given = [float(reply[0][0]) for reply in sample["resps"]]
        assert given == pytest.approx(scores[sample["doc_id"]], abs=1e-3)
    for sample in samples["tiny_writing"]:
        assert sample["resps"][0][0] == texts[sample["doc_id"]]
    right = [pick == label for pick, label in zip(chosen, labels, strict=True)]
    exact = [text == target for text, target in zip(texts, targets, strict=True)]
    results = told["results"]
    assert results["tiny_choice"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert results["tiny_writing"]["exact_match,none"] == pytest.approx(sum(exact) / len(exact))
