"""`msn views`: a picture of the views that a config makes of an image."""

import argparse
from pathlib import Path

import PIL.Image

from msn.config.load import load_config
from msn.data.image import BadImage, open_image
from msn.runtime.errors import UserError
from msn.runtime.files import replacing
from msn.visualize.contact_sheet import contact_sheet


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--fname", required=True, metavar="CONFIG", help="YAML config file")
    parser.add_argument("--image", required=True, metavar="FILE", help="the image to make views of")
    parser.add_argument("--out", required=True, metavar="PNG", help="where the picture goes")
    parser.add_argument("--epochs", type=int, default=4, help="rows of views (default 4)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that replace those of the config file",
    )


def run(options: argparse.Namespace) -> None:
    """Draw the views of one image; the data set of the config is not touched."""
    config = load_config(options.fname, options.overrides)
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: is written as PNG; give a name that ends in .png")
    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs}: must be at least 1")
    try:
        data = Path(options.image).read_bytes()
    except OSError as error:
        raise UserError(
            f"--image {options.image}: cannot be read ({error.strerror}); name an image file"
        ) from None
    try:
        image = open_image(data, config.data.channels or 3, options.image)
        sheet = contact_sheet(config, image, epochs=options.epochs)
    except BadImage as bad:
        raise UserError(f"--image {bad}; name another image") from None
    with replacing(out) as path:
        PIL.Image.fromarray(sheet).save(path, format="PNG")
    print(f"{options.epochs} rows of views in {out}")
