"""Whether a model can be trained on a plan, by the layout that it was packed for."""

import pytest

from tests.tiny import model_config
from tests.train.worlds import config
from transfusion.artifacts.mixture import Mixture
from transfusion.errors import ArtifactError
from transfusion.train.run import check_plan


@pytest.mark.parametrize(("embedding", "time_token"), [("token", False), ("mlp", True)])
def test_a_time_token_is_the_models_and_the_plans_or_neithers(embedding, time_token):
    model = model_config(adapter="linear", time_embedding=embedding)
    layout = {"patch_size": 2} | ({"time_token": True} if time_token else {})
    plan = Mixture.model_construct(layout=layout, steps=6, sources={})
    with pytest.raises(ArtifactError, match=r"layout\.time_token"):
        check_plan(config(model=model), plan)
    other = model_config(
        adapter="linear", time_embedding="mlp" if embedding == "token" else "token"
    )
    check_plan(config(model=other), plan)
