"""The published renderer trains, is measured, saved, loaded and rendered like this package's own."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.video import HEAD, TORSO
from dialogue_nerfstudio.fields.audio_net import AudioNetConfig
from dialogue_nerfstudio.fields.published_field import PublishedFieldConfig
from dialogue_nerfstudio.nerf.config import METHODS, large_method, paper_method
from dialogue_nerfstudio.nerf.config_reader import read_yaml
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.nerf.published_model import PublishedModel, PublishedModelConfig, composite_summed


def shrunk(tiny, cache):
    """The preset with a small network."""
    config = paper_method(cuda=False)
    config.pipeline.datamanager.data = tiny
    config.pipeline.datamanager.cache_folder = cache
    config.pipeline.datamanager.train_num_rays_per_batch = 96
    config.pipeline.model.samples = 24
    config.pipeline.model.network = PublishedFieldConfig(
        position_octaves=6,
        width=32,
        latent_size=16,
        deformation_width=16,
        audio=AudioNetConfig(base_width=2, code_size=32),
        audio_size=8,
        eyes_size=4,
    )
    return config


@pytest.fixture
def pipeline(tiny, cache):
    torch.manual_seed(0)
    return DialoguePipeline(shrunk(tiny, cache).pipeline, device="cpu", test_mode="val")


def test_summed_media_against_a_loop():
    """DFA-NeRF's composition and NeRF's quadrature, sample by sample."""
    generator = torch.Generator().manual_seed(0)
    densities = [20 * torch.rand(3, 5, generator=generator) for _ in range(2)]
    colours = [torch.rand(3, 5, 3, generator=generator) for _ in range(2)]
    delta, background = 0.1 * torch.rand(3, 5, generator=generator), torch.rand(3, 3, generator=generator)
    rgb, weights, remaining = composite_summed(densities, colours, delta, background)
    for ray in range(3):
        light, seen = 1.0, torch.zeros(3)
        for i in range(5):
            head, torso = densities[0][ray, i], densities[1][ray, i]
            colour = (head * colours[0][ray, i] + torso * colours[1][ray, i]) / (head + torso)
            alpha = 1.0 - torch.exp(-(head + torso) * delta[ray, i])
            assert weights[ray, i] == pytest.approx(float(light * alpha), abs=1e-6)
            seen, light = seen + light * alpha * colour, light * (1.0 - alpha)
        torch.testing.assert_close(rgb[ray], seen + light * background[ray], atol=1e-6, rtol=0)
        assert remaining[ray] == pytest.approx(float(light), abs=1e-6)


def test_nothing_there_shows_the_background():
    zero = torch.zeros(2, 4)
    background = torch.rand(2, 3)
    rgb, _, remaining = composite_summed([zero, zero], [torch.rand(2, 4, 3)] * 2, zero + 0.1, background)
    torch.testing.assert_close(rgb, background)
    assert remaining.eq(1.0).all()


def test_training_lowers_the_loss_and_leaves_the_codes(pipeline):
    model = pipeline.model
    assert isinstance(model, PublishedModel)
    codes = model.network.codes.clone()
    optimizer = torch.optim.Adam(model.get_param_groups()["networks"], lr=3e-3)
    pipeline.train()
    losses = []
    for step in range(60):
        _, parts, metrics = pipeline.get_train_loss_dict(step)
        assert set(parts) == {"photometric", "head"} and torch.isfinite(metrics["psnr"])
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    torch.testing.assert_close(model.network.codes, codes)
    assert model.trained_drives == {"audio", "expression"}


def test_every_parameter_is_used(pipeline):
    pipeline.train()
    model = pipeline.model
    for seed in range(4):
        torch.manual_seed(seed)
        sum(pipeline.get_train_loss_dict(seed)[1].values()).backward()
    unused = [name for name, value in model.named_parameters() if value.grad is None and "device_indicator" not in name]
    assert unused == []


def test_the_heads_own_loss_looks_at_head_and_neck_over_the_background(pipeline):
    model = pipeline.model
    outputs = {
        "rgb": torch.zeros(2, 3),
        "head_rgb": torch.full((2, 3), 0.5),
        "background": torch.full((2, 3), 0.2),
    }
    batch = {"image": torch.full((2, 3), 0.8), "label": torch.tensor([HEAD, TORSO])}
    losses = model.get_loss_dict(outputs, batch)
    assert losses["photometric"] == pytest.approx(0.64) and losses["head"] == pytest.approx(0.09)


def test_pictures_and_metrics(pipeline):
    pipeline.eval()
    camera, batch = pipeline.datamanager.next_eval_image(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert outputs["rgb"].shape == (32, 32, 3) and outputs["depth"].shape == (32, 32, 1)
    torch.testing.assert_close(outputs["head"] + outputs["torso"], outputs["accumulation"])
    metrics, _ = pipeline.model.get_image_metrics_and_images(outputs, batch)
    assert {"psnr", "psnr_head", "psnr_mouth"} <= set(metrics)


def test_checkpoints_load_completely_or_not_at_all(pipeline, tiny, cache, small_config):
    state = pipeline.state_dict()
    torch.manual_seed(5)
    other = DialoguePipeline(shrunk(tiny, cache).pipeline, device="cpu", test_mode="inference")
    other.load_strictly(state, 7)
    torch.testing.assert_close(other.model.network.codes, pipeline.model.network.codes)
    own = DialoguePipeline(small_config, device="cpu", test_mode="inference")
    with pytest.raises(DialogueError, match="not written by dialogue-nerf-paper"):
        other.load_strictly(own.state_dict(), 0)
    with pytest.raises(DialogueError, match=r"config\.yml"):
        own.load_strictly(state, 0)
    bigger = shrunk(tiny, cache).pipeline
    bigger.model.network = copy.deepcopy(bigger.model.network)
    bigger.model.network.width = 48
    with pytest.raises(DialogueError, match=r"does not fit this configuration .*config\.yml"):
        DialoguePipeline(bigger, device="cpu", test_mode="inference").load_strictly(state, 0)


def test_options_of_the_other_renderer_are_unknown():
    assert not hasattr(PublishedModelConfig(), "head_samples")
    # As a run's config.yml of before the renderers had configurations of their own.
    old = PublishedModelConfig.__new__(PublishedModelConfig)
    old.__setstate__({"samples": 32, "head_samples": 7})
    assert old.samples == 32 and old.drive == "role" and not hasattr(old, "head_samples")


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("method", [large_method, paper_method])
def test_presets_round_trip(method, cuda):
    text = yaml.dump(method(cuda))
    assert yaml.dump(read_yaml(text)) == text
    assert method(cuda).method_name in METHODS


def test_the_preset_is_the_publications():
    config = paper_method(cuda=True)
    assert config.max_num_iterations == 600_000 and config.pipeline.datamanager.train_num_rays_per_batch == 2048
    assert config.optimizers["networks"]["optimizer"].lr == 2e-4 and config.pipeline.model.samples == 64


def test_training_through_nerfstudio_and_loading_for_rendering(tiny, cache, tmp_path, capsys):
    """The trainer saves, and `ns-dialogue render` reads, what the preset trained."""
    from dialogue_nerfstudio.cli.main import main

    config = shrunk(tiny, cache)
    config.output_dir, config.timestamp, config.data = tmp_path / "outputs", "run", tiny
    config.max_num_iterations = config.steps_per_save = 3
    config.vis, config.logging.local_writer.enable, config.logging.profiler = "tensorboard", False, "none"
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    path = config.get_base_dir() / "config.yml"
    loaded, _ = load_pipeline_for_rendering(path)
    assert loaded.method_name == "dialogue-nerf-paper" and loaded.load_step == 2
    output = tmp_path / "new.mp4"
    assert main(["render", "--load-config", str(path), "--output", str(output), "--frames", "0:2"]) == 0
    assert output.stat().st_size > 0
    together = ["--layout", "co-located", "--output", str(tmp_path / "together.mp4")]
    assert main(["render", "--load-config", str(path), *together]) == 2
    assert "shows one person a picture" in capsys.readouterr().err and not (tmp_path / "together.mp4").exists()


def test_the_package_registers_every_preset(monkeypatch):
    """As nerfstudio finds methods that are not installed: by what pyproject.toml would register."""
    from nerfstudio.plugins.registry import discover_methods

    from dialogue_nerfstudio.motion.training.config import METHODS as MOTION_METHODS

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = text.split('[project.entry-points."nerfstudio.method_configs"]')[1].split("[")[0]
    points = dict(re.findall(r'^(\S+) = "(.+)"$', section, flags=re.MULTILINE))
    assert set(points) == set(METHODS) | set(MOTION_METHODS)
    monkeypatch.setenv("NERFSTUDIO_METHOD_CONFIGS", ",".join(f"{name}={target}" for name, target in points.items()))
    found, descriptions = discover_methods()
    assert set(points) <= set(found) and all(descriptions[name] for name in points)
