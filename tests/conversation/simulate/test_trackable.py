"""The default tracker, MediaPipe, finds and follows the simulated faces; Silero hears their voices."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_people
from dialogue_nerfstudio.conversation.simulate.dialogue import speak_dialogue

CONFIG = SimulationConfig(seconds=4.0, size=256, num_people=2, seed=7)


@pytest.fixture(scope="module")
def simulated():
    return simulate_people(CONFIG)


def ratio(points: np.ndarray, a: int, b: int, c: int, d: int) -> float:
    """Length of a-b relative to c-d."""
    return float(np.linalg.norm(points[a] - points[b]) / np.linalg.norm(points[c] - points[d]))


@pytest.mark.parametrize("who", [0, 1])
def test_mediapipe_follows_the_face(simulated, who):
    mediapipe = pytest.importorskip("mediapipe", reason="mediapipe 0.10.9 has wheels for Python 3.10 and 3.11 only")
    person = simulated[0][who]
    detector = mediapipe.solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
    mesher = mediapipe.solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1)
    # All frames around the blinks and every fourth of the rest: enough for both correlations.
    frames = np.flatnonzero((person.motion.blink[:, 0] > 0.02) | (np.arange(CONFIG.num_frames) % 4 == 0))
    openness, gap = [], []
    for frame in frames:
        image = person.render(int(frame))[0]
        found = detector.process(image).detections
        assert found is not None and len(found) == 1, f"frame {frame}"
        meshes = mesher.process(image).multi_face_landmarks
        assert meshes, f"frame {frame}"
        points = np.array([(mark.x, mark.y) for mark in meshes[0].landmark]) * CONFIG.size
        openness.append(0.5 * (ratio(points, 385, 380, 362, 263) + ratio(points, 160, 144, 33, 133)))
        gap.append(ratio(points, 13, 14, 33, 263))
    motion = person.motion
    assert np.corrcoef(gap, motion.expression[frames, EXPRESSION_NAMES.index("jaw_open")])[0, 1] > 0.8
    openness, blink = np.array(openness), motion.blink[frames, 0]
    assert blink.max() > 0.8, "the seed has no blink of this person"
    assert np.median(openness[blink > 0.8]) < 0.4 * np.median(openness[blink < 0.05])


def test_silero_hears_the_speech(simulated):
    silero_vad = pytest.importorskip("silero_vad")
    torch = pytest.importorskip("torch")
    _, dialogue = simulated
    _, mix = speak_dialogue(dialogue, int(CONFIG.seconds * 16000), CONFIG.seed)
    heard = np.zeros(len(mix), bool)
    for span in silero_vad.get_speech_timestamps(
        torch.from_numpy(mix), silero_vad.load_silero_vad(), sampling_rate=16000
    ):
        heard[span["start"] : span["end"]] = True
    true = np.zeros(len(mix), bool)
    for segment in dialogue.segments:
        true[int(segment.start * 16000) : int(segment.end * 16000)] = True
    assert heard[true].mean() > 0.95
