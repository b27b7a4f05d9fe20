"""Parsers by path: the real loading of files in the published formats (with weights made here), what their classes
become, and files that are something else."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import mean_face
from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, NECK, TORSO
from dialogue_nerfstudio.process import face_parsing
from dialogue_nerfstudio.process.bisenet import NUM_CLASSES, AttentionRefinement, BiSeNet, FeatureFusion, load_bisenet
from dialogue_nerfstudio.process.head_pose import project
from dialogue_nerfstudio.process.masks import check_masks, labeller

SIZE = 256


def _landmarks() -> np.ndarray:
    return project(mean_face(), np.eye(3), np.array([0.0, 0.02, -0.9]), 2.0 * SIZE, (SIZE / 2, SIZE / 2))


# BiSeNet --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "79999_iter.pth"
    torch.save(BiSeNet().state_dict(), path)
    return path


def test_parameters_are_named_as_the_published_ones():
    shapes = {name: tuple(value.shape) for name, value in BiSeNet().state_dict().items()}
    assert len(shapes) == 191
    for name, shape in {
        "cp.resnet.conv1.weight": (64, 3, 7, 7),
        "cp.resnet.bn1.running_mean": (64,),
        "cp.resnet.layer1.1.conv2.weight": (64, 64, 3, 3),
        "cp.resnet.layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "cp.resnet.layer4.0.downsample.1.num_batches_tracked": (),
        "cp.arm16.conv.conv.weight": (128, 256, 3, 3),
        "cp.arm32.conv_atten.weight": (128, 128, 1, 1),
        "cp.arm32.bn_atten.weight": (128,),
        "cp.conv_head32.conv.weight": (128, 128, 3, 3),
        "cp.conv_avg.conv.weight": (128, 512, 1, 1),
        "ffm.convblk.conv.weight": (256, 256, 1, 1),
        "ffm.conv1.weight": (64, 256, 1, 1),
        "ffm.conv2.weight": (256, 64, 1, 1),
        "conv_out.conv.conv.weight": (256, 256, 3, 3),
        "conv_out.conv_out.weight": (NUM_CLASSES, 256, 1, 1),
        "conv_out16.conv_out.weight": (NUM_CLASSES, 64, 1, 1),
        "conv_out32.conv.bn.running_var": (64,),
    }.items():
        assert shapes[name] == shape, name
    assert not any("fc" in name for name in shapes)


@torch.no_grad()
def test_refinement_and_fusion_are_the_paper_s():
    torch.manual_seed(1)
    features = torch.randn(1, 8, 6, 5)
    refine = AttentionRefinement(8, 4).eval()
    refined = refine.conv(features)
    weight = torch.sigmoid(
        refine.bn_atten(nn.functional.conv2d(refined.mean((2, 3))[..., None, None], refine.conv_atten.weight))
    )
    torch.testing.assert_close(refine(features), refined * weight)
    fuse = FeatureFusion(8).eval()
    joined = fuse.convblk(features)
    pooled = joined.mean((2, 3))
    weight = torch.sigmoid(torch.relu(pooled @ fuse.conv1.weight[..., 0, 0].T) @ fuse.conv2.weight[..., 0, 0].T)
    torch.testing.assert_close(fuse(features[:, :4], features[:, 4:]), joined * (1 + weight[..., None, None]))


@torch.no_grad()
def test_a_file_s_weights_are_the_network_s(weights):
    torch.manual_seed(0)
    same, other = BiSeNet().eval(), BiSeNet().eval()
    picture = torch.rand(1, 3, 64, 96)
    scores = load_bisenet(weights)(picture)
    assert scores.shape == (1, NUM_CLASSES, 64, 96)
    torch.testing.assert_close(scores, same(picture))
    assert not torch.allclose(scores, other(picture))


def test_the_parser_gives_probabilities_at_the_picture_s_size(weights):
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    with face_parsing.open_parser(weights) as parser:
        classes = parser(picture)
    assert classes.shape == (NUM_CLASSES, 90, 70) and len(parser.parts) == NUM_CLASSES
    np.testing.assert_allclose(classes.sum(0), 1.0, atol=1e-4)


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_files_that_are_no_face_parsing_weights_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(weights, weights_only=True)

    def saved(content):
        torch.save(content, tmp_path / "wrong.pth")
        return tmp_path / "wrong.pth"

    with pytest.raises(DialogueError, match=r"no file none\.pth"):
        load_bisenet(Path("none.pth"))
    (tmp_path / "torn.pth").write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(DialogueError, match="cannot be read as plain tensors"):
        load_bisenet(tmp_path / "torn.pth")
    with pytest.raises(DialogueError, match="cannot be read as plain tensors"):
        load_bisenet(saved({"a": _Harmful()}))
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(DialogueError, match="cannot be read as plain tensors"):
        load_bisenet(tmp_path / "plain.pth")
    assert not (tmp_path / "harm").exists()
    with pytest.raises(DialogueError, match="not a dictionary of tensors"):
        load_bisenet(saved([1, 2]))
    renamed = {name.removeprefix("cp."): value for name, value in state.items()}
    with pytest.raises(DialogueError, match=r"parameters are missing .* unknown"):
        load_bisenet(saved(renamed))
    with pytest.raises(DialogueError, match=r"conv_out.conv_out.weight has the shape \(11, 256, 1, 1\)"):
        load_bisenet(saved({**state, "conv_out.conv_out.weight": torch.zeros(11, 256, 1, 1)}))


# MediaPipe ------------------------------------------------------------------------------------------------------------

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8)
"""What the test's segmenter takes for background, hair, body skin, face skin, clothes and others."""


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    pytest.importorskip("mediapipe")
    from segmenter_file import write_segmenter

    # The class whose colour is nearest: |x − c|² without |x|².
    colours = COLOURS.astype(np.float32) / 255
    path = tmp_path_factory.mktemp("segmenter") / "selfie_multiclass_256x256.tflite"
    return write_segmenter(path, 40 * colours, -20 * (colours**2).sum(1))


