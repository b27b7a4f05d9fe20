import importlib.util

import pytest
from face_model_files import true_model, write_bfm_front, write_flame
from media import noise_frames, tone, write_video
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.conversation import load_conversation


def test_a_pickle_is_converted_and_then_used(tmp_path, capsys):
    pickle = write_flame(tmp_path, true_model(unit=1.0), ".pkl")
    chat = write_tiny_conversation(tmp_path / "chat", num_frames=8)
    output = ["--output", str(tmp_path / "flame_chat")]
    assert main(["refit", str(chat), *output, "--face-model-path", str(pickle)]) == 2
    assert "is a pickle" in capsys.readouterr().err
    assert main(["face-model", str(pickle), "--output", str(tmp_path / "flame.npz")]) == 0
    assert "7 of expression" in capsys.readouterr().out
    assert (
        main(["refit", str(chat), *output, "--face-model", "flame", "--face-model-path", f"{tmp_path}/flame.npz"]) == 0
    )
    said = capsys.readouterr().out
    assert "displacements" in said and "flame-7-" in said
    motion = load_conversation(tmp_path / "flame_chat").participants[1].motion
    assert motion.expression.shape == (8, 7) and motion.expression_names[0] == "jaw_open"
    assert main(["face-model", str(pickle), "--output", str(tmp_path / "flame.npz")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="process needs mediapipe")
def test_process_refuses_a_bad_face_model_before_any_work(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", noise_frames(30), audio=tone(2.0))
    command = ["process", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "out"), "--face-model-path"]
    assert main([*command, str(tmp_path / "nothing.h5")]) == 2
    assert "There is no" in capsys.readouterr().err
    assert main([*command, str(write_bfm_front(tmp_path, true_model())), "--face-model", "ict"]) == 2
    assert "looks like bfm2009, not ict" in capsys.readouterr().err
    assert not (tmp_path / "out" / "conversation.json").exists()
