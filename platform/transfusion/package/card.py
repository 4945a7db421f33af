"""The model card, `README.md` of a package: what it is, how to use it, what it was made from."""

from collections.abc import Mapping
from types import MappingProxyType

from transfusion.diffusion.config import TargetName, VarianceName
from transfusion.package.format import PackageConfig

_PREDICTED: Mapping[TargetName, str] = MappingProxyType(
    {"epsilon": "the noise", "v": "v", "flow": "the velocity of the flow"}
)
_VARIANCES: Mapping[VarianceName, str] = MappingProxyType(
    {"fixed": "", "learned_range": " and its variance"}
)

_OF_LATENTS = (
    "A Transfusion model (arXiv:2408.11039): one transformer that predicts the next token on text and",
    "denoises latents of images.",
)
_OF_CODES = (
    "A model in the manner of Chameleon (arXiv:2405.09818): one transformer that predicts the next token, be it",
    "text or a code of an image.",
)


def model_card(config: PackageConfig, *, num_parameters: int) -> str:
    """The card as Markdown."""
    model = config.model
    lines = [
        "---",
        "library_name: transfusion",
        "tags: [transfusion, text-to-image, image-to-text]",
        "---",
        "",
        f"# {config.name}",
        "",
        *(_OF_CODES if config.num_codes else _OF_LATENTS),
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {num_parameters:,} |",
        f"| transformer | {model.depth} layers, width {model.dim}, {model.num_heads} heads |",
        f"| image adapter | {model.adapter}, patches of {model.patch_size} x {model.patch_size} |",
        f"| images | {config.image_size_px} x {config.image_size_px} px, {_image(config)}, "
        f"{config.num_patches} positions |",
        f"| text | {config.num_pieces:,} sentencepiece pieces, context of {config.sequence_length} |",
        *_drawing(config),
        "",
        "## Use",
        "",
        "```",
        'transfusion sample FOLDER --prompt "..."',
        "transfusion serve FOLDER",
        "```",
        "",
        "`ema.safetensors` is what is sampled; `model.safetensors` are the weights as trained. `config.json`",
        "holds the sha256 of every file; nothing here is a pickle.",
    ]
    if config.lineage:
        lines += [
            "",
            "## Made from",
            "",
            "| stage | made by | fingerprint | content |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {one.stage} | `{one.uses}` | `{one.fingerprint[:16]}` | `{one.digest[:16]}` |"
            for one in config.lineage
        ]
    return "\n".join(lines) + "\n"


def _image(config: PackageConfig) -> str:
    grid = f"{config.latent_height} x {config.latent_width}"
    if config.num_codes:
        return f"{grid} codes of {config.num_codes:,}"
    return f"{config.latent_channels} x {grid} latents"


def _drawing(config: PackageConfig) -> list[str]:
    sampling = config.sampling
    if config.num_codes:
        return [
            f"| sampled by | codes at temperature {sampling.code_temperature:g}, "
            f"guidance {sampling.guidance_scale:g} |"
        ]
    return [
        f"| noise | {config.schedule}, {config.num_timesteps} timesteps, "
        f"predicts {_PREDICTED[config.target]}{_VARIANCES[config.variance]} |",
        f"| sampled by | {sampling.solver}, {sampling.num_inference_steps} steps, "
        f"guidance {sampling.guidance_scale:g} |",
    ]