def _painted() -> tuple[np.ndarray, np.ndarray]:
    """A person in the segmenter's colours, and where the mesh's chin is."""
    landmarks = _landmarks()
    chin = landmarks[152].astype(int)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[40:, 60:200] = COLOURS[1]
    image[chin[1] :, 100:156] = COLOURS[2]
    image[60 : chin[1], 90:166] = COLOURS[3]
    image[chin[1] + 40 :, 20:236] = COLOURS[4]
    image[20:40, 100:156] = COLOURS[5]
    return image, landmarks


def test_a_segmenter_file_makes_labels(segmenter):
    image, landmarks = _painted()
    chin = landmarks[152].astype(int)
    with face_parsing.open_parser(segmenter) as parser:
        classes = parser(image)
    assert classes.shape == (6, SIZE, SIZE) and classes.dtype == np.float32
    with labeller([str(segmenter)]) as label:
        (parts,) = label([image], landmarks[None])
    assert parts[30, 128] == HEAD, "a hat"
    assert parts[150, 64] == HEAD and parts[chin[1] + 30, 64] == HEAD, "long hair is head below the ear lobes"
    assert parts[chin[1] + 12, 128] == NECK and parts[250, 100] == TORSO and parts[100, 30] == BACKGROUND
    assert parts[100, 128] == HEAD


def test_segmenters_of_other_classes_and_other_files_are_refused(segmenter, tmp_path):
    from segmenter_file import write_segmenter

    with pytest.raises(DialogueError, match="2 class"):
        face_parsing.open_parser(write_segmenter(tmp_path / "two.tflite", np.ones((2, 3)), np.zeros(2)))
    (tmp_path / "text.tflite").write_text("no model")
    with pytest.raises(DialogueError, match="not an image segmenter"):
        face_parsing.open_parser(tmp_path / "text.tflite")
    (tmp_path / "torn.tflite").write_bytes(segmenter.read_bytes()[:400])
    with pytest.raises(DialogueError, match="not an image segmenter"):
        face_parsing.open_parser(tmp_path / "torn.tflite")
    with pytest.raises(DialogueError, match="no file"):
        face_parsing.open_parser(tmp_path / "none.tflite")


# Classes to parts -----------------------------------------------------------------------------------------------------


def test_bisenet_s_classes_become_parts():
    landmarks = _landmarks()
    for index, part in {
        0: BACKGROUND,
        1: HEAD,
        6: HEAD,
        13: HEAD,
        14: NECK,
        15: NECK,
        16: TORSO,
        17: HEAD,
        18: HEAD,
    }.items():
        classes = np.zeros((NUM_CLASSES, SIZE, SIZE), np.float32)
        classes[index] = 1.0
        parts = face_parsing.part_probabilities(classes, face_parsing.BISENET_PARTS, landmarks)
        assert (parts[part] == 1.0).all() and parts.sum() == SIZE * SIZE


def test_parts_keep_the_probability_of_all_classes():
    classes = np.random.default_rng(0).dirichlet(np.ones(6), (SIZE, SIZE)).transpose(2, 0, 1).astype(np.float32)
    parts = face_parsing.part_probabilities(classes, face_parsing.MULTICLASS_PARTS, _landmarks())
    np.testing.assert_allclose(parts.sum(0), 1.0, atol=1e-5)
    assert (parts[NECK] > 0).any() and (parts[NECK][:60] == 0).all()


# What is asked for ----------------------------------------------------------------------------------------------------


def test_masks_that_cannot_be_meant_are_refused(weights, tmp_path):
    (tmp_path / "labels.mkv").touch()
    check_masks(["selfie"])
    check_masks([str(weights)])
    check_masks([str(tmp_path / "labels.mkv"), str(tmp_path)])
    for masks, match in (
        ([], "empty"),
        (["selfy"], "There is no selfy: masks are selfie"),
        ([str(tmp_path / "gone.pth")], "There is no .*gone.pth"),
        (["selfie", str(tmp_path / "labels.mkv")], "only label videos"),
        ([str(weights), str(tmp_path / "labels.mkv")], "one weights file alone"),
    ):
        with pytest.raises(DialogueError, match=match):
            check_masks(masks)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DialogueError, match="plain tensors"):
        check_masks([str(tmp_path / "text.pth")])
