"""Where the wheel keeps the suite: inside `ssnn_plugin`, so that one top-level package is installed."""

from setuptools import find_packages, setup

SUITE = "ssnn_plugin._suite"
suite = {f"{SUITE}.{name}": name.replace(".", "/") for name in find_packages(include=["reproductions*"])}

setup(packages=[*find_packages(include=["ssnn_plugin*"]), *suite], package_dir=suite)
