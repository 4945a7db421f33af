"""What all sources of a mixture must share: the tokenizer, the autoencoder, the shape of a latent or of codes."""

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.mix.config import MixConfig, MixSource
from transfusion.artifacts.artifact import Artifact
from transfusion.errors import ArtifactError
from transfusion.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Shape of every latent of the mixture; where images are tokens, of their codes: one channel."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Of all sources of a mixture."""

    num_pieces: int
    """Of the tokenizer."""
    num_codes: int
    """Ids of codes among the tokens; 0 where images are latents or there are none."""
    latent: Latent


def constants_of_inputs(config: MixConfig, inputs: Mapping[str, Artifact]) -> Constants:
    """What the inputs of a mixture have in common.

    Raises:
        ArtifactError: They have it not, or an input is of another kind.
    """
    coded: dict[tuple[int, str, Latent], str] = {}
    pieces: dict[tuple[int, str | None], str] = {}
    latents: dict[tuple[Latent, str | None], str] = {}
    for name, source in config.sources.items():
        for field, role, kind in (
            ("tokens", source.tokens, "tokens"),
            ("latents", source.latents, "latents"),
        ):
            if role is not None and inputs[role].kind != kind:
                raise ArtifactError(
                    f"sources.{name}.{field}: the input {role!r} holds {inputs[role].kind}, not {kind}"
                )
        tokens = inputs[source.tokens]
        tokenizer = (
            tokens.input("tokenizer").manifest.digest
            if "tokenizer" in tokens.manifest.inputs
            else None
        )
        pieces.setdefault((tokens.metadata["num_pieces"], tokenizer), name)
        if tokens.metadata.get("num_codes"):
            coded.setdefault(_codes(name, source, tokens), name)
        if source.latents is not None:
            made = inputs[source.latents]
            latents.setdefault((_latent(name, made), made.metadata.get("autoencoder")), name)
    for what, found in (("tokenizers", pieces), ("autoencoders or latent shapes", latents)):
        if len(found) > 1:
            raise ArtifactError(
                f"sources: {', '.join(found.values())} have different {what} "
                f"({', '.join(f'{kind}, digest {digest}' for kind, digest in found)}); one model reads one kind"
            )
    if len(coded) > 1 or (coded and latents):
        names = [*coded.values(), *latents.values()]
        raise ArtifactError(
            f"sources: {', '.join(names)} hold images as codes of different autoencoders or sizes, or some as "
            "codes and some as latents; one model reads one kind"
        )
    # Text alone: a latent of one patch stands in, and no sequence holds any.
    patch = config.layout.patch_size
    (num_pieces, _), *_ = pieces
    latent = next((latent for latent, _ in latents), Latent(channels=1, height=patch, width=patch))
    num_codes, _, latent = next(iter(coded), (0, "", latent))
    if num_codes and patch != 1:
        raise ArtifactError(
            f"layout.patch_size is {patch}, and images are tokens, one for each code; set it to 1"
        )
    if num_codes and config.layout.clean_copies:
        raise ArtifactError(
            "layout.clean_copies: images are tokens here, and no token has noise; leave it out"
        )
    return Constants(num_pieces=num_pieces, num_codes=num_codes, latent=latent)


def sources_of_codes(config: MixConfig, inputs: Mapping[str, Artifact]) -> list[str]:
    """Sources whose tokens may be codes of images: their documents stay whole, as images do."""
    return [
        name
        for name, source in config.sources.items()
        if inputs[source.tokens].metadata.get("num_codes")
    ]


def _codes(name: str, source: MixSource, tokens: Artifact) -> tuple[int, str, Latent]:
    if source.latents is not None:
        raise ArtifactError(
            f"sources.{name}.latents: the images of these documents are among their tokens already; leave it out"
        )
    values = tokens.metadata
    shape = Latent(channels=1, height=values["code_height"], width=values["code_width"])
    return values["num_codes"], values["autoencoder"], shape


def _latent(name: str, artifact: Artifact) -> Latent:
    values = artifact.metadata
    if values.get("latent_height") is None or values.get("latent_width") is None:
        raise ArtifactError(
            f"sources.{name}.latents: these latents have several shapes (aspect buckets), and a sequence is "
            "planned for one; encode them without buckets"
        )
    return Latent(
        channels=values["latent_channels"],
        height=values["latent_height"],
        width=values["latent_width"],
    )


def patches_of_an_image(config: MixConfig, latent: Latent, context: StageContext) -> int:
    """How many patches an image has.

    Raises:
        ArtifactError: The latents are in no whole number of patches, or an image fits no sequence.
    """
    try:
        num_patches = config.layout.num_patches(latent.height, latent.width)
    except ValueError as error:
        raise ArtifactError(f"{context.name}: layout: {error}") from error
    has_images = any(source.latents for source in config.sources.values())
    least = config.layout.image_length(num_patches) + 2
    if has_images and least > config.sequence_length:
        raise ArtifactError(
            f"{context.name}: sequence_length is {config.sequence_length}, and an image alone takes {least} "
            "positions: raise sequence_length or layout.patch_size"
        )
    return config.layout.block_length(num_patches)
