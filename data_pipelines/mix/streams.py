"""Sources as the streams that a packer draws from, and the weights of these in each phase."""

from collections.abc import Collection, Mapping, Sequence

from data_pipelines.mix.config import MixConfig
from data_pipelines.mix.documents import Documents
from transfusion.errors import ArtifactError
from transfusion.sequence.ledger import Budget, Phase
from transfusion.sequence.order import PairOrder, Stream


class Streams:
    """Each source as one or two streams: what holds images, and text alone, which may be cut.

    A phase that filters a source adds streams of what passes behind those that there are, so that the order of
    the earlier ones stays.
    """

    def __init__(
        self,
        sources: Sequence[str],
        num_patches: int,
        order: PairOrder,
        whole: Collection[str] = (),
    ) -> None:
        self.sources = list(sources)
        self._whole = whole
        self.documents: list[Documents] = []
        self.streams: list[Stream] = []
        self.phases: list[Phase] = []
        self.positions: list[dict[str, int]] = []
        """In each phase, of all documents of each source that takes part."""
        self.order = order
        """Of caption pairs."""
        self._num_patches = num_patches

    def add(self, name: str, documents: Documents) -> dict[int, int]:
        """Positions by number of the streams of these documents."""
        has_images = documents.images > 0
        found = {}
        for part in (documents.select(has_images), documents.select(~has_images)):
            if len(part):
                stream = part.stream(
                    weight=0.0,
                    source=self.sources.index(name),
                    num_patches=self._num_patches,
                    order=self.order,
                    whole=name in self._whole,
                )
                found[len(self.streams)] = stream.positions
                self.documents.append(part)
                self.streams.append(stream)
        return found

    def begin(
        self, step: int, weights: Mapping[str, float], drawn_from: Mapping[str, Mapping[int, int]]
    ) -> None:
        """A phase in which each source's weight is parted among its streams by their positions."""
        shares = [0.0] * len(self.streams)
        total = sum(weights[name] for name in drawn_from)
        for name, streams in drawn_from.items():
            for i, positions in streams.items():
                shares[i] = weights[name] / total * positions / sum(streams.values())
        self.phases.append(Phase(first_step=step, weights=shares))
        self.positions.append({name: sum(found.values()) for name, found in drawn_from.items()})


def training_streams(
    config: MixConfig,
    documents: Mapping[str, Documents],
    num_patches: int,
    *,
    whole: Collection[str] = (),
) -> Streams:
    """What a run draws from.

    Args:
        whole: Sources of which no document is cut.

    Raises:
        ArtifactError: A phase filters all documents of a source away.
    """
    streams = Streams(list(documents), num_patches, _order(config), whole)
    weights = {name: source.weight for name, source in config.sources.items()}
    base = {name: streams.add(name, found) for name, found in documents.items()}
    streams.begin(0, weights, base)
    for number, phase in enumerate(config.phases):
        if phase.start_step >= config.num_steps:
            break
        current = weights | phase.weights
        drawn_from = {}
        for name, found in documents.items():
            if not current[name]:
                continue
            drawn_from[name] = base[name]
            if phase.filters.get(name):
                passing = found.select((found.phases >> number & 1).astype(bool))
                if not len(passing):
                    raise ArtifactError(
                        f"phases[{number}].filters.{name}: none of the source's "
                        f"{found.num_documents} documents passes"
                    )
                drawn_from[name] = streams.add(name, passing)
        streams.begin(phase.start_step, current, drawn_from)
    # A stream that a later phase adds has no weight in the earlier ones.
    streams.phases = [
        Phase(
            first_step=phase.first_step,
            weights=[*phase.weights, *[0.0] * (len(streams.streams) - len(phase.weights))],
        )
        for phase in streams.phases
    ]
    return streams


def validation_streams(
    config: MixConfig,
    documents: Mapping[str, Documents],
    num_patches: int,
    *,
    whole: Collection[str] = (),
) -> Streams:
    """What is held out, of the sources that have any, at the weights with which the run begins."""
    streams = Streams(list(documents), num_patches, _order(config), whole)
    weights = {name: config.sources[name].weight for name in documents}
    streams.begin(0, weights, {name: streams.add(name, found) for name, found in documents.items()})
    return streams


def _order(config: MixConfig) -> PairOrder:
    return PairOrder(seed=config.seed, caption_first=config.caption_first)


def budgets(config: MixConfig) -> list[Budget | None]:
    """When each source is exhausted, and what then."""
    found: list[Budget | None] = []
    for source in config.sources.values():
        if source.when_exhausted == "repeat":
            found.append(None)
            continue
        epochs = source.max_epochs
        if epochs is None and source.max_tokens is None:
            epochs = 1.0
        found.append(
            Budget(max_epochs=epochs, max_positions=source.max_tokens, then=source.when_exhausted)
        )
    return found
