"""`msn views`: draw the views that a config makes of an image."""

import argparse

import PIL.Image

from msn.cli.terminal import say_written
from msn.config.load import load_views
from msn.data.image import BadImage, open_image
from msn.data.sources.base import read_file
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place, replacing
from msn.visualize.contact_sheet import contact_sheet


def run(options: argparse.Namespace) -> None:
    """Draw the views of one image, without opening the data set of the config."""
    config = load_views(options.fname, options.overrides)
    out = options.out
    prepare_place(out)
    try:
        data = read_file(str(options.image))
        image = open_image(data, config.data.channels or 3, str(options.image))
        sheet = contact_sheet(config, image, epochs=options.epochs)
    except BadImage as bad:
        raise UserError(f"--image {bad}; name another image") from None
    with replacing(out) as path:
        PIL.Image.fromarray(sheet).save(path, format="PNG")
    say_written(out)
