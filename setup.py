from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="banding-removal",
    version="0.1.0",
    description="Training the banding out of learned MRI reconstructions",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["banding_removal*", "data*", "model*"]),
    install_requires=(HERE / "requirements.txt").read_text().splitlines(),
)
