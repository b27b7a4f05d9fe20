"""The ready experiments in configs/ are what the code makes now, and can be read."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from dialogue_nerfstudio.nerf.config_reader import read_yaml

FOLDER = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def texts():
    spec = importlib.util.spec_from_file_location("write_configs", FOLDER / "write_configs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.texts()


def test_files_are_up_to_date(texts):
    assert {path.name for path in FOLDER.glob("*.yml")} == set(texts)
    for name, text in texts.items():
        # How a member of an enumeration is written differs between Python versions; what it reads as does not.
        stored = read_yaml((FOLDER / name).read_text(encoding="utf-8"))
        assert stored == read_yaml(text), f"{name} is old: run python configs/write_configs.py"


def test_configs_name_a_method_and_a_conversation(texts):
    for name, text in texts.items():
        config = read_yaml(text)
        kind = name.removesuffix(".yml").split("_")[0]
        assert config.method_name == f"dialogue-nerf-{kind}" if kind in ("large", "paper") else "dialogue-nerf"
        assert config.pipeline.datamanager.data == Path("data/chat")
        assert yaml.dump(config) == text.split("\n", 1)[1]
