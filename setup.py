"""Map the top-level folders into the one namespace `dynamix` (see docs/decisions/0001)."""

from setuptools import find_packages, setup

FOLDERS = ("features", "segmentation", "models", "jobs")

packages = ["dynamix"]
package_dir = {"dynamix": "src/dynamix"}
for folder in FOLDERS:
    package_dir[f"dynamix.{folder}"] = folder
    packages.append(f"dynamix.{folder}")
    packages += [f"dynamix.{folder}.{name}" for name in find_packages(folder)]

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"dynamix": ["py.typed"], "dynamix.jobs": ["templates/*"]},
)
