"""Commands on a model package: sample it, serve it."""

from pathlib import Path
from typing import Annotated

import typer

from transfusion.cli.options import Overrides, Profile


def sample(
    model: Annotated[Path, typer.Argument(help="A model package, or a job file that made one.")],
    overrides: Overrides = None,
    prompt: Annotated[str, typer.Option(help="What to draw, or to continue.")] = "",
    image: Annotated[Path | None, typer.Option(help="An image to describe or to edit.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with a prompt a line; what is made is not made again."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is made.")] = Path("samples"),
    mode: Annotated[
        str,
        typer.Option(
            help="image, text, free (both, as the model likes), edit, infill (images where the prompt has "
            "\\[image]), or auto."
        ),
    ] = "auto",
    solver: Annotated[str | None, typer.Option(help="ddpm, ddim, dpm++ or unipc.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 is none.")] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="Of the image that is edited; 1 is none.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of text; 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of text.")] = None,
    max_images: Annotated[int | None, typer.Option(help="In mode free.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a prompt, describe or edit an image, or let the model go on freely. Defaults are the package's.

    A job is given with the overrides that it was run with, which are part of what its model is.
    """
    from transfusion.runner.show import model_folder
    from transfusion.sample.command import sample_to_files

    params = {
        "solver": solver,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": image_guidance_scale,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "max_images": max_images,
        "seed": seed,
    }
    for line in sample_to_files(
        model_folder(model, overrides or ()),
        prompt=prompt,
        image=image,
        out_dir=out,
        params=params,
        mode=mode,
        prompts=prompts,
    ):
        typer.echo(line)


def serve(
    model: Annotated[Path, typer.Argument(help="A model package, or a job file with an endpoint.")],
    overrides: Overrides = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; loopback by default.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    profile: Profile = None,
) -> None:
    """Offer a model over HTTP until interrupted: a playground, and /v1 for OpenAI's clients."""
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging
    from transfusion.runner.serve import serve_model

    serve_model(
        model,
        overrides=overrides or (),
        host=host,
        port=port,
        resources=read_profile(profile),
        log=configure_logging(),
    )
