"""A blinded reader study: one page for each reader, and the statistics of their ratings.

    ipython scripts/reader_study.py make 'sets={pretrained: logs/pretrain, trained: logs/train}' \
        volumes=/data/knee/multicoil_val cases=60 readers=4 output=study
    ipython scripts/reader_study.py score study \
        'ratings=[ratings_reader_1.json, ratings_reader_2.json]'

`make` writes a page for each reader, reader_1.html, ..., and key.json, which unblinds the study:
keep it, and do not send it to readers. A set is as in scripts/evaluate.py. Readers open their page
in a browser, rate the images, and send back the file that the page saves at the end. `score` writes
tables and a picture to the folder `results` of the study. More: docs/reader_study.md.
"""

from banding_removal.command_line import typed_words, user_errors
from banding_removal.config.overrides import from_words
from banding_removal.errors import ConfigError
from banding_removal.reader_study.make import make_study
from banding_removal.reader_study.report import write_results
from banding_removal.reader_study.score import score_files
from banding_removal.reader_study.settings import MakeSettings, ScoreSettings


def main(words: list[str]) -> None:
    """Make a study, or score it."""
    match words:
        case ["make", *rest]:
            print(make_study(from_words(MakeSettings(), rest)))
        case ["score", study, *rest] if "=" not in study:
            settings = from_words(ScoreSettings(), [f"study={study}", *rest])
            folder = settings.output or settings.study / "results"
            print(write_results(folder, score_files(settings)))
            print(f"the picture is {folder / 'figure.png'}")
        case _:
            raise ConfigError("the first word is make, or score and the folder of the study")


if __name__ == "__main__":
    with user_errors():
        main(typed_words(MakeSettings()))
