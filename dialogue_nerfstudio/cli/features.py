"""`ns-dialogue features`: add an audio feature to a conversation, for avatars to hear when they are trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro


@dataclass
class Features:
    """Add an audio feature to a processed conversation.

    Training hears it with `--pipeline.datamanager.dataparser.audio-feature KIND`; `ns-dialogue render --audio` then
    makes it of new sound, too.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The conversation, as `ns-dialogue process` wrote it."""
    kind: Literal["mel", "mfcc", "prosody", "wav2lip", "contrastive", "hubert", "wav2vec2"] = "mel"
    """Which: mel, mfcc and prosody (zero crossings, loudness) need nothing; wav2lip hears with Wav2Lip's audio encoder,
    contrastive with one of `ns-train dialogue-lip-sync`, hubert and wav2vec2 with speech networks."""
    weights: Optional[str] = None
    """The network: wav2lip.pth or wav2lip_gan.pth for wav2lip; the config.yml, a checkpoint or the .safetensors file of
    a lip-sync run for contrastive; for hubert and wav2vec2 a folder in transformers' format or a name on the Hugging
    Face hub, downloaded if not given."""
    save_weights: Optional[Path] = None
    """Also write the network of contrastive by itself, as .safetensors, to pass on with avatars that hear with it."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.conversation import load_conversation
        from dialogue_nerfstudio.conversation.errors import DialogueError
        from dialogue_nerfstudio.motion.audio_encoder import save_audio_encoder
        from dialogue_nerfstudio.process.features import FeatureExtractor, write_feature

        if self.save_weights is not None and self.kind != "contrastive":
            raise DialogueError(f"--save-weights writes the network of 'contrastive'; leave it out for '{self.kind}'.")
        conversation = load_conversation(self.folder)
        extractor = FeatureExtractor(self.kind, self.weights)
        if self.save_weights is not None:
            save_audio_encoder(self.save_weights, extractor.network)
        audio, sample_rate = conversation.audio()
        with StageProgress() as progress:
            feature = extractor.feature(
                audio,
                sample_rate,
                conversation.num_frames,
                conversation.fps,
                lambda fraction: progress(self.kind, fraction, 1.0),
            )
        path = write_feature(conversation.path(), feature)
        shape = " x ".join(map(str, feature.rows.shape[1:]))
        Console().print(
            f"{path}: {len(feature.rows)} frames of {shape}. To train with it:\n"
            f"  ns-train dialogue-nerf --data {self.folder} "
            f"--pipeline.datamanager.dataparser.audio-feature {self.kind}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
