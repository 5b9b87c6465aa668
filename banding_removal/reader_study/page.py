"""The page of one reader: a file that needs nothing else, and asks no other host for anything."""

import base64
import json
from collections.abc import Sequence
from importlib import resources

from banding_removal.reader_study.blinding import Reader
from banding_removal.reader_study.images import CaseImages
from banding_removal.reader_study.settings import BEST_SCORE, Rating

CRITERIA = {
    "banding": "streaks along one direction, mostly in air and dark tissue",
    "detail": "small structures and edges",
    "noise": "how natural the grain looks",
    "overall": "which image would you rather read?",
}
RATINGS_KIND = "ratings of a banding_removal reader study"
FORMAT = 1
_PARTS = ("page.css", "viewer.js", "ratings.js", "study.js")


def render_page(
    study: str, reader: Reader, cases: Sequence[CaseImages], *, sets: int, rating: Rating
) -> str:
    """The reader's page as HTML.

    It holds no name of a set, volume or scanner. Images are neither compressed nor named, so that
    not even their sizes differ. A repeated case is stored twice.

    Args:
        study: token of the study.
        reader: whose order and arrangement of the images the page has.
        cases: all images of the study, to which the views refer.
        sets: number of images side by side.
        rating: how they are rated.
    """
    views = [
        {
            "id": view.id,
            "height": cases[view.case].images.shape[1],
            "width": cases[view.case].images.shape[2],
            "white": cases[view.case].white,
        }
        for view in reader.views
    ]
    content = {
        "kind": RATINGS_KIND,
        "format": FORMAT,
        "study": study,
        "reader": reader.token,
        "name": reader.name,
        "rating": rating,
        "sets": sets,
        "highest": sets if rating == "rank" else BEST_SCORE,
        "criteria": CRITERIA,
        "views": views,
    }
    folder = resources.files(__package__) / "page"
    html = (folder / "page.html").read_text(encoding="utf-8")
    for name in _PARTS:
        html = html.replace(f"/* {name} */", (folder / name).read_text(encoding="utf-8"))
    pixels = (
        f'<script type="text/plain" id="pixels-{view.id}-{position}">'
        f"{base64.b64encode(cases[view.case].images[number].tobytes()).decode()}</script>"
        for view in reader.views
        for position, number in enumerate(view.sets)
    )
    html = html.replace("<!-- study -->", json.dumps(content))
    return html.replace("<!-- pixels -->", "\n".join(pixels))
