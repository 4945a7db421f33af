"""A model's transformer as others read it, and as we read it again."""

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import NUM_PIECES, model_config, tiny_model
from transfusion.errors import ArtifactError
from transfusion.model.attention import plan_attention
from transfusion.package.llama_write import write_llama
from transfusion.sequence.special import SpecialIds
from transfusion.train.pretrained import Start, begin

SPECIAL = SpecialIds.after(NUM_PIECES)


@torch.no_grad()
def test_transformers_reads_the_same_logits_and_we_the_same_weights(tmp_path):
    model = tiny_model()
    write_llama(tmp_path, model.config, model.state_dict(), special=SPECIAL, sequence_length=64)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.config.bos_token_id == SPECIAL.bos
    ids = torch.randint(0, NUM_PIECES, (2, 30), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(30).expand(2, 30)
    attend = plan_attention(torch.zeros_like(positions), positions + 1, query_block=8)
    hidden = model.transform(model.embed_tokens(ids), position_ids=positions, attention=attend)
    logits = model.logits(hidden.flatten(0, 1)).unflatten(0, (2, 30))
    assert (logits - theirs(ids).logits).abs().max() < 1e-4
    again = tiny_model(seed=3)
    taken = begin(again, Start(tmp_path), special=SPECIAL).loaded
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]) == (name in taken or weight.ndim < 2)


def test_what_no_llama_computes_is_not_written(tmp_path):
    model = tiny_model(qk_norm="rms", norm="post")
    with pytest.raises(ArtifactError, match=r"(?s)qk_norm.*model\.norm.*ids") as caught:
        write_llama(
            tmp_path,
            model.config,
            model.state_dict(),
            special=SpecialIds.after(7),
            sequence_length=64,
        )
    assert "weights" not in str(caught.value)
    assert model_config().weights == "shared"
