"""Reads a run's config.yml without running code that a stranger may have put into it.

nerfstudio writes its configs with YAML tags that name Python objects, and reads them with a loader that calls whatever
a tag names. Ours makes the kinds of objects that configs consist of and refuses every other: dataclasses (without
calling them), paths and enumerations, and references to classes of the packages that configs are about.
"""

import dataclasses
import enum
import pathlib
from typing import Any

import yaml

PACKAGES = ("nerfstudio", "dialogue_nerfstudio", "torch.optim", "pathlib")
"""Where a named object may come from."""

FUNCTIONS = ("nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate",)
"""Functions that a config refers to."""


class ConfigLoader(yaml.UnsafeLoader):
    """PyYAML's loader for Python objects, restricted to what the module's sentence says."""

    def find_python_name(self, name: str, mark: Any) -> Any:
        if not any(name.startswith(f"{package}.") for package in PACKAGES):
            raise yaml.constructor.ConstructorError(None, None, f"a config may not name {name}", mark)
        found = super().find_python_name(name, mark)
        if not isinstance(found, type) and name not in FUNCTIONS:
            raise yaml.constructor.ConstructorError(None, None, f"a config may not name {name}", mark)
        return found

    def find_python_module(self, name: str, mark: Any) -> Any:
        raise yaml.constructor.ConstructorError(None, None, f"a config may not name the module {name}", mark)

    def make_python_instance(
        self, suffix: str, node: yaml.Node, args: Any = None, kwds: Any = None, newobj: bool = False
    ) -> Any:
        if suffix == "builtins.getattr" and len(args) == 2:
            # How Python 3.11.0 to 3.11.3 write a member of an enumeration.
            kind, member = args
            if isinstance(kind, type) and issubclass(kind, enum.Enum) and member in kind.__members__:
                return kind[member]
        kind = self.find_python_name(suffix, node.start_mark)
        called = not newobj
        if not (issubclass(kind, (enum.Enum, pathlib.PurePath)) if called else dataclasses.is_dataclass(kind)):
            raise yaml.constructor.ConstructorError(None, None, f"a config may not hold a {suffix}", node.start_mark)
        made = super().make_python_instance(suffix, node, args, kwds, newobj)
        if not called:
            # Options younger than the file: a class has plain defaults as attributes, but made ones must be made.
            for option in dataclasses.fields(kind):
                if option.default_factory is not dataclasses.MISSING:
                    made.__dict__[option.name] = option.default_factory()
        return made


def read_yaml(text: str) -> Any:
    """The object a config's text describes.

    Raises:
        yaml.YAMLError: it is not YAML, or names something that configs do not consist of.
    """
    return yaml.load(text, Loader=ConfigLoader)  # the loader is the safe one above
