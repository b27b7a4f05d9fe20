"""Configs come back as they were; a config that would run code is refused before it does."""

import pytest
import yaml

from dialogue_nerfstudio.nerf.config import method
from dialogue_nerfstudio.nerf.config_reader import read_yaml


@pytest.mark.parametrize("cuda", [False, True])
def test_our_configs_round_trip(cuda):
    text = yaml.dump(method(cuda))
    assert yaml.dump(read_yaml(text)) == text


def test_a_config_from_before_an_option():
    config = method(False)
    del config.pipeline.model.__dict__["head"], config.pipeline.model.__dict__["head_samples"]
    model = read_yaml(yaml.dump(config)).pipeline.model
    assert model.head == type(model)().head and model.head_samples == type(model).head_samples


def test_members_of_enumerations_as_some_pythons_write_them():
    name = "!!python/name:nerfstudio.utils.writer.EventName ''"
    text = f"!!python/object/apply:builtins.getattr [{name}, ITER_TRAIN_TIME]"
    assert read_yaml(text) in method(False).logging.local_writer.stats_to_track


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:builtins.getattr [!!python/name:pathlib.Path '', home]",
        "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.utils.writer.EventName '', __members__]",
        "!!python/object/apply:builtins.getattr []",
        "!!python/object/apply:os.system ['touch MARK']",
        "!!python/object/new:subprocess.Popen [['touch', 'MARK']]",
        "!!python/object/apply:subprocess.run [['touch', 'MARK']]",
        "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch MARK']",
        "!!python/name:os.system",
        "!!python/name:nerfstudio.utils.scripts.run_command",
        "!!python/module:antigravity",
        '!!python/object/apply:builtins.eval [\'open("MARK", "w")\']',
        "!!python/object/apply:nerfstudio.configs.base_config.MachineConfig []",
        "!!python/object/new:pathlib.PosixPath {state: !!python/object/apply:os.system ['touch MARK']}",
    ],
)
def test_code_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)
    assert not (tmp_path / "MARK").exists()
