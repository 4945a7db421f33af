"""What the stages of a plan would cost on accelerators, from a profile's measured rates.

Only what is known without starting anything is counted: rows from configs and from artifacts that are there,
positions from the mixture's config, FLOPs from the model's. The rest stays a question mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transfusion.artifacts.artifact import Artifact, find_artifact
from transfusion.model.config import ModelConfig
from transfusion.model.flops import usual_flops_per_position
from transfusion.model.presets import LLAMA_VOCABULARY
from transfusion.runner.profile import Profile, Rates
from transfusion.spec.plan import PlannedStage
from transfusion.stage import duration
from transfusion.storage.store import Store

_COUNTED_BY = ("latents", "pixels", "tokens")
"""Kinds made of a listing whose outcomes say how many rows it has; the first that is there is asked."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The work of a stage that would run."""

    stage: str
    unit: str
    """What is counted: images, positions."""
    amount: int | None
    """None where it cannot be told before a stage upstream has run."""
    rate: float | None
    """Units a second of one accelerator; None where the profile gives none."""
    accelerators: int

    @property
    def hours(self) -> float | None:
        """Accelerator-hours; None where amount or rate is not known."""
        if self.amount is None or self.rate is None:
            return None
        return self.amount / self.rate / 3600


def estimate(plan: Sequence[PlannedStage], store: Store, profile: Profile) -> list[Estimate]:
    """The stages that would run and keep accelerators busy: encoding, and training on a mixture.

    Shards that an interrupted run left behind, and checkpoints, are not looked at: it is at most so much.
    """
    by_name = {planned.stage.name: planned for planned in plan}
    found = []
    for planned in plan:
        if planned.status == "cached":
            continue
        kind, inputs = planned.stage.declaration.output, planned.stage.inputs
        if kind == "latents" and "images" in inputs:
            found.append(
                Estimate(
                    stage=planned.stage.name,
                    unit="images",
                    amount=_rows(inputs["images"], by_name, store),
                    rate=profile.rates.images_per_second,
                    accelerators=profile.pool.num_actors,
                )
            )
        elif kind == "run" and "mixture" in inputs:
            found.append(
                Estimate(
                    stage=planned.stage.name,
                    unit="positions",
                    amount=_positions(planned, by_name[inputs["mixture"]]),
                    rate=_train_rate(planned, by_name[inputs["mixture"]], profile.rates),
                    accelerators=profile.train.num_workers,
                )
            )
    return found


def _rows(listing: str, plan: Mapping[str, PlannedStage], store: Store) -> int | None:
    """Rows of a listing: its config's, or those that came into an artifact made of it."""
    told = getattr(plan[listing].stage.config, "num_images", None)
    if told is not None:
        return int(told)
    made = [
        planned
        for planned in plan.values()
        if planned.status == "cached" and listing in planned.stage.inputs.values()
    ]
    for kind in _COUNTED_BY:
        for planned in made:
            if planned.stage.declaration.output == kind:
                artifact = _artifact(planned, store)
                outcomes = artifact.manifest.content.outcomes if artifact else None
                if outcomes is not None:
                    return outcomes.input
    return None


def _artifact(planned: PlannedStage, store: Store) -> Artifact | None:
    return find_artifact(store, uses=planned.stage.uses, fingerprint=planned.fingerprint)


def _positions(run: PlannedStage, mixture: PlannedStage) -> int | None:
    """Positions of all steps, padding included: it is computed like the rest."""
    plan = mixture.stage.config
    factors = [getattr(run.stage.config, "steps", None)]
    factors += [
        getattr(plan, name, None)
        for name in ("lanes", "sequences_per_micro_batch", "sequence_length")
    ]
    product = 1
    for factor in factors:
        if factor is None:
            return None
        product *= int(factor)
    return product


def _train_rate(run: PlannedStage, mixture: PlannedStage, rates: Rates) -> float | None:
    """Positions a second of one accelerator: as measured, or by FLOPs of the paper's vocabulary and mix."""
    if rates.train_positions_per_second is not None or rates.train_tflops_per_second is None:
        return rates.train_positions_per_second
    model, plan = getattr(run.stage.config, "model", None), mixture.stage.config
    layout = getattr(plan, "layout", None)
    if not isinstance(model, ModelConfig) or layout is None:
        return None
    flops = usual_flops_per_position(
        model,
        vocab_size=LLAMA_VOCABULARY,
        sequence_length=getattr(plan, "sequence_length", 4096),
        image_attention=layout.image_attention,
        has_latents=any(source.latents for source in getattr(plan, "sources", {}).values()),
    )
    return 1e12 * rates.train_tflops_per_second / flops


def estimate_text(estimates: Sequence[Estimate], profile: Profile, *, where: str) -> str:
    """A line a stage, and the sum. Empty where no stage would keep an accelerator busy."""
    if not estimates:
        return ""
    if profile.rates == Rates():
        return f"no estimate: {where} has no rates; cluster/gpu-cluster.yaml shows how they are written"
    price = profile.rates.price_per_hour
    lines = [f"estimate, by the rates of {where} (at most: what an earlier run left is reused)"]
    width = max(len(one.stage) for one in estimates)
    for one in estimates:
        amount = "?" if one.amount is None else f"{one.amount:,}"
        told = f"  {one.stage:{width}}  {amount} {one.unit} at {_rate(one.rate)}/s"
        if one.hours is not None:
            lasting = duration(3600 * one.hours / one.accelerators)
            told += (
                f": {_hours(one.hours)}, {lasting} on {one.accelerators}{_cost(one.hours, price)}"
            )
        lines.append(told)
    known = [one.hours for one in estimates if one.hours is not None]
    unknown = [one.stage for one in estimates if one.hours is None]
    total = f"  {'in all':{width}}  {_hours(sum(known))}{_cost(sum(known), price)}"
    if unknown:
        total += f", and {', '.join(unknown)}, where something is not known (?)"
    return "\n".join([*lines, total])


def _rate(rate: float | None) -> str:
    if rate is None:
        return "?"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _hours(hours: float) -> str:
    return f"{hours:,.3g} accelerator-hours" if hours < 1000 else f"{hours:,.0f} accelerator-hours"


def _cost(hours: float, price: float | None) -> str:
    return f", ${hours * price:,.2f}" if price is not None else ", $?"
