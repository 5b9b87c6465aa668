import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
PACKAGE = (HERE / "banding_removal" / "__init__.py").read_text(encoding="utf-8")

setup(
    name="banding-removal",
    version=VERSION.findall(PACKAGE)[0],
    description="Training the banding out of learned MRI reconstructions",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # Links in banding_removal/ lead to data/ and model/, which are installed as parts of it.
    packages=find_packages(include=["banding_removal*"]),
    package_data={
        "banding_removal.pictures": ["web/*"],
        "banding_removal.reader_study": ["page/*"],
    },
    install_requires=(HERE / "requirements.txt").read_text().splitlines(),
    extras_require={"mrd": ["ismrmrd>=1.15"]},  # scripts/import_mrd.py
)
