"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them: evaluations cut texts by them.

No text spells a special token here, so none is named: `bos_token` and `eos_token` are null.
"""

from typing import Any

from fastapi import APIRouter

from transfusion.serve.prompts import check_length, check_token_ids, check_unicode
from transfusion.serve.schema import DetokenizeRequest, TokenizeRequest
from transfusion.serve.service import Service

MAX_CHARS = 1_000_000
"""Of a text, or ids: documents of an evaluation are longer than a context, and others wait meanwhile."""

_WHY = "send it in parts"


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router = APIRouter()
    package, tokenizer = service.package, service.processor.package.tokenizer

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        service.check_model(body.model)
        check_length(len(body.prompt), MAX_CHARS, "prompt", _WHY)
        check_unicode([body.prompt], "prompt")
        ids = await service.decoder.aside(lambda: tokenizer.encode(body.prompt).tolist())
        tokens = [package.special.bos, *ids] if body.add_special_tokens else ids
        return {"tokens": tokens, "count": len(tokens), "max_model_len": package.sequence_length}

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        service.check_model(body.model)
        check_length(len(body.tokens), MAX_CHARS, "tokens", _WHY)
        check_token_ids(body.tokens, package.num_pieces, param="tokens")
        return {"prompt": await service.decoder.aside(lambda: tokenizer.decode(body.tokens))}

    @router.get("/tokenizer_info")
    async def info() -> dict[str, Any]:
        return {
            "tokenizer_class": "sentencepiece",
            "vocab_size": package.num_pieces,
            "model_max_length": package.sequence_length,
            "bos_token": None,
            "eos_token": None,
        }

    return router
